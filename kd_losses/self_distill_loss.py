"""Distances between two images of one generator, its own and its EMA's, through which the generator is trained."""
from __future__ import annotations

import math
from os import path as osp

import lpips
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from kd_utils import checkpoint
from kd_utils.options import OptionError
from kd_utils.precision import full_precision

# Backbone -> torchvision's file of weights.
BACKBONES = {'vgg': 'vgg16-397923af.pth', 'alex': 'alexnet-owt-7be5be79.pth', 'squeeze': 'squeezenet1_1-b8a52dc0.pth'}
# Backbone -> the shortest side that is left at least one pixel by its last layer.
SMALLEST = {'vgg': 16, 'alex': 31, 'squeeze': 17}


class WeightsUnavailable(OptionError):
    """Weights that are downloaded on first use could not be; the message names the file and where to put it."""


@LOSS_REGISTRY.register()
class LPIPSLoss(nn.Module):
    """w d(x, y), d the learned perceptual distance LPIPS v0.1 of the `lpips` package, averaged over the batch.

    d = sum_l mean_hw || u_l (phi_l(x) - phi_l(y)) ||^2, with phi_l the unit-normalised maps of a frozen backbone and
    u_l the heads fitted to human judgements. Source: Zhang et al., CVPR 2018. SD-GAN's distance, with `net: vgg`.

    Args:
        net: Backbone: `vgg`, `alex` or `squeeze`.
        weights: torchvision's file of the backbone, see `BACKBONES`; None to have it downloaded.
        loss_weight: w.

    Raises:
        OptionError: An unknown backbone, or a file that does not hold it.
        WeightsUnavailable: The download failed.
        CheckpointError: The file is missing or damaged.
    """

    def __init__(self, *, net: str = 'vgg', weights: str | None = None, loss_weight: float = 1.0) -> None:
        super().__init__()
        if net not in BACKBONES:
            raise OptionError(f'LPIPS has no backbone `{net}`. Write one of: {", ".join(BACKBONES)}.')
        self.net, self.loss_weight = net, loss_weight
        self.lpips = _downloaded(net) if weights is None else _from_file(net, weights)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LPIPSLoss:
        """Stays in eval."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The weighted distance, a scalar.

        Args:
            x: Images, (N, 3, H, W) in [0, 1], RGB.
            y: The same shape.

        Raises:
            OptionError: The images are too small for the backbone, or have not three channels.
        """
        if min(x.shape[-2:]) < SMALLEST[self.net]:
            raise OptionError(f'LPIPS with `net: {self.net}` needs images of at least {SMALLEST[self.net]} pixels a '
                              f'side, these are {x.shape[-2]}x{x.shape[-1]}. Take larger ones, in training by gt_size.')
        if x.shape[1] != 3:
            raise OptionError(f'LPIPS compares RGB images, these have {x.shape[1]} channels. '
                              'Use another distance, such as MSSSIMLoss.')
        return self.loss_weight * self.lpips(x, y, normalize=True).mean()


def _downloaded(net: str) -> nn.Module:
    try:
        return lpips.LPIPS(net=net, verbose=False)
    except (OSError, RuntimeError) as error:  # no network, a full disk, a broken download
        file = osp.join(torch.hub.get_dir(), 'checkpoints', BACKBONES[net])
        raise WeightsUnavailable(
            f'LPIPS with `net: {net}` could not get its weights ({getattr(error, "reason", error)}). Download '
            f'https://download.pytorch.org/models/{BACKBONES[net]} elsewhere and save it as {file}, '
            'or name it by `weights: FILE`.') from None


def _from_file(net: str, weights: str) -> nn.Module:
    """LPIPS whose backbone is read from torchvision's file; the heads are part of the package."""
    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # torchvision's `features.0.weight` is `slice1.0.weight` there
    names = {name: 'features.' + name.partition('.')[2] for name in model.net.state_dict()}
    state = checkpoint.network_state(weights, key=None)
    try:
        model.net.load_state_dict({name: state[original] for name, original in names.items()})
    except (KeyError, RuntimeError):
        raise OptionError(f"{weights} does not hold the backbone `{net}` of LPIPS. Name torchvision's "
                          f'{BACKBONES[net]}, from https://download.pytorch.org/models/{BACKBONES[net]}') from None
    return model


# Exponents of the scales, from fine to coarse (Wang et al. 2003, section 3.2).
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = 0.01**2, 0.03**2  # for images in [0, 1]


@LOSS_REGISTRY.register()
class MSSSIMLoss(nn.Module):
    """w (1 - MS-SSIM(x, y)), averaged over channels and batch.

        MS-SSIM = l_5^(a_5) prod_{j=1..5} cs_j^(a_j),    a = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

    with l and cs the luminance and contrast-structure terms of SSIM in a Gaussian window (sigma 1.5), averaged over
    the windows inside the image, and 2x2 means between the scales. Source: Wang, Simoncelli and Bovik, "Multi-scale
    structural similarity for image quality assessment" (2003). A term at or below 0 is held at 1e-6, so that the other
    scales still have a gradient. The window has 11 pixels, or 7 where the shorter side is 160 pixels or less.

    Args:
        loss_weight: w.
    """
    smallest = 97  # of which five scales leave a window of 7

    def __init__(self, *, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The weighted distance, a scalar.

        Args:
            x: Images, (N, C, H, W) in [0, 1].
            y: The same shape.

        Raises:
            OptionError: The images are too small for five scales.
        """
        side = min(x.shape[-2:])
        if side < self.smallest:
            raise OptionError(f'MS-SSIM needs images of at least {self.smallest} pixels a side, these are '
                              f'{x.shape[-2]}x{x.shape[-1]}. Take larger ones, in training by gt_size, '
                              'or use LPIPSLoss.')
        with full_precision(x.device):  # variances are small differences of squares
            return self.loss_weight * (1 - _ms_ssim(x.float(), y.float(), 11 if side > 160 else 7)).mean()


def _ms_ssim(x: Tensor, y: Tensor, window_size: int) -> Tensor:
    """MS-SSIM of each channel of each image, (N, C)."""
    window = gaussian_window(window_size, x)
    similarity = x.new_ones(())
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, 1):
        luminance, contrast = ssim_terms(x, y, window)
        term = contrast if scale < len(MS_SSIM_WEIGHTS) else luminance * contrast
        similarity = similarity * term.mean((2, 3)).clamp(min=1e-6)**weight
        x, y = (F.avg_pool2d(image, 2, ceil_mode=True) for image in (x, y))
    return similarity


def gaussian_window(size: int, like: Tensor) -> Tensor:
    """A normalised Gaussian of sigma 1.5, (size, ), with the type and device of `like`."""
    offsets = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    window = torch.exp(-offsets**2 / (2 * 1.5**2))
    return window / window.sum()


def ssim_terms(x: Tensor, y: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps of SSIM (Wang et al. 2004), each (N, C, H - size + 1, W - size + 1)."""

    def blur(image: Tensor) -> Tensor:
        channels = image.shape[1]
        for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
            image = F.conv2d(image, window.view(shape).expand(channels, *[-1] * 3), groups=channels)
        return image

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance, (2 * covariance + C2) / (var_x + var_y + C2)


TURN = math.radians(5)
SHIFT = 0.01


def augment_alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both images under one random geometric transform, drawn from torch's global generator.

    Two of horizontal flip, rotation by up to 5 degrees and translation by up to 1 % of the size are chosen per call;
    each is applied to an image with probability 1/2, with the same numbers for `x` and `y`, reflecting at the border.
    The choice is that of SD-GAN's first author's public code; bilinear sampling is ours.

    Args:
        x: Images, (N, C, H, W).
        y: The same shape.

    Returns:
        The transformed images, through which gradients flow.
    """
    count, _, height, width = x.shape
    chosen = torch.zeros(3).index_fill_(0, torch.randperm(3)[:2], 1)
    on = chosen * (torch.rand(count, 3) < 0.5)  # flip, rotation, translation of each image
    flip = 1 - 2 * on[:, 0]
    angle = on[:, 1] * TURN * (2 * torch.rand(count) - 1)
    shift = on[:, 2:] * 2 * SHIFT * (2 * torch.rand(count, 2) - 1)  # of a width of 2, as grids are counted
    cos, sin, aspect = torch.cos(angle), torch.sin(angle), height / width
    rows = [torch.stack([flip * cos, -flip * sin * aspect, shift[:, 0]], 1),
            torch.stack([sin / aspect, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(x, non_blocking=True), [count, 1, height, width], align_corners=False)
    moved = on.any(1).to(x.device, non_blocking=True).view(-1, 1, 1, 1)  # others are left exactly as they are
    sampled = (F.grid_sample(image, grid, padding_mode='reflection', align_corners=False) for image in (x, y))
    a, b = (torch.where(moved, new, old) for new, old in zip(sampled, (x, y), strict=True))
    return a, b
