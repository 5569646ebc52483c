"""The one seam for devices and speed: backward, optimizer steps and the exchange of gradients between processes.

Networks are not wrapped in DDP or DataParallel. Every process starts from the same tensors and sums the gradients of
what an optimizer is about to step, flattened, in one message. It does not matter which losses, stages, penalties or
randomly skipped branches made these gradients. Precision, memory format and compilation belong here too.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer


class Runtime:
    """How one training process computes.

    Args:
        device: Where the networks are.
        distributed: Whether gradients are averaged with other processes.
    """

    def __init__(self, device: torch.device, distributed: bool = False) -> None:
        self.device = device
        self.distributed = distributed
        # which gradients there are is agreed on between the CPUs, so that nobody waits for a GPU
        self._cpu_group: Any = dist.new_group(backend='gloo') if distributed and dist.get_backend() != 'gloo' else None

    def place(self, net: nn.Module) -> nn.Module:
        """Moves a network to the device."""
        return net.to(self.device)

    def synchronize(self, *nets: nn.Module) -> None:
        """Gives every process the parameters and buffers of rank 0; processes are seeded differently."""
        if not self.distributed:
            return
        with torch.no_grad():
            for net in nets:
                for tensor in (*net.parameters(), *net.buffers()):
                    dist.broadcast(tensor, src=0)

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to the parameters'."""
        loss.backward()

    def step(self, optimizer: Optimizer) -> None:
        """Averages the gradients over the processes and updates the optimizer's parameters."""
        if self.distributed:
            self._average_gradients(p for group in optimizer.param_groups for p in group['params'])
        optimizer.step()

    def _average_gradients(self, params: Iterable[Tensor]) -> None:
        params = list(params)
        present = torch.tensor([p.grad is not None for p in params], dtype=torch.uint8)
        dist.all_reduce(present, dist.ReduceOp.MAX, group=self._cpu_group)
        params = [p for p, anywhere in zip(params, present.tolist(), strict=True) if anywhere]
        if not params:
            return
        for p in params:  # a process whose branch was skipped adds nothing, but takes part
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        flat = self.mean(torch.cat([p.grad.reshape(-1) for p in params]))  # type: ignore[union-attr]
        for p, average in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad.copy_(average.view(p.shape))  # type: ignore[union-attr]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, in place."""
        if self.distributed:
            dist.all_reduce(values)
            values /= dist.get_world_size()
        return values
