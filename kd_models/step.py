"""One iteration's images and features: what forwards write and losses read."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kd_models.stages import Stage

Features = dict[str, Tensor]


def _as_it_is(images: Tensor) -> Tensor:
    return images


@dataclass
class Step:
    """One iteration. Images are (N, C, H, W) in the adapter's `value_range`, [0, 1] for most families of networks.

    Attributes:
        iteration: Its number, from 1.
        stage: The stage that it belongs to.
        lq: LR images, (N, C, H, W).
        targets: Loss name -> the ground truth it compares with, (N, C, sH, sW); `gt` for the plain one.
        inputs: What else student, EMA and teachers are called with: the adapter's `inputs`.
        condition: What else the discriminators are called with.
        unit: Turns images of the training into images in [0, 1].
        sources: One number per image, equal for crops of one photograph, (N, ); None where that is not known.
        cached: What teachers' caches have of this batch, images (N, C, sH, sW) and feature maps, by `item_key`.
        losses: The generator's losses that are on in this iteration, in the order of their sum.
        wanted: What they read: `student`, `ema`, teachers by name, and others of the table of forwards.
        output: The student's SR images, with a graph where the generator is updated.
        ema: The EMA generator's SR images.
        teachers: Teacher -> its SR images.
        features: Network (`student` or the teacher's name) -> layer -> feature map.
        pairs: What the student's pass predicts besides its image, each with what is wanted, by number.
        upcycled: The same for the second input of the iteration, where there is one.
        verdict: The discriminator's logits of real and of generated images, shifted so that their signs are its
            opinion; None until it is updated.
    """
    iteration: int
    stage: Stage
    lq: Tensor
    targets: dict[str, Tensor]
    inputs: dict[str, Any] = field(default_factory=dict)
    condition: dict[str, Any] = field(default_factory=dict)
    unit: Callable[[Tensor], Tensor] = _as_it_is
    sources: Tensor | None = None
    cached: dict[str, Tensor] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    wanted: frozenset[str] = frozenset()
    output: Tensor = field(init=False, repr=False)
    ema: Tensor = field(init=False, repr=False)
    teachers: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)
    pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    upcycled: Step | None = None
    verdict: tuple[Tensor, Tensor] | None = None

    def target(self, loss: str) -> Tensor:
        """The ground truth for a loss."""
        return self.targets.get(loss, self.targets['gt'])
