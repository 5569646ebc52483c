"""The moving average of a generator."""
from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """EMA of parameters, as in BasicSR, and a copy of the buffers, which BasicSR leaves at their initial values."""
    of_ema: list[Tensor] = list(ema.parameters())
    of_net: list[Tensor] = list(net.parameters())
    torch._foreach_mul_(of_ema, decay)
    torch._foreach_add_(of_ema, of_net, alpha=1 - decay)
    for kept, buffer in zip(ema.buffers(), net.buffers(), strict=True):
        kept.copy_(buffer)
