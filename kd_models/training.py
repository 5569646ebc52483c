"""What a training consists of: data without behaviour, made by `build.py`."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kd_models.adapters import Adapter
from kd_models.adversary import Adversary
from kd_models.degradation import Degradation
from kd_models.features import FeatureReader
from kd_models.retention import Kept
from kd_models.runtime import Runtime
from kd_models.stages import Stages
from kd_models.teacher import Teacher
from kd_utils.options import Options


@dataclass
class Training:
    """The parts of one training.

    Attributes:
        opt: All options, checked.
        runtime: How this process computes.
        adapter: How the generator is called.
        net_g: The student, an ordinary BasicSR network.
        lq_size: Shape of a training input of one, (1, C, H, W), or (1, D) for latents.
        gt_size: Shape of a training image of one, (1, C, sH, sW).
        latent_size: How many numbers a latent has; None for super-resolution.
        net_g_ema: The moving average of the student; None where `train.ema_decay` is 0.
        net_d: The student discriminator, one module even where it is several networks; None where there is none.
        teachers: The frozen networks by name: `teacher` for that of the section `teacher`, `teacher.NAME` for those of
            `teachers`.
        aux: Training-only modules that learn, such as feature adaptors, by the name of their loss. They are saved in
            the training state, never in the student.
        aux_d: The names of those that `optim_d` updates; `optim_g` updates the others.
        features: Which layers of which network the losses read.
        degradation: Makes LR images while training; None where the dataset brings them.
        usm_sharpener: Sharpens ground truths; None where no loss wants that.
        adversary: The discriminator's side; None where there is no discriminator to ask.
        stages: Which losses are on at which iteration.
        optimizers: [generator's] or [generator's, discriminator's].
        schedulers: Of the optimizers, BasicSR's.
        kept: The checkpoints that are on the disk, by iteration.
    """
    opt: Options
    runtime: Runtime
    adapter: Adapter
    net_g: Any
    lq_size: tuple[int, ...]
    gt_size: tuple[int, ...]
    latent_size: int | None = None
    net_g_ema: Any = None
    net_d: Any = None
    teachers: dict[str, Teacher] = field(default_factory=dict)
    aux: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    aux_d: set[str] = field(default_factory=set)
    features: FeatureReader = field(default_factory=FeatureReader)
    degradation: Degradation | None = None
    usm_sharpener: nn.Module | None = None
    adversary: Adversary = field(init=False)
    stages: Stages = field(init=False)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    kept: Kept = field(default_factory=dict)

    @property
    def trained(self) -> dict[str, nn.Module]:
        """Everything that an optimizer updates, by name."""
        nets = {'net_g': self.net_g, **{f'aux.{name}': aux for name, aux in self.aux.items()}}
        return {**nets, 'net_d': self.net_d} if self.trains_discriminator else nets

    @property
    def trains_discriminator(self) -> bool:
        """Whether there is an optimizer for it, in any of the stages."""
        return self.net_d is not None and bool(self.opt['train'].get('optim_d'))

    def aux_of(self, label: str) -> list[nn.Module]:
        """The training-only modules that `optim_g` or `optim_d` updates, by the label `g` or `d`."""
        return [aux for name, aux in self.aux.items() if (name in self.aux_d) == (label == 'd')]
