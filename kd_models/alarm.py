"""An early warning of adversarial training that goes wrong, from numbers that are read only when the log is."""
from __future__ import annotations

import math

from torch import Tensor

from kd_models.stages import Stage

READINGS = 3          # successive readings of the log that must agree
SEPARABLE = 0.98      # accuracy of a discriminator that leaves the generator little to learn from
DRIFTED = 0.1         # difference of mean colours that a collapse begins with, 25 levels of 8 bits
SETTLED = 0.03        # difference that a trained generator stays below


class CollapseAlarm:
    """Watches for non-finite losses, the discriminator's accuracy, and the student's colours against the LR image's.

    It warns when a number turns bad and stays silent until it has been good again. It holds no state that training
    depends on, and none is saved.
    """

    def __init__(self) -> None:
        self._separable = 0  # successive readings with a discriminator that is too accurate
        self._settled = 0    # successive readings with the right colours, which an untrained generator has not yet
        self._non_finite: set[str] = set()

    def measure(self, stage: Stage, output: Tensor, lq: Tensor,
                verdict: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        """The accuracy and the drift of an iteration, as scalars on the device; only where a GAN trains the generator.

        Args:
            stage: The iteration's stage.
            output: The student's images in [0, 1], (N, C, sH, sW).
            lq: LR images in [0, 1], (N, C, H, W); of other inputs the colours are not compared.
            verdict: Logits of real and of generated images whose signs are the discriminator's opinion.
        """
        numbers: dict[str, Tensor] = {}
        if 'gan' not in stage.losses:  # a generator that is not judged cannot collapse
            return numbers
        if stage.train_d and verdict is not None:
            real, fake = verdict
            numbers['accuracy'] = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        if output.shape[1] == lq.shape[1]:
            numbers['drift'] = (output.mean((2, 3)) - lq.mean((2, 3))).abs().mean()
        return numbers

    def check(self, losses: dict[str, float], numbers: dict[str, float]) -> list[str]:
        """What to warn of.

        Args:
            losses: The logged losses.
            numbers: What `measure` measured, averaged over the processes.
        """
        found = [self._check_finite(losses), self._check_accuracy(numbers.get('accuracy')),
                 self._check_drift(numbers.get('drift'))]
        return [message for message in found if message]

    def _check_finite(self, losses: dict[str, float]) -> str | None:
        bad = {name for name, value in losses.items() if not math.isfinite(value)}
        new, self._non_finite = bad - self._non_finite, bad
        if not new:
            return None
        return (f'Not finite: {", ".join(sorted(new))}. Such updates are not made, and end the training if there '
                'are many in a row: lower lr (train.optim_g, train.optim_d) or a loss_weight.')

    def _check_accuracy(self, accuracy: float | None) -> str | None:
        self._separable = self._separable + 1 if accuracy is not None and accuracy > SEPARABLE else 0
        if self._separable != READINGS:
            return None
        return (f'The discriminator tells {accuracy:.1%} of real and generated apart, {READINGS} times in a row: the '
                'generator learns little from it. Try a narrower network_d, a lower train.optim_d.lr, '
                'train.r1_reg_weight, or a smaller train.gan_opt.loss_weight until it is settled.')

    def _check_drift(self, drift: float | None) -> str | None:
        if drift is None or not drift > DRIFTED:
            near = drift is not None and drift < SETTLED
            self._settled = self._settled + 1 if near or self._settled >= READINGS else 0
            return None
        was_settled, self._settled = self._settled >= READINGS, 0
        if not was_settled:
            return None
        return (f'The mean colours of the student and of its LR images differ by {drift:.3f}, {255 * drift:.0f} of 255 '
                'levels, which a collapse begins with. Try a smaller train.gan_opt.loss_weight, a larger '
                'train.pixel_opt.loss_weight, or a lower train.optim_g.lr.')
