"""What stays in fp32 where a training computes in half precision."""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast, for products and sums that half precision would spoil. Cast what enters it.

    Args:
        device: Of the tensors. The meta device has no autocast.
    """
    return nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)
