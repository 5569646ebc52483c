"""The two operations of StyleGAN2 in plain PyTorch, in place of BasicSR's compiled extension.

BasicSR's `fused_act` and `upfirdn2d` need CUDA kernels under a non-commercial licence; without them its StyleGAN2
networks do not run. These do the same on every device, and can be differentiated any number of times (R1, path length).
"""
from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def fused_leaky_relu(input: Tensor, bias: Tensor | None, negative_slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
    """`scale * leaky_relu(input + bias)` (Karras et al. 2020, StyleGAN2); sqrt 2 keeps the variance.

    Args:
        input: (N, C, ...).
        bias: (C), added along the second dimension; None for none.
        negative_slope: Slope below zero.
        scale: The gain.

    Returns:
        Tensor: As `input`, in its precision.
    """
    if bias is not None:
        input = input + bias.to(input.dtype).view(1, -1, *[1] * (input.dim() - 2))
    return F.leaky_relu(input, negative_slope) * scale


def upfirdn2d(input: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Upsamples with zeros, pads, filters and downsamples every channel (Karras et al. 2020, StyleGAN2).

    Each pixel is followed by `up - 1` zeros, also the last; `kernel` is convolved with that (it is flipped, other than
    in `conv2d`), and every `down`-th pixel is kept, from the first on.

    Args:
        input: (N, C, H, W).
        kernel: (K_h, K_w).
        up: Factor of upsampling.
        down: Factor of downsampling.
        pad: Zeros before and after, in both directions; a negative number crops.

    Returns:
        Tensor: (N, C, H', W') with H' = (H * up + pad[0] + pad[1] - K_h) // down + 1.
    """
    n, channels, height, width = input.shape
    if up > 1:
        input = F.pad(input.reshape(n, channels, height, 1, width, 1), (0, up - 1, 0, 0, 0, up - 1))
        input = input.reshape(n, channels, height * up, width * up)
    input = F.pad(input, (pad[0], pad[1], pad[0], pad[1]))
    weight = kernel.to(input).flip(0, 1).expand(channels, 1, -1, -1)
    return F.conv2d(input, weight, stride=down, groups=channels)


_REPLACED: dict[str, Callable] = {
    'basicsr.ops.fused_act.fused_act': fused_leaky_relu,  # its class FusedLeakyReLU calls this function
    'basicsr.ops.upfirdn2d.upfirdn2d': upfirdn2d,
}


def install() -> None:
    """Puts these operations in place of BasicSR's wherever they are, also where the extension is compiled.

    One implementation everywhere gives one result everywhere, and a licence that allows it. Modules that import the
    names from BasicSR later (GFPGAN's networks) get them too; no file of site-packages is touched.
    """
    for home, ours in _REPLACED.items():
        theirs = getattr(importlib.import_module(home), ours.__name__)
        for module in list(sys.modules.values()):
            names = getattr(module, '__dict__', {})
            if names.get(ours.__name__) is theirs:
                names[ours.__name__] = ours
