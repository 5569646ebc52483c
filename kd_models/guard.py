"""Updates that are not made because a loss or a gradient is not finite: what they return to, and how many there were.

Everything stays on the device. It is read with the log, so that no iteration waits for it.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class TrainingError(RuntimeError):
    """A training that cannot go on; the text says why and what to change. Its state has been saved."""


class Buffers:
    """The buffers of networks as they were before the forwards of an update that may be skipped."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        self.buffers = [buffer for net in nets for buffer in net.buffers()]
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Remembers them as they are."""
        if self.buffers:
            torch._foreach_copy_(self.kept, self.buffers)

    @torch.no_grad()
    def settle(self, finite: Tensor) -> None:
        """Puts them back where `finite` is false, and remembers them as they then are."""
        for kept, buffer in zip(self.kept, self.buffers, strict=True):
            buffer.copy_(torch.where(finite, buffer, kept))
        self.keep()


class Guard:
    """Counts the skipped updates of each network, and which losses were not finite.

    Args:
        most: `train.max_bad_steps`, the number of skipped updates of one network in a row that ends the training.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_a_row: dict[str, Tensor] = {}
        self._counts: OrderedDict[str, Tensor] = OrderedDict()

    def count(self, network: str, finite: Tensor) -> None:
        """Takes note of an update of `network`, made where `finite` is true."""
        bad = (~finite).float()
        row = self.in_a_row[network] = (self.in_a_row.get(network, torch.zeros_like(bad)) + 1) * bad
        self._add(f'skipped {network}', bad)
        worst = f'in a row {network}'
        self._counts[worst] = torch.maximum(self._counts.get(worst, row), row)

    def watch(self, losses: Mapping[str, Tensor]) -> None:
        """Takes note of the losses that are not finite."""
        if losses:
            bad = (~torch.stack([value.detach().float() for value in losses.values()]).isfinite()).float()
            for name, count in zip(losses, bad, strict=True):
                self._add(f'bad {name}', count)

    def _add(self, name: str, count: Tensor) -> None:
        self._counts[name] = self._counts[name] + count if name in self._counts else count

    def take(self) -> dict[str, Tensor]:
        """The counts since the last time, to be read together with the log."""
        counts, self._counts = dict(self._counts), OrderedDict()
        return counts

    def check(self, counts: Mapping[str, float]) -> list[str]:
        """What to warn of, given the numbers that `take` had.

        Raises:
            TrainingError: A network was not updated `most` times in a row.
        """
        losses = [name.removeprefix('bad ') for name, count in counts.items() if name.startswith('bad ') and count]
        cause = f'{", ".join(losses)} not finite' if losses else 'all losses finite, but a gradient was not'
        warnings = []
        for name, count in counts.items():
            if not (name.startswith('skipped ') and count):
                continue
            network = name.removeprefix('skipped ')
            row = int(counts[f'in a row {network}'])
            if row >= self.most:
                raise TrainingError(f'{network} could not be updated {row} times in a row: {cause}. Look at the data '
                                    'and the log before it, lower the learning rate or the weight of that loss, or set '
                                    '`train.grad_clip`, and go on from an older state.')
            warnings.append(f'{round(count)} updates of {network} were skipped since the last log: {cause}. The run '
                            f'stops after {self.most} in a row (`train.max_bad_steps`).')
        return warnings
