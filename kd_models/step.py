"""One iteration's images and features: every forward that a loss of the stage asked for, once, in one fixed order."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Features = dict[str, Tensor]


@dataclass
class Step:
    """What the losses of one iteration read. Images are (N, C, H, W) in the adapter's `value_range`, [0, 1] for most.

    Attributes:
        lq: LR images, (N, C, H, W).
        targets: Loss name -> the ground truth it compares with, (N, C, sH, sW); `gt` for the plain one.
        inputs: What else student, EMA and teacher are called with: the adapter's `inputs`.
        output: The student's SR images, with a graph where the generator is updated.
        teacher: The teacher's SR images.
        ema: The EMA generator's SR images.
        student_features: The student's feature maps by its layer.
        teacher_features: The teacher's feature maps by its layer.
        pairs: What the student's pass predicts besides its image, each with what is wanted, by number.
    """
    lq: Tensor
    targets: dict[str, Tensor]
    inputs: dict[str, Any] = field(default_factory=dict)
    output: Tensor = field(init=False)
    teacher: Tensor = field(init=False)
    ema: Tensor = field(init=False)
    student_features: Features = field(default_factory=dict)
    teacher_features: Features = field(default_factory=dict)
    pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def target(self, loss: str) -> Tensor:
        """The ground truth for a loss."""
        return self.targets.get(loss, self.targets['gt'])

    def run(self, needs: set[str], forwards: dict[str, Callable[[Step], None]]) -> None:
        """Runs the needed forwards in the order of `forwards`, whatever order the losses are written in."""
        for name, forward in forwards.items():
            if name in needs:
                forward(self)
