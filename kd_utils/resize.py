"""MATLAB's bicubic `imresize` for batches on any device."""
from __future__ import annotations

import math

import torch
from torch import Tensor


def bicubic(images: Tensor, size: int) -> Tensor:
    """Enlarges or reduces square images as MATLAB's `imresize` does, which most super-resolution data is made with.

    BasicSR's `imresize` gives the same values, but runs row by row on one image of a CPU. Here both directions are a
    product with a (size, H) matrix, 3 * size * H * (size + H) multiply-adds in all. PyTorch's own bicubic has another
    kernel (a = -0.75) and, with antialiasing, other borders.

    Args:
        images: (N, C, H, H), floating point.
        size: Output height and width.

    Returns:
        Tensor: (N, C, size, size), neither clipped nor rounded.
    """
    matrix = _matrix(images.shape[-1], size).to(images)
    return matrix @ images @ matrix.T


def _matrix(length: int, size: int) -> Tensor:
    """(size, length): the weights of each input pixel in each output pixel; the borders repeat in mirror image."""
    widen = max(length / size, 1.)  # reducing takes a wider kernel, against aliasing
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5
    reach = math.ceil(2 * widen)
    sources = centres.floor().long()[:, None] + torch.arange(-reach, reach + 1)  # (size, pixels)
    weights = _cubic((centres[:, None] - sources) / widen)
    weights = weights / weights.sum(1, keepdim=True)
    sources = sources % (2 * length)
    sources = torch.minimum(sources, 2 * length - 1 - sources)
    return torch.zeros(size, length, dtype=weights.dtype).scatter_add(1, sources, weights)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 (R. Keys 1981)."""
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0.))
