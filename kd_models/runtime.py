"""The one seam for devices and speed: backward, optimizer steps and the exchange of gradients between processes.

Networks are not wrapped in DDP or DataParallel. Every process starts from the same tensors and sums the gradients of
what an optimizer is about to step, flattened, in one message. It does not matter which losses, stages, penalties or
randomly skipped branches made these gradients. Precision, memory format and compilation belong here too.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from kd_arch.gcfsr_arch import filters_as_buffers
from kd_models.guard import Buffers, Guard

# Optimizers whose fused kernel updates nothing where a flag on the device says so. That of SGD leaves its momentum
# undefined then.
FUSED = ('Adam', 'AdamW')


class Runtime:
    """How one training process computes.

    Args:
        device: Where the networks are.
        distributed: Whether gradients are averaged with other processes.
        train_opt: The `train` section: `grad_clip`, the largest norm of the gradient of all that one optimizer updates,
            and `max_bad_steps`, see `Guard`.
    """

    def __init__(self, device: torch.device, distributed: bool = False,
                 train_opt: dict[str, Any] | None = None) -> None:
        train_opt = train_opt or {}
        self.device = device
        self.distributed = distributed
        self.grad_clip: float | None = train_opt.get('grad_clip')
        self.guard = Guard(train_opt.get('max_bad_steps', 10))
        self._finite = self._true()  # whether all losses of the update that is being prepared are finite
        # whether all updates after the generator's were made: where the discriminator's was not, the generator's
        # buffers return to what they were before the images for it
        self._later_updates_made = self._true()
        self._updates: dict[str, tuple[Optimizer, Buffers]] = {}
        # which gradients there are is agreed on between the CPUs, so that nobody waits for a GPU
        self._cpu_group: Any = dist.new_group(backend='gloo') if distributed and dist.get_backend() != 'gloo' else None

    def _true(self) -> Tensor:
        """Made on the device: sending it there, as `torch.tensor` does, would wait for a GPU in every iteration."""
        return torch.ones((), dtype=torch.bool, device=self.device)

    def place(self, net: nn.Module) -> nn.Module:
        """Moves a network to the device, with StyleGAN2's filters."""
        filters_as_buffers(net)
        return net.to(self.device)

    def optimizer_options(self, name: str) -> dict[str, Any]:
        """What an optimizer of `torch.optim` is given besides the options of the YAML file."""
        return {'fused': True} if self.device.type == 'cuda' and name in FUSED else {}

    def protect(self, network: str, optimizer: Optimizer, *nets: nn.Module) -> None:
        """Lets updates by `optimizer` that are not finite leave `nets` as they were, and be counted for `network`.

        The first one is the generator's, whose update passes through all of these networks.
        """
        self._updates[network] = optimizer, Buffers(nets)

    def synchronize(self, *nets: nn.Module) -> None:
        """Gives every process the parameters and buffers of rank 0; processes are seeded differently."""
        if not self.distributed:
            return
        with torch.no_grad():
            for net in nets:
                for tensor in (*net.parameters(), *net.buffers()):
                    dist.broadcast(tensor, src=0)

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Around all forwards and updates of one iteration."""
        for _, buffers in self._updates.values():
            buffers.keep()
        self._later_updates_made = self._true()
        yield
        for _, buffers in list(self._updates.values())[:1]:
            buffers.settle(self._later_updates_made)

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to the parameters'."""
        self._finite = self._finite & loss.detach().isfinite().all()
        loss.backward()

    def step(self, optimizer: Optimizer) -> None:
        """Averages the gradients over the processes and updates the optimizer's parameters.

        Where a loss or a gradient of this update is not finite, on any process, nothing is updated on all of them:
        parameters, the optimizer's state and buffers are as before the forwards.
        """
        finite, self._finite = self._finite, self._true()
        params = [p for group in optimizer.param_groups for p in group['params']]
        if self.distributed:
            finite = self._average_gradients(params, finite)
        gradients = [p.grad for p in params if p.grad is not None]
        if gradients:
            finite = finite & torch.stack(torch._foreach_norm(gradients, float('inf'))).isfinite().all()
        if self.grad_clip:
            nn.utils.clip_grad_norm_(params, self.grad_clip)
        self._apply(optimizer, finite)
        self._settle(optimizer, finite)

    def _apply(self, optimizer: Optimizer, finite: Tensor) -> None:
        """The step, where `finite` is true; a fused optimizer decides that on the device."""
        if getattr(optimizer, '_step_supports_amp_scaling', False):
            # the interface of PyTorch's GradScaler
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        elif finite:
            optimizer.step()

    def _settle(self, optimizer: Optimizer, finite: Tensor) -> None:
        """Buffers of the generator must not be touched between its forward and its backward."""
        generator = next(iter(self._updates), None)
        of_generator = generator is not None and self._updates[generator][0] is optimizer
        for network, (other, buffers) in self._updates.items():
            if other is optimizer:
                self.guard.count(network, finite)
            if other is optimizer or of_generator:
                buffers.settle(finite)
        self._later_updates_made = torch.ones_like(finite) if of_generator else self._later_updates_made & finite

    def _average_gradients(self, params: list[Tensor], finite: Tensor) -> Tensor:
        """Whether the update is finite on all processes, which is sent along with the gradients."""
        present = torch.tensor([p.grad is not None for p in params], dtype=torch.uint8)
        dist.all_reduce(present, dist.ReduceOp.MAX, group=self._cpu_group)
        params = [p for p, anywhere in zip(params, present.tolist(), strict=True) if anywhere]
        for p in params:  # a process whose branch was skipped adds nothing, but takes part
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad.reshape(-1) for p in params]  # type: ignore[union-attr]
        flag = (~finite).to(gradients[0].dtype if gradients else torch.float32).reshape(1)
        flat = self.mean(torch.cat([*gradients, flag]))
        *averages, bad = flat.split([p.numel() for p in params] + [1])
        for p, average in zip(params, averages, strict=True):
            p.grad.copy_(average.view(p.shape))  # type: ignore[union-attr]
        return bad[0] == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, in place."""
        if self.distributed:
            dist.all_reduce(values)
            values /= dist.get_world_size()
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; each may be anything that can be pickled."""
        if not self.distributed:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._cpu_group)
        return values
