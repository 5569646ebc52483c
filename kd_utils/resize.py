"""MATLAB's bicubic `imresize` for batches on any device, and padding."""
from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def bicubic(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Enlarges or reduces images as MATLAB's `imresize` does, which most super-resolution data is made with.

    BasicSR's `imresize` gives the same values, but runs row by row on one image of a CPU. Here each direction is a
    product with a matrix, for squares 3 * size * H * (size + H) multiply-adds in all. PyTorch's own bicubic has another
    kernel (a = -0.75) and, with antialiasing, other borders.

    Args:
        images: (N, C, H, W), floating point.
        size: Output height and width, one number for both.

    Returns:
        Tensor: (N, C, *size), neither clipped nor rounded.
    """
    height, width = (size, size) if isinstance(size, int) else size
    of_images = images.dtype, images.device
    rows, columns = _matrix(images.shape[-2], height, *of_images), _matrix(images.shape[-1], width, *of_images)
    return rows @ images @ columns.T


def as_square(maps: Tensor) -> Tensor:
    """Tokens (N, C, L, 1) of a square image as maps (N, C, side, side); other maps (N, C, H, W) as they are."""
    side = math.isqrt(maps.shape[-2])
    is_square = maps.shape[-1] == 1 and side * side == maps.shape[-2]
    return maps.squeeze(-1).unflatten(-1, (side, side)) if is_square else maps


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images (N, C, H, W) continued to the right and below until `multiple` divides their sides, in mirror image."""
    height, width = images.shape[-2:]
    pad_h, pad_w = -height % multiple, -width % multiple
    if not (pad_h or pad_w):
        return images
    mode = 'reflect' if pad_h < height and pad_w < width else 'replicate'  # reflection needs the pixels to reflect
    return F.pad(images, (0, pad_w, 0, pad_h), mode)


@lru_cache(maxsize=32)  # a training has few sizes, and a GPU would wait for each copy
@torch.inference_mode(False)  # tensors made in it could never be part of a graph
def _matrix(length: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, length): the weights of each input pixel in each output pixel; the borders repeat in mirror image."""
    widen = max(length / size, 1.)  # reducing takes a wider kernel, against aliasing
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5
    reach = math.ceil(2 * widen)
    sources = centres.floor().long()[:, None] + torch.arange(-reach, reach + 1)  # (size, pixels)
    weights = _cubic((centres[:, None] - sources) / widen)
    weights = weights / weights.sum(1, keepdim=True)
    sources = sources % (2 * length)
    sources = torch.minimum(sources, 2 * length - 1 - sources)
    return torch.zeros(size, length, dtype=weights.dtype).scatter_add(1, sources, weights).to(device, dtype)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 (R. Keys 1981)."""
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0.))
