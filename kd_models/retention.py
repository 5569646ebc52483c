"""Which checkpoints are kept: the last few, and the one that was best."""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

Kept = dict[int, float | None]  # iteration of a checkpoint -> its value of the metric that decides, if measured


def obsolete(kept: Mapping[int, float | None], last: int, better: str = 'higher') -> list[int]:
    """The iterations whose checkpoints may go: neither among the `last` newest nor the best, of equals the newest."""
    measured = {iteration: value for iteration, value in kept.items() if value is not None and not math.isnan(value)}
    sign = 1 if better == 'higher' else -1
    best = max(measured, key=lambda iteration: (sign * measured[iteration], iteration), default=None)
    return [iteration for iteration in sorted(kept)[:-last] if iteration != best]


def remove(experiment: str, iteration: int) -> None:
    """Deletes a checkpoint of an experiment, the state first: without it nobody takes the rest for one."""
    root = Path(experiment)
    patterns = (f'training_states/{iteration}.state', f'training_states/{iteration}_*.pth',
                f'models/net_*_{iteration}.pth')
    for path in [path for pattern in patterns for path in sorted(root.glob(pattern))]:
        path.unlink(missing_ok=True)
