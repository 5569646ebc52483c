"""Adv-KD: the states that a diffusion teacher passes through, learnt by the phases of a one-pass student.

The teacher goes from noise x_T = X_0 to an image X_S in S deterministic steps. Phase k of the student (K phases) is
taught by the state X_{j_k}, clamped and reduced to the phase's size, Y_k:

    L_S = sum_k  w_kd |s_k - Y_k|_1 + w_gan softplus(-D_k(s_k, c))
    L_D = sum_k  softplus(-D_k(Y_k, c)) + softplus(D_k(s_k, c)) + R1 or gradient penalty

    j_k = k for K = S + 1, otherwise round((k + 1) S / K)

with c the LR image, in the published form the noise too. Re-implemented from a description of the authors' public code
(arXiv 2405.20675); its use in super-resolution is ours (docs/methods/advkd.md).
"""
from __future__ import annotations

import zlib
from copy import deepcopy
from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from kd_models.advkd_options import LOSSES, complete_preset
from kd_models.phase_adversary import PhaseAdversary
from kd_models.phases import PHASE_FORWARDS, PhaseStep, states_that_teach, trajectory
from kd_models.stages import Stage
from kd_models.terms import TERMS, PhaseKDTerm
from kd_models.unconditional import OptionallyUnconditionalModel
from kd_utils.options import OptionError


@MODEL_REGISTRY.register()
class AdvKDModel(OptionallyUnconditionalModel):
    """Distils a `DiffusionUNet` into a `DenoisingPhaseNet` or, unconditionally, a `PhaseDecoder`.

    The heads of all phases but the last, which deployment has no use for, are in `aux`. All phases are trained together
    (`preset: practical`), or one after the other by stages with a `phase` (`preset: faithful`).
    """
    known_terms = {**TERMS, 'phase_kd': PhaseKDTerm}
    forwards = PHASE_FORWARDS
    requires = {'gan': ('teacher', )}  # what is real is the teacher's
    adversary_type = PhaseAdversary
    learns_from_latents = True
    option_keys = {'train.preset': 'practical|faithful', 'train.target': 'xt|x0', 'train.traj_reuse': 'size',
                   'train.gp_reg_weight': 'weight', 'train.weight_clip': 'weight'}

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """The preset: losses, penalties, discriminators and stages."""
        cls.refuse_unread(train_opt, LOSSES, ('gan_mode', ))
        complete_preset(cls.__name__, cls.option_keys['train.preset'], opt, train_opt)

    # ---------------------------------------------------------------- construction

    def init_training_settings(self) -> None:
        """The base's; which states teach is settled before anything is trained."""
        self.drawn: dict[str, Tensor] | None = None
        self.traj_reuse = self.opt['train'].get('traj_reuse', 1)
        self.target = self.opt['train'].get('target', 'xt')
        super().init_training_settings()
        net: Any = self.teachers['teacher'].net_g
        self.diffusion = net
        self.states = states_that_teach(len(self.net_g.sizes), self.diffusion.sampler.steps)
        if self.target == 'x0' and self.states[0] == 0:
            raise OptionError('`train.target: x0`: the first phase is taught by the noise X_0, which is no estimate of '
                              f'an image. Write `xt`, or `network_g.phases: {len(self.states) - 1}` or less.')
        for stage in self.stages:
            self._check_phase(stage.name, stage.phase, stage.losses)
        if self.net_d is not None:
            self._try_discriminators()

    def auxiliary(self) -> dict[str, nn.Module]:
        """The heads of all phases but the last."""
        return {'phase_heads': self.net_g.phase_heads().to(self.device)}

    def _check_phase(self, stage: str, phase: int | None, losses: tuple[str, ...]) -> None:
        count = len(self.states)
        if phase is not None and phase > count:
            raise OptionError(f'`train.stages`: `{stage}` has `phase: {phase}`, and there are {count} phases. '
                              f'Write {count} or less.')
        whole = [name for name in losses if name not in ('gan', 'phase_kd')]
        if phase is not None and phase < count and whole:
            raise OptionError(f'`train.stages`: `{stage}` ends at phase {phase}, which has no SR image for the loss '
                              f'`{whole[0]}`. Take it out of this stage, or write `phase: {count}`.')

    def _try_discriminators(self) -> None:
        """Calls each on two blank images, or one where batches have one, on a device that computes nothing."""
        count = min(self.opt['datasets']['train']['batch_size_per_gpu'], 2)
        gt, lq = (torch.zeros(count, *size[1:], device='meta') for size in (self.gt_size(), self.lq_size()))
        net = deepcopy(self.net_d).to('meta')
        for phase, size in enumerate(self.net_g.sizes):
            side = gt.shape[-1] * size // self.net_g.sizes[-1]
            try:
                net(gt.new_zeros(count, 3, side, side), lq=None if self.size else lq, noise=gt, phase=phase)
            except (RuntimeError, ValueError) as error:
                remedy = 'gt_size` larger' if count > 1 else 'batch_size_per_gpu` 2 or more'
                raise OptionError(f'`network_d`: the discriminator of phase {phase + 1} does not take {count} images '
                                  f'of {side}x{side} ({str(error).splitlines()[0]}). Make `datasets.train.{remedy}.'
                                  ) from None

    # ------------------------------------------------------------------------------------ the teacher's trajectories

    def draw(self, phases: int) -> dict[str, Tensor]:
        """This batch's noise and, for the first `phases` phases, states, by the teacher or from its cache."""
        cached = self.cached().get('teacher')
        if cached is not None:
            images = cached.to(self.device, non_blocking=True).unflatten(1, (-1, 3))  # as `cacheable` made them
            noise, states = images[:, 0], images[:, 1:]
        else:
            noise = self.lq.view(-1, 3, self.size, self.size) if self.size else torch.randn_like(self.gt)
            states = trajectory(self.diffusion, noise, self.diffusion.condition(self.lq), self.states[:phases],
                                self.target)
        gt = states[:, -1] / 2 + 0.5 if self.size else self.gt
        drawn = {'lq': self.lq, 'gt': gt, 'noise': noise, 'states': states}
        return drawn if self.sources is None else {**drawn, 'sources': self.sources}

    def cacheable(self, lq: Tensor, name: str = 'teacher') -> Tensor:
        """Noise and states of a whole LR image, (1, 3 (K + 1), sH, sW); the noise is a function of the image."""
        condition = self.diffusion.condition(lq)
        assert condition is not None
        generator = torch.Generator().manual_seed(zlib.crc32(lq.cpu().numpy().tobytes()) + self.diffusion.seed)
        noise = torch.randn(condition.shape, generator=generator).to(lq)
        states = trajectory(self.diffusion, noise, condition, self.states, self.target)
        return torch.cat((noise, states.flatten(1, 2)), 1)

    def cache_record(self, name: str = 'teacher') -> dict[str, Any]:
        """The teacher, its sampler and seed, which are options of its network, and which states are kept."""
        return {**super().cache_record(name), 'trajectory': {'states': self.states, 'target': self.target}}

    # ----------------------------------------------------------------------------------------------- one iteration

    def optimize_parameters(self, current_iter: int) -> None:
        """The base's iteration on a trajectory of the teacher, which `traj_reuse` iterations share."""
        phases = self.stages.at(current_iter).phase or len(self.states)
        drawn = self.drawn
        # a student that has just grown needs a longer one
        if drawn is None or (current_iter - 1) % self.traj_reuse == 0 or drawn['states'].shape[1] < phases:
            drawn = self.drawn = self.draw(phases)
        else:
            self.gt_usm = None  # of the batch that is left out
        self.lq, self.gt, self.sources = drawn['lq'], drawn['gt'], drawn.get('sources')
        super().optimize_parameters(current_iter)

    def step(self, iteration: int, stage: Stage) -> PhaseStep:
        """Also the trajectory, and what the discriminators see beside an image."""
        assert self.drawn is not None
        noise, newest = self.drawn['noise'], stage.phase
        # all phases or, while the student grows, the newest
        phases = range(len(self.states)) if newest is None else range(newest - 1, newest)
        return PhaseStep(iteration, stage, self.lq, {'gt': self.gt, **self.targets()}, unit=self.adapter.unit,
                         condition={'lq': None if self.size else self.lq, 'noise': noise}, sources=self.sources,
                         noise=noise, states=self.drawn['states'], phases=phases)

    # ---------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        """The trajectory that later iterations go on with."""
        return {'drawn': self.drawn} if self.traj_reuse > 1 else {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restores it."""
        drawn = state.get('drawn')
        self.drawn = {name: value.to(self.device) for name, value in drawn.items()} if drawn else None
