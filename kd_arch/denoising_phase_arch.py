"""Adv-KD's student: a convolutional network whose successive blocks are the denoising phases of a diffusion model.

Each phase has a private head that shows its features as an image, which is compared with a state of the teacher's
trajectory while training. Features, not images, go from phase to phase. A network holds the last head only; the others
(`phase_heads`) belong to the training. There is no time step: the depth is the time (arXiv 2405.20675, by its code).
"""
from __future__ import annotations

import math
from typing import Any

import torch
from basicsr.archs.arch_util import ResidualBlockNoBN
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from kd_utils.options import OptionError
from kd_utils.resize import bicubic


def phase_sizes(scale: int, phases: int) -> list[int]:
    """Sides of the phases' images as multiples of the LR image's: x4 is 1, 1, 2, 2, 4 for five phases.

    Two fifths of the phases are at the full size, in x4 two fifths at half of it and one fifth at the full size.
    """
    def share(fifths: int) -> int:
        return min(round(fifths * phases / 5), phases - 1)

    later = [2] * share(2) + [4] * max(share(1), 1) if scale == 4 else [scale] * max(share(2), 1)
    return ([1] * phases + later)[-phases:]


def squeeze(noise: Tensor, side: int = 4) -> Tensor:
    """Standard normal noise (N, C, H, W) averaged to (N, C, side, side), and scaled so that it stays standard normal.

    Exactly so where `side` divides H and W.
    """
    return F.adaptive_avg_pool2d(noise, side) * (math.sqrt(noise.shape[-2] * noise.shape[-1]) / side)


def _conv(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_in, num_out, 3, 1, 1), nn.BatchNorm2d(num_out), nn.LeakyReLU(0.01, True))


def _up(num_in: int, num_out: int, factor: int) -> nn.Sequential:
    """The published block: a transposed convolution to `factor` times the side."""
    even = int(factor == 2)
    conv = nn.ConvTranspose2d(num_in, num_out, max(3, factor), factor, even, even)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out), nn.LeakyReLU(0.01, True))


def _head(num_feat: int, faithful: bool) -> nn.Sequential:
    """Features to an image; that of the published code is normalised and ends in tanh."""
    if faithful:
        return nn.Sequential(*_conv(num_feat, num_feat), nn.Conv2d(num_feat, 3, 3, 1, 1), nn.Tanh())
    return nn.Sequential(nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.LeakyReLU(0.2, True),
                         nn.Conv2d(num_feat, 3, 3, 1, 1))


class PhaseChain(nn.Module):
    """What both students have in common: phases one after the other, and heads.

    Attributes:
        sizes: Side of each phase's image, as a multiple of that of the input.
    """
    sizes: list[int]

    @staticmethod
    def sizes_of(**network_opt: Any) -> list[int]:
        """`sizes` of the network with these options, without building it."""
        raise NotImplementedError

    def _chain(self, phases: list[nn.Module], widths: list[int], faithful: bool) -> None:
        self.phases = nn.ModuleList(phases)
        self.widths, self.faithful = widths, faithful
        self.head = _head(widths[-1], faithful)

    def phase_heads(self) -> nn.ModuleList:
        """New heads for all phases but the last."""
        return nn.ModuleList(_head(width, self.faithful) for width in self.widths[:-1])

    def features(self, x: Tensor, last: int) -> list[Tensor]:
        """The features after phases 0 to `last` of what `enter` returned; later phases are not run."""
        maps = []
        for phase in self.phases[:last + 1]:
            x = phase(x)
            maps.append(x)
        return maps

    def enter(self, lq: Tensor, noise: Tensor | None = None) -> Tensor:
        """The input of the first phase; without `noise` that of deployment."""
        raise NotImplementedError

    def finish(self, image: Tensor, lq: Tensor) -> Tensor:
        """The network's image, around [0, 1], of what the last head returned."""
        raise NotImplementedError

    def forward(self, lq: Tensor, noise: Tensor | None = None) -> Tensor:
        """The image of the last phase, in one pass."""
        return self.finish(self.head(self.features(self.enter(lq, noise), len(self.phases))[-1]), lq)


@ARCH_REGISTRY.register()
class DenoisingPhaseNet(PhaseChain):
    """Super-resolution: LR image and pixel-unshuffled noise, K phases, y = head / 2 + bicubic(LR).

    An ordinary network, LR images (N, 3, H, W) in [0, 1] to SR images (N, 3, sH, sW). Its noise is then that of `seed`,
    or zero.

    Args:
        scale: Factor s of super-resolution.
        phases: K.
        sizes: Side of each phase's image as a multiple of the LR image's, ascending to `scale`; `phase_sizes` by
            default.
        num_feat: Channels.
        num_block: Residual blocks of a phase; of a faithful one, convolutions, the last of which may enlarge.
        noise: `paired`: the noise x_T with which the teacher's trajectory begins; `zero`: none, the same weights.
        faithful: The published blocks, with batch normalisation and tanh, instead of residual blocks.
        seed: Of the noise where `forward` is given none.

    Raises:
        OptionError: The sizes do not ascend by whole factors to `scale`.
    """
    argument_kinds = {'scale': 'size', 'phases': 'size', 'num_block': 'size', 'noise': 'paired|zero', 'seed': 'count',
                      'sizes': 'list?'}

    def __init__(self, *, scale: int = 4, phases: int = 5, sizes: list | None = None, num_feat: int = 64,
                 num_block: int = 4, noise: str = 'paired', faithful: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.scale, self.noise, self.seed = scale, noise, seed
        self.sizes = self.sizes_of(scale=scale, phases=phases, sizes=sizes)
        factors = _factors(self.sizes, phases, scale)
        self.stem = nn.Conv2d(3 + 3 * scale**2, num_feat, 3, 1, 1)
        phase = _published_phase if faithful else _residual_phase
        self._chain([phase(num_feat, num_block, factor) for factor in factors], [num_feat] * phases, faithful)

    @staticmethod
    def sizes_of(*, scale: int = 4, phases: int = 5, sizes: list | None = None, **others: Any) -> list[int]:
        """As written, or by default."""
        return phase_sizes(scale, phases) if sizes is None else list(sizes)

    def enter(self, lq: Tensor, noise: Tensor | None = None) -> Tensor:
        """Args are lq (N, 3, H, W) in [0, 1] and noise (N, 3, sH, sW)."""
        shape = (len(lq), 3, self.scale * lq.shape[-2], self.scale * lq.shape[-1])
        if self.noise == 'zero':
            noise = lq.new_zeros(shape)
        elif noise is None:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed)).to(lq)
        return self.stem(torch.cat((2 * lq - 1, F.pixel_unshuffle(noise, self.scale)), 1))

    def finish(self, image: Tensor, lq: Tensor) -> Tensor:
        """Adds the enlarged LR image."""
        return image / 2 + bicubic(lq, (image.shape[-2], image.shape[-1]))


def _factors(sizes: list[int], phases: int, scale: int) -> list[int]:
    """By how much each phase enlarges.

    Raises:
        OptionError: They do not lead from 1 to `scale`.
    """
    example = ', '.join(map(str, phase_sizes(scale, phases)))
    end = [1, *sizes][-1]
    if len(sizes) != phases or end != scale:
        raise OptionError(f'`sizes` has {len(sizes)} phases and ends at {end} times the LR image, for `phases: '
                          f'{phases}` and `scale: {scale}`. Write {phases} sizes up to {scale}, such as [{example}].')
    for before, size in zip([1, *sizes], sizes, strict=False):
        if not isinstance(size, int) or size < before or size % before:
            raise OptionError(f'`sizes`: a phase of {size} times the LR image cannot follow one of {before} times. '
                              f'Write multiples of each other, such as [{example}].')
    return [size // before for before, size in zip([1, *sizes], sizes, strict=False)]


def _residual_phase(num_feat: int, num_block: int, factor: int) -> nn.Sequential:
    up = [nn.Upsample(scale_factor=factor), nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*(up if factor > 1 else []), *(ResidualBlockNoBN(num_feat) for _ in range(num_block)))


def _published_phase(num_feat: int, num_block: int, factor: int) -> nn.Sequential:
    last = _up(num_feat, num_feat, factor) if factor > 1 else _conv(num_feat, num_feat)
    return nn.Sequential(*(_conv(num_feat, num_feat) for _ in range(num_block - 1)), last)


@ARCH_REGISTRY.register()
class PhaseDecoder(PhaseChain):
    """The unconditional student of the published code: noise 3x4x4 to an image, 11 phases for 256 pixels.

    Phase k has the side 2^(k//2 + 3) and min(2^(k//2), 8) `num_feat` channels. Even phases enlarge, after a convolution
    in all but phase 0; odd ones have two convolutions, phase 1 has one.

    Args:
        size: Side of the images, a power of two from 8 on.
        num_feat: Channels of the first phase.

    Raises:
        OptionError: There is no such network.
    """
    argument_kinds = {'size': 'size'}
    noise = 'paired'

    def __init__(self, *, size: int = 256, num_feat: int = 16) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise OptionError(f'`size` is {size}. Write a power of two from 8 on, such as 256.')
        self.sizes = self.sizes_of(size=size)
        widths = [num_feat * min(2**(k // 2), 8) for k in range(len(self.sizes))]
        phases: list[nn.Module] = []
        for k, (num_in, num_out) in enumerate(zip([3, *widths], widths, strict=False)):
            layers = [_up(num_out if k else num_in, num_out, 2)] if k % 2 == 0 else [_conv(num_out, num_out)]
            phases.append(nn.Sequential(*([_conv(num_in, num_out)] if k else []), *layers) if k != 1
                          else _conv(num_in, num_out))
        self._chain(phases, widths, faithful=True)

    @staticmethod
    def sizes_of(*, size: int = 256, **others: Any) -> list[int]:
        """2, 2, 4, 4 ... times the 4 pixels of the noise."""
        return [2**(k // 2 + 1) for k in range(2 * int(math.log2(size // 4)) - 1)]

    def enter(self, lq: Tensor, noise: Tensor | None = None) -> Tensor:
        """The noise as (N, 3, 4, 4); `lq` is that, (N, 48), or a teacher's x_T of any side, (N, 3 * side * side)."""
        side = math.isqrt(lq.flatten(1).shape[1] // 3)
        return squeeze(lq.reshape(len(lq), 3, side, side))

    def finish(self, image: Tensor, lq: Tensor) -> Tensor:
        """From [-1, 1] to [0, 1]."""
        return image / 2 + 0.5


class _PatchDiscriminator(nn.Module):
    """Logits of patches; no batch normalisation, which a penalty on single images' gradients does not go with."""

    def __init__(self, num_in: int, num_feat: int) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(num_in, num_feat, 3, 1, 1), nn.LeakyReLU(0.2, True),
            nn.Conv2d(num_feat, 2 * num_feat, 4, 2, 1), nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * num_feat, 4 * num_feat, 4, 2, 1), nn.LeakyReLU(0.2, True),
            nn.Conv2d(4 * num_feat, 1, 3, 1, 1))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """(N, 1, H/4, W/4); the noise is not looked at."""
        return self.image(images)


class _GlobalDiscriminator(nn.Module):
    """The published one: one logit for an image of a fixed side and the noise 3x4x4 that it was made of."""

    def __init__(self, num_in: int, num_feat: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(num_in, num_feat, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
        width, side = num_feat, side // 2
        while side >= 8:
            wider = min(2 * width, 4 * num_feat)
            layers += [nn.Conv2d(width, wider, 4, 2, 1), nn.BatchNorm2d(wider), nn.LeakyReLU(0.2, True)]
            width, side = wider, side // 2
        self.image = nn.Sequential(*layers)
        self.noise = nn.Sequential(
            nn.Conv2d(3, num_feat, 3, 1, 1), nn.BatchNorm2d(num_feat), nn.LeakyReLU(0.2, True),
            nn.Conv2d(num_feat, 2 * num_feat, 3), nn.BatchNorm2d(2 * num_feat), nn.LeakyReLU(0.2, True))
        self.judge = nn.Sequential(
            nn.Linear(width * side**2 + 8 * num_feat, 4 * num_feat), nn.BatchNorm1d(4 * num_feat),
            nn.LeakyReLU(0.2, True), nn.Linear(4 * num_feat, 1))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """(N, 1)."""
        return self.judge(torch.cat((self.image(images).flatten(1), self.noise(noise).flatten(1)), 1))


@ARCH_REGISTRY.register()
class PhaseDiscriminators(nn.ModuleList):
    """A discriminator for each phase, which sees the phase's image beside the LR image enlarged to its size.

    Args:
        sizes: Side of each phase's image in training, in pixels.
        num_feat: Channels of the first layer; the published code has 32.
        faithful: The published one, of whole images and the noise, with batch normalisation; otherwise of patches.
        conditional: Whether there are LR images.
    """
    argument_kinds = {'sizes': 'list!'}

    def __init__(self, *, sizes: list, num_feat: int = 64, faithful: bool = False, conditional: bool = True) -> None:
        num_in = 6 if conditional else 3
        super().__init__(_GlobalDiscriminator(num_in, num_feat, side) if faithful
                         else _PatchDiscriminator(num_in, num_feat) for side in sizes)
        self.conditional = conditional

    def forward(self, images: Tensor, lq: Tensor | None = None, noise: Tensor | None = None,
                phase: int = -1) -> Tensor:
        """Logits of a phase's images (N, 3, H, W) in [-1, 1].

        Args:
            images: Of the student or the teacher.
            lq: LR images in [0, 1]; blank where not given.
            noise: x_T, (N, 3, side, side); blank where not given.
            phase: Which phase they are of, from 0.
        """
        if self.conditional:
            condition = torch.zeros_like(images) if lq is None else \
                2 * bicubic(lq, (images.shape[-2], images.shape[-1])) - 1
            images = torch.cat((images, condition), 1)
        noise = images.new_zeros(len(images), 3, 4, 4) if noise is None else squeeze(noise)
        return self[phase](images, noise)
