"""Which losses and optimizers are on at which iteration: a pure function of it, so nothing of it is saved."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from kd_utils.schema.stages import distils_discriminator, trains_discriminator


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: As in the YAML.
        start: Its first iteration; iterations count from 1.
        end: Its last iteration.
        losses: Names of the generator's losses, `<name>_opt` in the YAML.
        train_d: Whether the student discriminator is updated.
        distill_d: Whether the discriminator's feature losses are part of that update.
        weights: Extra factors of this stage on losses, 1 where absent.
        optimizer: `keep` the optimizers' moments from the stage before, or start `fresh`.
        ema: `keep` the EMA generator from the stage before, or start from the active one, `fresh`.
        adaptors: `keep` the feature adaptors from the stage before, or start `fresh` ones.
        discriminator: Whose adversarial gradient the generator gets, `student` or `teacher`.
        phase: A number for methods that grow a network; None for the whole network.
    """
    name: str
    start: int
    end: int
    losses: tuple[str, ...]
    train_d: bool = False
    distill_d: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    optimizer: str = 'keep'
    ema: str = 'keep'
    adaptors: str = 'keep'
    discriminator: str = 'student'
    phase: int | None = None

    def __str__(self) -> str:
        updated = [part for part, on in (('generator', bool(self.losses)), ('discriminator', self.train_d)) if on]
        judge = ", judged by the teacher's discriminator" if self.discriminator == 'teacher' else ''
        return (f'`{self.name}`, iterations {self.start:,}-{self.end:,}, updates {" and ".join(updated)}, '
                f'losses: {", ".join(self.losses) or "none of the generator"}{judge}')


class Stages(list[Stage]):
    """The stages in order.

    Args:
        train_opt: The `train` section, already checked. Without `stages` there is one, with every configured loss on.
        configured: Names of the generator's losses that have a `<name>_opt`.
        features: Those of them that compare feature maps.
    """

    def __init__(self, train_opt: dict[str, Any], configured: list[str], features: Collection[str] = ()) -> None:
        total = int(train_opt['total_iter'])
        options = train_opt.get('stages') or [{'name': 'train', 'iters': total, 'losses': configured}]
        super().__init__()
        start = 1
        for option in options:
            self.append(_stage(option, start, features))
            start = self[-1].end + 1

    def update_generator(self) -> bool:
        """Whether any of them does; otherwise the generator is as frozen as a teacher."""
        return any(stage.losses for stage in self)

    def plan(self) -> list[list[Any]]:
        """What a state remembers of the stages: where each begins, and what it does then."""
        return [[stage.name, stage.start, stage.optimizer, stage.ema, stage.adaptors, stage.phase] for stage in self]

    def at(self, iteration: int) -> Stage:
        """The stage of an iteration; the last one for iterations beyond the end (an extended run)."""
        return next((stage for stage in self if iteration <= stage.end), self[-1])


def _stage(option: dict[str, Any], start: int, features: Collection[str]) -> Stage:
    decided = {'train_d': trains_discriminator(option), 'distill_d': distils_discriminator(option, features)}
    option = {**option, **decided}
    iters, losses = int(option.pop('iters')), tuple(option.pop('losses', ()))
    return Stage(start=start, end=start + iters - 1, losses=losses, **option)
