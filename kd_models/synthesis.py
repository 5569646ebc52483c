"""Real-ESRGAN's LR images without waiting for a device: the degradation of `degradation: fast`, and its sharpening.

What is done to an image, and with which probability, is the same as in BasicSR's RealESRGANModel; the random numbers
are others, and the sharpening differs by rounding. What makes it fast:

* Unsharp masking blurs by two one-dimensional filters. BasicSR's 51x51 kernel is their product.
* All decisions and strengths are drawn on the CPU at first, and go to the device in one copy that nobody waits for.
* The levels of an image, which set the size of its shot noise, are counted without sorting.
"""
from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import torch
from basicsr.utils import DiffJPEG
from basicsr.utils.img_process_util import filter2D
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import rgb_to_grayscale

RADIUS = 25  # of the blur in unsharp masking
KERNEL = 21  # side of RealESRGANDataset's kernels
MODES = ('area', 'bilinear', 'bicubic')


class SeparableUSM(nn.Module):
    """Unsharp masking where an image differs from its blurred self: BasicSR's USMSharp, up to rounding.

    With B a Gaussian blur of 51 pixels, r = I - B(I), S = clip(I + r / 2) and M = B(|r| > 10 / 255):

        out = M S + (1 - M) I
    """

    def forward(self, images: Tensor) -> Tensor:
        """Sharpens images.

        Args:
            images: (N, C, H, W) in [0, 1], both sides above 25.

        Returns:
            The same shape and range.
        """
        residual = images - _blurred(images)
        mask = (residual.abs() * 255 > 10).to(images.dtype)
        return images.lerp((images + 0.5 * residual).clamp(0, 1), _blurred(mask))


def _blurred(images: Tensor) -> Tensor:
    rows, columns = (_blur_matrix(length, images.device) for length in images.shape[-2:])
    return rows.t() @ (images @ columns)


@lru_cache(maxsize=8)
def _blur_matrix(length: int, device: torch.device) -> Tensor:
    """(length, length): a row of an image times this is the blurred row, reflected at its ends."""
    taps = torch.from_numpy(cv2.getGaussianKernel(2 * RADIUS + 1, 0)).float().view(1, 1, -1)
    pixels = F.pad(torch.eye(length), (RADIUS, RADIUS), mode='reflect')  # each pixel alone
    return F.conv1d(pixels[:, None], taps)[:, 0].to(device, non_blocking=True)


@dataclass(frozen=True)
class _Order:
    """What is drawn for one of the two orders of the degradation.

    Attributes:
        scale: Of the resizing.
        mode: Of the resizing.
        gaussian: Whether the noise is Gaussian, or else shot noise.
        of_images: (3, N): whether the noise is grey, its strength, and the factor of JPEG's tables.
    """
    scale: float
    mode: str
    gaussian: bool
    of_images: Tensor

    @classmethod
    def draw(cls, opt: dict[str, Any], suffix: str, count: int) -> _Order:
        """Draws from the CPU's generators. The suffix is that of the keys, empty or `2`."""
        lowest, highest = opt[f'resize_range{suffix}']
        bounds = random.choices([(1, highest), (lowest, 1), (1, 1)], opt[f'resize_prob{suffix}'])[0]
        gaussian = random.random() < opt[f'gaussian_noise_prob{suffix}']
        strengths = opt[f'{"noise_range" if gaussian else "poisson_scale_range"}{suffix}']
        grey, strength, quality = torch.rand(3, count)
        grey = (grey < opt[f'gray_noise_prob{suffix}']).float()
        quality = _within(opt[f'jpeg_range{suffix}'], quality)
        factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
        return cls(random.uniform(*bounds), random.choice(MODES), gaussian,
                   torch.stack([grey, _within(strengths, strength), factor]))


def _within(bounds: tuple[float, float], share: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * share


class Synthesis:
    """Second-order degradation of whole batches (Wang et al., Real-ESRGAN, ICCVW 2021).

    Args:
        opt: Real-ESRGAN's keys, and `scale`.
        device: Where images are degraded.

    Attributes:
        smallest: The shortest side of images that blurring by reflection can be sure of.
    """

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        self.opt = opt
        self.device = device
        blurred = KERNEL // 2 + 1  # the shortest side, after the first resizing and at the end
        self.smallest = max(RADIUS + 1, blurred * opt['scale'], int(blurred / min(opt['resize_range'][0], 1)) + 1,
                            int(opt['scale'] / min(opt['resize_range2'][0], 1)) + 1)
        # a copy, since all DiffJPEG of a process share their tables, which would move along
        self._jpeg_codec = deepcopy(DiffJPEG(differentiable=False)).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor, kernels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The LR images of sharpened HR images.

        Args:
            images: (N, 3, H, W) in [0, 1], on the device.
            kernels: Of RealESRGANDataset: `kernel1`, `kernel2` and `sinc_kernel`, (N, 21, 21) each, on the device.

        Returns:
            (N, 3, H // scale, W // scale) in [0, 1], rounded to 8 bits.
        """
        opt, (height, width) = self.opt, images.shape[-2:]
        first, second = (_Order.draw(opt, suffix, len(images)) for suffix in ('', '2'))
        blurs_twice, ends_in_jpeg = random.random() < opt['second_blur_prob'], random.random() < 0.5
        last_mode = random.choice(MODES)
        of_images = torch.cat([first.of_images, second.of_images]).to(self.device, non_blocking=True)

        out = F.interpolate(_filtered(images, kernels[0]), scale_factor=first.scale, mode=first.mode)
        out = self._jpeg(_noisy(out, first.gaussian, *of_images[:2]), of_images[2])
        if blurs_twice:
            out = _filtered(out, kernels[1])
        middle = [int(side / opt['scale'] * second.scale) for side in (height, width)]
        out = F.interpolate(out, size=middle, mode=second.mode)
        out = _noisy(out, second.gaussian, *of_images[3:5])
        if not ends_in_jpeg:
            out = self._jpeg(out, of_images[5])
        out = F.interpolate(out, size=(height // opt['scale'], width // opt['scale']), mode=last_mode)
        out = _filtered(out, kernels[2])
        if ends_in_jpeg:
            out = self._jpeg(out, of_images[5])
        return (out.clamp(0, 1) * 255).round() / 255

    def _jpeg(self, images: Tensor, factor: Tensor) -> Tensor:
        """BasicSR's DiffJPEG, whose `forward` would read the factors back from the device one by one."""
        height, width = images.shape[-2:]
        padded = F.pad(images.clamp(0, 1), (0, -width % 16, 0, -height % 16))
        planes = self._jpeg_codec.compress(padded, factor=factor)
        decoded = self._jpeg_codec.decompress(*planes, *padded.shape[-2:], factor=factor)
        return decoded[..., :height, :width]


def _filtered(images: Tensor, kernels: Tensor) -> Tensor:
    return filter2D(images.contiguous(), kernels)  # JPEG's are not


def _noisy(images: Tensor, gaussian: bool, grey: Tensor, strength: Tensor) -> Tensor:
    """Adds noise to images (N, 3, H, W) in [0, 1]; where `grey` (N, ) is 1, the same to all channels.

    `strength` (N, ) is the standard deviation in levels of 255, or for shot noise a factor.
    """
    grey, strength = grey.bool().view(-1, 1, 1, 1), strength.view(-1, 1, 1, 1)
    noise = torch.randn_like(images) / 255 if gaussian else _shot_noise(images, grey)
    return (images + strength * torch.where(grey, noise[:, :1], noise)).clamp(0, 1)


def _shot_noise(images: Tensor, grey: Tensor) -> Tensor:
    """Poisson noise of images in as many levels as each has, rounded up to a power of two."""
    levels = (torch.where(grey, rgb_to_grayscale(images), images).clamp(0, 1) * 255).round()
    present = levels.new_zeros(len(levels), 256).scatter_(1, levels.flatten(1).long(), 1.)
    # a logarithm that is rounded up must not become the next whole number
    counts = torch.exp2((present.sum(1).log2() - 1e-3).ceil()).view(-1, 1, 1, 1)
    rates = levels / 255 * counts
    return (torch.poisson(rates) - rates) / counts
