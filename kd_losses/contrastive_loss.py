"""Multi-scale contrastive distillation: the student's image is to be more like the teacher's than like any other."""
from __future__ import annotations

import math
from typing import Any

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from kd_utils.options import OptionError
from kd_utils.precision import full_precision

LEVELS = {'image': ('image',), 'patch': ('patch',), 'hybrid': ('image', 'patch')}
MINING = ('all', 'hard')
NEGATIVES = ('in_batch', 'in_batch+degraded')


@LOSS_REGISTRY.register()
class MultiScaleContrastiveLoss(nn.Module):
    """L = w (w_image L_image + w_patch L_patch), each an InfoNCE loss between embeddings of student and teacher images.

        L_level = mean_i -log( exp(c_ii / tau) / (exp(c_ii / tau) + sum_{j in N(i)} exp(c_ij / tau)) )

    with c_ij the cosine between the embeddings of the student's image (or patch) i and the teacher's j. This is the
    cross-entropy with diagonal labels. Image level: whole crops, negatives are the other images of the batch, on all
    processes. Patch level: `num_patches` crops per image at the same coordinates in student and teacher; negatives
    are all other patches but those of the same image that overlap the anchor. Two crops of one photograph in a batch
    are no negatives of each other at either level. Anchors without negatives are left out of the mean. The embedding
    heads and the temperature are trained with the generator. Source: MCAD-KD (ICCV Workshops 2025); heads and weights
    from its authors' configuration, InfoNCE as in van den Oord et al. 2018.

    Args:
        level: Levels used: `image`, `patch` or `hybrid` (both).
        patch_size: Side of a patch in HR pixels.
        num_patches: Patches per image.
        image_weight: w_image.
        patch_weight: w_patch.
        loss_weight: w.
        tau: Initial temperature.
        tau_min: Lower bound of the temperature.
        tau_max: Upper bound of the temperature.
        learn_tau: Whether the temperature is trained.
        mining: `all` negatives, or `hard`: the k most similar ones of each anchor.
        k_image: k at image level, 8 by default; for `hard` only.
        k_patch: k at patch level, 32 by default; for `hard` only.
        include_positive: Whether the positive is in the denominator; without it this is the decoupled form (Yeh et
            al., ECCV 2022), which can become negative.
        negatives: `in_batch`, or `in_batch+degraded`: also the bicubic enlargement of the anchor's own LR image, which
            cannot be told from the positive by its content (as in CSD, IJCAI 2021).
        d_emb: Length of the embeddings.

    Raises:
        OptionError: A choice or number that cannot work.
    """

    def __init__(self, *, level: str = 'hybrid', patch_size: int = 48, num_patches: int = 8,
                 image_weight: float = 0.3, patch_weight: float = 0.7, loss_weight: float = 0.05, tau: float = 0.07,
                 tau_min: float = 0.01, tau_max: float = 0.5, learn_tau: bool = True, mining: str = 'all',
                 k_image: int | None = None, k_patch: int | None = None, include_positive: bool = True,
                 negatives: str = 'in_batch', d_emb: int = 256) -> None:
        super().__init__()
        chosen = (('level', level, LEVELS), ('mining', mining, MINING), ('negatives', negatives, NEGATIVES))
        for name, value, choices in chosen:
            if value not in choices:
                raise OptionError(f'train.contrastive_opt.{name} is `{value}`. Write one of: {", ".join(choices)}.')
        least = {'patch_size': (patch_size, 1), 'num_patches': (num_patches, 1), 'd_emb': (d_emb, 4),
                 'k_image': (k_image, 1), 'k_patch': (k_patch, 1), 'image_weight': (image_weight, 0),
                 'patch_weight': (patch_weight, 0), 'loss_weight': (loss_weight, 0)}
        for name, (number, minimum) in least.items():
            if number is not None and number < minimum:
                raise OptionError(f'train.contrastive_opt.{name} is {number}. Write {minimum} or more.')
        if not 0 < tau_min < tau < tau_max:
            raise OptionError(f'train.contrastive_opt has tau_min {tau_min}, tau {tau}, tau_max {tau_max}. '
                              'Write 0 < tau_min < tau < tau_max, such as 0.01, 0.07 and 0.5.')
        if mining == 'all' and (k_image, k_patch) != (None, None):
            raise OptionError('train.contrastive_opt.k_image and k_patch are of no use with `mining: all`. '
                              'Write `mining: hard`, or take them out.')
        self.patch_size, self.num_patches = patch_size, num_patches
        self.loss_weight, self.weights = loss_weight, {'image': image_weight, 'patch': patch_weight}
        self.hardest = {'image': k_image or 8, 'patch': k_patch or 32} if mining == 'hard' else {}
        self.include_positive = include_positive
        self.degraded = negatives == 'in_batch+degraded'
        self.heads = nn.ModuleDict({name: _head(name, d_emb) for name in LEVELS[level]})
        temperatures = {name: Temperature(tau, tau_min, tau_max, learn_tau) for name in self.heads}
        self.temperatures = nn.ModuleDict(temperatures)

    def forward(self, student: Tensor, teacher: Tensor, degraded: Tensor | None = None,
                sources: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted loss and its parts.

        Args:
            student: The student's images, (N, 3, H, W) in [0, 1].
            teacher: The teacher's images, the same shape; no gradient reaches them.
            degraded: Enlarged LR images, the same shape; needed by `in_batch+degraded`.
            sources: Which photograph each image is a crop of, (N, ), int64; all are different by default.

        Returns:
            dict: `loss`, weighted; `image` and `patch`, unweighted; `tau_image` and `tau_patch`.

        Raises:
            OptionError: Patches larger than the images, or no negatives at all.
        """
        if student.shape[1] != 3:
            raise OptionError(f'train.contrastive_opt compares RGB images, and these have {student.shape[1]} channels. '
                              'Take it out, or train on RGB images.')
        images = [x for x in (student, teacher.detach(), degraded if self.degraded else None) if x is not None]
        same = self._of_one_photograph(len(student), sources, student.device)
        parts: dict[str, Tensor] = {}
        for level in self.heads:
            # at weight 0 nothing else may notice it, the random numbers of what comes after included
            with torch.random.fork_rng(devices=[], enabled=not self.loss_weight):
                views, excluded = self._patches(images, same) if level == 'patch' else (images, same)
            embeddings = self.heads[level](torch.cat(views)).chunk(len(views))  # each (M, d_emb)
            tau = self.temperatures[level]()
            with full_precision(student.device):
                parts[level] = self._info_nce(level, [x.float() for x in embeddings], tau.float(), excluded)
            parts[f'tau_{level}'] = tau.detach()
        weighted = [self.weights[level] * parts[level] for level in self.heads]
        parts['loss'] = self.loss_weight * torch.stack(weighted).sum()
        return parts

    @staticmethod
    def _of_one_photograph(count: int, sources: Tensor | None, device: torch.device) -> Tensor:
        """Which candidates of all processes are of the anchor's photograph, itself included, (N, N * processes)."""
        own = _rank() * count + torch.arange(count, device=device)
        mask = own[:, None] == torch.arange(count * _processes(), device=device)[None]
        if sources is None:
            return mask
        sources = sources.to(device, non_blocking=True)
        return mask | (sources[:, None] == _gathered(sources)[None])

    def _patches(self, images: list[Tensor], same: Tensor) -> tuple[list[Tensor], Tensor]:
        """Crops at the same places in all images, (P N, 3, s, s) each, and which of them are no negatives.

        Args:
            images: (N, 3, H, W) each.
            same: As from `_of_one_photograph`.

        Returns:
            The crops, and (P N, P N * processes): overlapping crops of one image, and crops of the same photograph
            elsewhere in the batch, of which nobody knows whether they overlap.
        """
        count, _, height, width = images[0].shape
        size, total = self.patch_size, self.num_patches * images[0].shape[0]
        if size > min(height, width):
            raise OptionError(f'train.contrastive_opt.patch_size is {size}, larger than the crop of {height}x{width}. '
                              f'Write at most {min(height, width)}, or a larger gt_size.')
        if same.shape[1] == 1 and not self.degraded and (self.num_patches == 1 or 2 * size > max(height, width)):
            raise OptionError(f'train.contrastive_opt has no negatives in a batch of one crop of {height}x{width} with '
                              f'{self.num_patches} patches of {size}, all of which overlap. Set batch_size_per_gpu to '
                              f'2 or more, or patch_size to {max(height, width) // 2} or less with num_patches of 2 '
                              'or more.')
        owner = torch.arange(count).repeat_interleave(self.num_patches)
        top, left = (torch.randint(0, length - size + 1, (total, )) for length in (height, width))
        views = _crops(images, owner, top, left, size)
        close = [(place[:, None] - place[None]).abs() < size for place in (top, left)]
        apart = (owner[:, None] == owner[None]) & ~(close[0] & close[1])  # crops of one image that do not overlap
        excluded = same.repeat_interleave(self.num_patches, 0).repeat_interleave(self.num_patches, 1)
        first = _rank() * total
        excluded[:, first:first + total] &= ~apart.to(excluded.device, non_blocking=True)
        return views, excluded

    def _info_nce(self, level: str, embeddings: list[Tensor], tau: Tensor, excluded: Tensor) -> Tensor:
        """InfoNCE with the student's embeddings (M, d) as anchors and the teacher's of all processes as candidates.

        `excluded` (M, M * processes) says which candidates are no negatives: the positive and those too like it.
        """
        anchors, candidates = embeddings[0], _gathered(embeddings[1])
        similarity = anchors @ candidates.t() / tau  # (M, M * processes)
        first = _rank() * len(anchors)
        positive = similarity[:, first:first + len(anchors)].diagonal()[:, None]  # (M, 1)
        negatives = similarity.masked_fill(excluded, -math.inf)
        if self.degraded:
            of_itself = (anchors * embeddings[2]).sum(1, keepdim=True) / tau
            negatives = torch.cat([negatives, of_itself], dim=1)
        if negatives.shape[1] == 1:
            raise OptionError('train.contrastive_opt has no negatives in a batch of one. Set batch_size_per_gpu to 2 '
                              'or more, `level: patch`, or `negatives: in_batch+degraded`.')
        if level in self.hardest:
            negatives = negatives.topk(min(self.hardest[level], negatives.shape[1]), dim=1).values
        counts = (negatives > -math.inf).any(1)  # anchors with a negative, (M, )
        denominator = torch.cat([positive, negatives], dim=1) if self.include_positive else negatives
        denominator = torch.where(counts[:, None], denominator, 0.)  # a row of -inf alone would have no gradient
        losses = denominator.logsumexp(1) - positive[:, 0]
        return torch.where(counts, losses, 0.).sum() / counts.sum().clamp(min=1)


class Temperature(nn.Module):
    """tau = tau_min + (tau_max - tau_min) sigmoid(theta): positive and bounded whatever the optimizer does to theta.

    A bare learned temperature becomes negative within a hundred steps at the learning rates used here.
    """

    def __init__(self, tau: float, tau_min: float, tau_max: float, learned: bool) -> None:
        super().__init__()
        self.tau_min, self.tau_max = tau_min, tau_max
        share = (tau - tau_min) / (tau_max - tau_min)
        self.theta = nn.Parameter(torch.tensor(math.log(share / (1 - share))), requires_grad=learned)

    def forward(self) -> Tensor:
        """The temperature, a scalar."""
        return self.tau_min + (self.tau_max - self.tau_min) * torch.sigmoid(self.theta)


class _Normalise(nn.Module):

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=1)


def _head(level: str, d_emb: int) -> nn.Sequential:
    """Image (N, 3, H, W) -> embedding (N, d_emb) of length 1: one convolution for whole images, two for patches."""
    half, quarter = d_emb // 2, d_emb // 4
    convs = [nn.Conv2d(3, half, 3, padding=1)] if level == 'image' else \
        [nn.Conv2d(3, quarter, 3, padding=1), nn.ReLU(), nn.Conv2d(quarter, half, 3, padding=1)]
    return nn.Sequential(*convs, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(half, d_emb), _Normalise())


def _crops(images: list[Tensor], owner: Tensor, top: Tensor, left: Tensor, size: int) -> list[Tensor]:
    """Crops of images (N, C, H, W): for each of `owner`, `top` and `left` (M, ) one, (M, C, size, size).

    One index for all: a slice for each crop would make a gradient of the whole batch for each crop.
    """
    _, channels, height, width = images[0].shape
    device = images[0].device
    corners = (owner * channels * height + top) * width + left  # of the first channel, counted through the batch
    # backwards, as autograd sums the gradients of overlapping slices: a result is the same bit for bit
    corners = corners.flip(0).to(device, non_blocking=True)
    planes = torch.arange(channels, device=device) * height * width
    rows, columns = torch.arange(size, device=device) * width, torch.arange(size, device=device)
    pixels = corners.view(-1, 1, 1, 1) + planes.view(-1, 1, 1) + rows.view(-1, 1) + columns  # (M, C, size, size)
    return [x.reshape(-1).index_select(0, pixels.flatten()).view(pixels.shape).flip(0) for x in images]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gathered(x: Tensor) -> Tensor:
    """The rows of all processes, with gradients back to the process that they came from."""
    return _Gather.apply(x.contiguous()) if _processes() > 1 else x


class _Gather(torch.autograd.Function):
    """(M, ...) of each process -> (M * processes, ...) on all; the gradient of a row is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(_processes())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(_processes())[_rank()]
