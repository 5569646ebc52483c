"""Adv-KD's forwards: the phases of a student, and the states of its diffusion teacher that teach them.

Sizes, states and the equations are those of `advkd_model.py`.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kd_arch.diffusion_arch import DiffusionUNet
from kd_models.step import Step
from kd_models.training import Training
from kd_utils.options import OptionError
from kd_utils.resize import bicubic


def states_that_teach(phases: int, steps: int) -> list[int]:
    """j_k: which of the states X_0 to X_S teaches which phase.

    Raises:
        OptionError: There are fewer states than phases.
    """
    if phases > steps + 1:
        raise OptionError(f'`network_g` has {phases} phases, and the teacher passes through {steps + 1} states only. '
                          f'Write `phases: {steps + 1}` or less, or `steps: {phases - 1}` or more for the teacher.')
    return list(range(phases)) if phases == steps + 1 else [round((k + 1) * steps / phases) for k in range(phases)]


@torch.no_grad()
def trajectory(diffusion: DiffusionUNet, noise: Tensor, condition: Tensor | None, states: list[int],
               target: str) -> Tensor:
    """What phases are to learn, in full size and [-1, 1], (N, K, 3, H, W).

    Args:
        diffusion: The teacher.
        noise: x_T, (N, 3, H, W).
        condition: The enlarged LR image, (N, 3, H, W); None where there is none.
        states: j_k of the K phases.
        target: `xt` for the states themselves, `x0` for the images that the teacher expects at them.
    """
    way = diffusion.trajectory(noise, condition, states[-1])
    passed = way.states if target == 'xt' else [noise, *way.estimates]
    return torch.stack([passed[j] for j in states], 1).clamp(-1, 1)


@dataclass
class PhaseStep(Step):
    """An iteration on a trajectory of the teacher.

    Attributes:
        noise: x_T, (N, 3, H, W).
        states: What the first phases are to learn, (N, K, 3, H, W) in [-1, 1].
        phases: The phases that are trained, from 0.
    """
    noise: Tensor = field(kw_only=True)
    states: Tensor = field(kw_only=True)
    phases: range = field(kw_only=True)


def wanted(states: Tensor, phase: int, sizes: list[int]) -> Tensor:
    """Y_k: the state of a phase, in the phase's size.

    Args:
        states: (N, K, 3, H, W).
        phase: k, from 0.
        sizes: Sides of the phases' images, as multiples of one unit.
    """
    state = states[:, phase]
    if sizes[phase] == sizes[-1]:
        return state
    height, width = (side * sizes[phase] // sizes[-1] for side in state.shape[-2:])
    return bicubic(state, (height, width))


def _diffusion(training: Training) -> Any:
    return training.teachers['teacher'].net_g


def student(training: Training, step: PhaseStep, name: str) -> None:
    """The images of the phases in the teacher's terms, each with its Y_k; blocks after the last one are not run."""
    net, last = training.net_g, step.phases[-1]
    maps = net.features(net.enter(step.lq, step.noise), last)
    heads = [*training.aux['phase_heads'].children(), net.head]  # type: ignore[union-attr]
    images = {k: heads[k](maps[k]) for k in step.phases}
    if last == len(heads) - 1:
        step.output = net.finish(images[last], step.lq)
        images[last] = _diffusion(training).encode(step.output, _diffusion(training).condition(step.lq))
    else:
        step.output = images[last] / 2 + 0.5
    step.pairs = {k: (image, wanted(step.states, k, net.sizes)) for k, image in images.items()}


@torch.no_grad()
def ema(training: Training, step: PhaseStep, name: str) -> None:
    """The EMA's image from the noise that the student has."""
    step.ema = training.net_g_ema(step.lq, step.noise)


def teacher(training: Training, step: PhaseStep, name: str) -> None:
    """The end of the trajectory that is there already."""
    diffusion = _diffusion(training)
    step.teachers[name] = diffusion.decode(step.states[:, -1], diffusion.condition(step.lq))


PHASE_FORWARDS: dict[str, Any] = {'student': student, 'ema': ema, 'teacher': teacher}


