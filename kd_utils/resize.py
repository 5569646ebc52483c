"""MATLAB's bicubic `imresize` for batches on any device."""
from __future__ import annotations

import torch
from basicsr.utils.matlab_functions import calculate_weights_indices
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
    """(size, length): the weights of MATLAB's bicubic (a = -0.5), with borders that repeat in mirror image."""
    weights, indices, before, _ = calculate_weights_indices(length, size, size / length, 'cubic', 4, True)
    sources = (indices.long() - before) % (2 * length)
    sources = torch.minimum(sources, 2 * length - 1 - sources)
    return torch.zeros(size, length).scatter_add_(1, sources, weights)
