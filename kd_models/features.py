"""Which feature maps are read in which pass: the union of what the losses that are on ask for."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from kd_models.step import Features
from kd_models.taps import Taps


class FeatureReader:
    """Reads the feature maps of a network from the same pass as its output, each once for all losses that want it.

    Networks go by name: `student` and the teachers' names for generators, the same with `.net_d` for discriminators.
    """

    def __init__(self) -> None:
        self._taps: dict[str, dict[str, Taps]] = {}  # network -> loss -> taps
        self._unions: dict[tuple[str, tuple[str, ...]], Taps | None] = {}

    def add(self, network: str, loss: str, taps: Taps) -> None:
        """Has `loss` read these layers of `network` from now on."""
        self._taps.setdefault(network, {})[loss] = taps
        self._unions.clear()

    def run(self, network: str, losses: Sequence[str], forward: Callable[[], Tensor]) -> tuple[Tensor, Features]:
        """The result of `forward`, a pass of `network`, and the maps by layer that any of `losses` reads."""
        taps = self.taps(network, losses)
        return taps.run(forward) if taps else (forward(), {})

    def taps(self, network: str, losses: Sequence[str]) -> Taps | None:
        """The layers of `network` that any of `losses` reads; None where there are none."""
        key = network, tuple(losses)
        if key not in self._unions:
            asked = [taps for loss, taps in self._taps.get(network, {}).items() if loss in losses]
            self._unions[key] = Taps.union(asked) if asked else None
        return self._unions[key]
