"""The forwards of one iteration: a table of who is called, in the order in which they run, and what each writes."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kd_data.teacher_cache import IMAGE, item_key
from kd_models.step import Step
from kd_models.training import Training

# (what is trained, the iteration, the network's name): one pass, which writes its results into the step
Forward = Callable[[Training, Step, str], None]


def student(training: Training, step: Step, name: str) -> None:
    """`step.output`, and the feature maps that the losses of this iteration read."""
    def generate() -> Tensor:
        return training.adapter(training.net_g, step.lq, **step.inputs)

    step.output, step.features['student'] = training.features.run('student', step.losses, generate)


@torch.no_grad()
def ema(training: Training, step: Step, name: str) -> None:
    """`step.ema`."""
    step.ema = training.adapter(training.net_g_ema, step.lq, **step.inputs)


def teacher(training: Training, step: Step, name: str) -> None:
    """The image in `step.teachers`, from the teacher's cache where it has one, and its feature maps."""
    taps = training.features.taps(name, step.losses)
    if name in step.cached:
        kept = {layer: step.cached[item_key(name, layer)].to(training.runtime.device, non_blocking=True)
                for layer in (IMAGE, *(taps.paths if taps else ()))}
        step.teachers[name], step.features[name] = kept.pop(IMAGE), kept
        return
    step.teachers[name], step.features[name] = training.teachers[name].generate(step.lq, taps, **step.inputs)


FORWARDS: dict[str, Forward] = {'student': student, 'ema': ema, 'teacher': teacher}


def run(forwards: Mapping[str, Forward], training: Training, step: Step) -> None:
    """Runs the forwards that `step.wanted` names in the order of the table, not in that of the losses in the file."""
    for kind, forward in forwards.items():
        for name in training.teachers if kind == 'teacher' else (kind, ):
            if name in step.wanted:
                forward(training, step, name)
