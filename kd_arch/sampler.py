"""DDIM sampling on a Hugging Face diffusers scheduler, with everything it passes through."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_utils.options import OptionError


@dataclass(frozen=True)
class Trajectory:
    """The way from noise to an image in S steps, or its beginning; tensors are (N, C, H, W).

    Attributes:
        states: X_0, the noise, to X_S, the image; S + 1 tensors.
        estimates: What each step took x_0 for, in [-1, 1]; S tensors, the last of which is X_S.
    """
    states: list[Tensor]
    estimates: list[Tensor]


class Sampler:
    """The deterministic sampler of DDIM (Song et al., ICLR 2021, eta = 0), in S steps of equal length.

        X_{j+1} = sqrt(abar_t') x0 + sqrt(1 - abar_t') eps,    t = T - 1 - j T/S,  t' = t - T/S,  abar_{-1} = 1

    with x0, clipped to [-1, 1], and eps from the network's prediction at (X_j, t). The first t is T - 1, where there is
    nothing but noise ("trailing" spacing; Lin et al., WACV 2024).

    Args:
        scheduler: A DDIMScheduler of diffusers with trailing spacing.
        steps: S.

    Raises:
        OptionError: S does not divide T; diffusers then steps to other times than it evaluates.
    """

    def __init__(self, scheduler: Any, steps: int) -> None:
        timesteps = scheduler.config.num_train_timesteps
        if not 0 < steps <= timesteps or timesteps % steps:
            fitting = [s for s in range(1, timesteps + 1) if timesteps % s == 0]
            nearest = min(fitting, key=lambda s: abs(s - steps))
            raise OptionError(f'`steps` is {steps}, which does not divide the {timesteps} `timesteps` of the diffusion '
                              f'model. Write {nearest}, or another divisor.')
        scheduler.set_timesteps(steps)
        self.scheduler = scheduler
        self.steps = steps

    @torch.no_grad()
    def __call__(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor,
                 last: int | None = None) -> Trajectory:
        """The trajectory that begins at `noise` (N, C, H, W); `predict` is called with (x_t, t).

        Args:
            predict: The network, one call for each step.
            noise: X_0.
            last: The number of the state to end with, S by default.
        """
        states, estimates = [noise], []
        for t in self.scheduler.timesteps[:last]:
            step = self.scheduler.step(predict(states[-1], t), t, states[-1])
            states.append(step.prev_sample)
            estimates.append(step.pred_original_sample)
        return Trajectory(states, estimates)
