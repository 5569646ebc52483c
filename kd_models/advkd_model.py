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
from torch import Tensor

from kd_arch.denoising_phase_arch import PhaseChain, PhaseDiscriminators
from kd_arch.diffusion_arch import DiffusionUNet
from kd_models.phase_adversary import PhaseAdversary
from kd_models.step import Step
from kd_models.terms import TERMS, PhaseKDTerm, Term
from kd_models.unconditional import OptionallyUnconditionalModel
from kd_utils.options import OptionError
from kd_utils.resize import bicubic
from kd_utils.rng import own_random_numbers
from kd_utils.schema import arch_of, get, is_another, require

# What `train.preset` writes where the YAML is silent.
PRESETS: dict[str, dict[str, Any]] = {
    'practical': {'phase_kd_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
                  'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 0.02}},
    'faithful': {'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 1.0},
                 'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.5, 0.999]}},
}
# The same for discriminators, with `gan_opt`.
PENALTIES: dict[str, dict[str, Any]] = {'practical': {'r1_reg_weight': 1, 'net_d_reg_every': 16},
                                        'faithful': {'gp_reg_weight': 10, 'weight_clip': 0.1}}
LOSSES = ('pixel', 'perceptual', 'gan', 'response_kd', 'contrastive', 'self_distill', 'phase_kd')
OF_PHASES = ('gan', 'phase_kd')  # the others are of the SR image, which only the last phase has


def tapped_states(phases: int, steps: int) -> list[int]:
    """j_k: which of the states X_0 to X_S teaches which phase.

    Raises:
        OptionError: There are fewer states than phases.
    """
    if phases > steps + 1:
        raise OptionError(f'`network_g` has {phases} phases, and the teacher passes through {steps + 1} states only. '
                          f'Write `phases: {steps + 1}` or less, or `steps: {phases - 1}` or more for the teacher.')
    return list(range(phases)) if phases == steps + 1 else [round((k + 1) * steps / phases) for k in range(phases)]


def progressive_stages(total_iter: int, phases: int, losses: list[str]) -> list[dict[str, Any]]:
    """One stage after the other trains up to phase k, from 1, for its share k / (K (K + 1) / 2) of the iterations.

    Losses on the SR image are on in the last stage.

    Raises:
        OptionError: There are too few iterations.
    """
    ends = [round(total_iter * k * (k + 1) / (phases * (phases + 1))) for k in range(phases + 1)]
    if ends[1] == 0:
        raise OptionError(f'`train.total_iter` is {total_iter}, too few for the {phases} stages of `preset: faithful`. '
                          f'Write {phases * (phases + 1) // 2} or more.')
    early = [name for name in losses if name in OF_PHASES]
    return [{'name': f'phase {k}', 'iters': ends[k] - ends[k - 1], 'losses': losses if k == phases else early,
             'optimizer': 'fresh', 'phase': k} for k in range(1, phases + 1)]


@MODEL_REGISTRY.register()
class AdvKDModel(OptionallyUnconditionalModel):
    """Distils a `DiffusionUNet` into a `DenoisingPhaseNet` or, unconditionally, a `PhaseDecoder`.

    The heads of all phases but the last, which deployment has no use for, are in `aux`. All phases are trained together
    (`preset: practical`), or one after the other by stages with a `phase` (`preset: faithful`).
    """
    known_terms: dict[str, type[Term]] = {**TERMS, 'phase_kd': PhaseKDTerm}
    losses = {name: term.default_type for name, term in known_terms.items()}
    needs = {'gan': ('teacher', )}  # what is real is the teacher's
    adversary_type = PhaseAdversary
    learns_from_latents = True
    option_keys = {'train.preset': 'practical|faithful', 'train.target': 'xt|x0', 'train.traj_reuse': 'size',
                   'train.gp_reg_weight': 'weight', 'train.weight_clip': 'weight'}

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """The preset: losses, penalties, discriminators and stages."""
        cls.refuse_unread(train_opt, LOSSES, ('gan_mode', ))
        cls._check_networks(opt)
        preset = train_opt.setdefault('preset', 'practical')
        require('train.preset', cls.option_keys['train.preset'], preset)  # before it decides about anything
        for key, value in PRESETS[preset].items():
            train_opt.setdefault(key, deepcopy(value))
        if train_opt['gan_opt'] is not None:
            cls._complete_discriminators(opt, train_opt, preset)
        elif opt.get('network_d'):
            raise OptionError('`network_d` has nothing to learn without `train.gan_opt`. Take one of `network_d` and '
                              '`gan_opt: ~` out.')
        total, phases = train_opt.get('total_iter'), len(_sizes(opt))
        if preset == 'faithful' and not train_opt.get('stages') and total is not None and phases:
            require('train.total_iter', 'iters', total)
            configured = [name for name in cls.known_terms if train_opt.get(f'{name}_opt') is not None]
            train_opt['stages'] = progressive_stages(int(total), phases, configured)

    @classmethod
    def _check_networks(cls, opt: dict[str, Any]) -> None:
        """Student and teacher must be of their kinds, and of one size."""
        if not isinstance(opt.get('network_g'), dict):
            return  # the check says so
        if not opt.get('teacher') or is_another(opt, 'teacher.network_g', DiffusionUNet):
            raise OptionError(f'{cls.__name__} needs a diffusion model as `teacher.network_g`. Name a DiffusionUNet, '
                              'as trained by DiffusionSRModel.')
        if get(opt, 'teacher.network_d'):
            raise OptionError('`teacher.network_d` has no place beside a diffusion model, whose states are what '
                              'discriminators call real. Take it out.')
        if is_another(opt, 'network_g', PhaseChain):
            raise OptionError(f'`network_g`: {opt["network_g"]["type"]} has no phases. Use DenoisingPhaseNet, or '
                              'PhaseDecoder where there are no LR images.')
        size, pretrained = get(opt, 'network_g.size'), get(opt, 'teacher.network_g.pretrained')
        if pretrained and size is None:
            raise OptionError('`teacher.network_g.pretrained` has no LR images, and `network_g` has no `size`. Use a '
                              'PhaseDecoder with the size of its images, or another teacher.')
        if pretrained:
            opt['teacher']['network_g'].setdefault('size', size)  # it is compared with the pipeline's when that is read
        elif get(opt, 'teacher.network_g.size') != size:
            sides = ['none' if side is None else side for side in (size, get(opt, 'teacher.network_g.size'))]
            raise OptionError(f'`network_g.size` is {sides[0]}, and `teacher.network_g.size` is {sides[1]}. Write the '
                              "teacher's in both; for super-resolution, none.")

    @classmethod
    def _complete_discriminators(cls, opt: dict[str, Any], train_opt: dict[str, Any], preset: str) -> None:
        for key, value in PENALTIES[preset].items():
            train_opt.setdefault(key, value)
        train_opt.setdefault('optim_d', deepcopy(train_opt.get('optim_g')))
        faithful = preset == 'faithful'
        network_d: Any = {'type': 'PhaseDiscriminators', 'num_feat': 32 if faithful else 64, 'faithful': faithful}
        network_d = opt.setdefault('network_d', network_d)
        if not network_d:
            raise OptionError('`network_d` is empty, and `train.gan_opt` needs discriminators. Leave the key out for '
                              'those of the preset, or write `gan_opt: ~`.')
        if is_another(opt, 'network_d', PhaseDiscriminators):
            raise OptionError(f'`network_d.type`: {network_d["type"]} is not one discriminator for each phase. '
                              'Use PhaseDiscriminators.')
        if isinstance(network_d, dict) and network_d.get('type') == 'PhaseDiscriminators':
            sides = [size * _lq_side(opt) for size in _sizes(opt)]
            if network_d.setdefault('sizes', sides) != sides and sides:
                raise OptionError(f'`network_d.sizes` is {network_d["sizes"]}, and the images of the phases have the '
                                  f'sides {sides} in training. Take it out.')
            network_d.setdefault('conditional', get(opt, 'network_g.size') is None)

    # ---------------------------------------------------------------- construction

    def init_training_settings(self) -> None:
        """The base's; which states teach is settled before anything is trained."""
        self.drawn: dict[str, Tensor] | None = None
        self.traj_reuse = self.opt['train'].get('traj_reuse', 1)
        super().init_training_settings()
        for stage in self.stages:
            self._check_phase(stage.name, stage.phase, stage.losses)
        if self.net_d is not None:
            self._try_discriminators()

    def _build_terms(self) -> dict[str, Term]:
        """Also the heads of the phases, and which states of the teacher they are compared with."""
        assert self.teacher is not None and isinstance(self.teacher.net_g, DiffusionUNet)  # see _check_networks
        self.diffusion = self.teacher.net_g
        self.taps = tapped_states(len(self.net_g.sizes), self.diffusion.sampler.steps)
        self.target = self.opt['train'].get('target', 'xt')
        if self.target == 'x0' and self.taps[0] == 0:
            raise OptionError('`train.target: x0`: the first phase is taught by the noise X_0, which is no estimate of '
                              f'an image. Write `xt`, or `network_g.phases: {len(self.taps) - 1}` or less.')
        with own_random_numbers(self.device):
            self.aux['phase_heads'] = self.net_g.phase_heads().to(self.device)
        return super()._build_terms()

    def _check_phase(self, stage: str, phase: int | None, losses: tuple[str, ...]) -> None:
        count = len(self.taps)
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

    # ---------------------------------------------------------------- the teacher's trajectories

    @torch.no_grad()
    def _states(self, noise: Tensor, condition: Tensor | None, phases: int) -> Tensor:
        """What the first `phases` phases are to learn, in full size and [-1, 1], (N, phases, 3, H, W)."""
        taps = self.taps[:phases]
        way = self.diffusion.trajectory(noise, condition, taps[-1])
        states = way.states if self.target == 'xt' else [noise, *way.estimates]
        return torch.stack([states[j] for j in taps], 1).clamp(-1, 1)

    def _draw(self, phases: int) -> dict[str, Tensor]:
        """This batch's noise and, for the first `phases` phases, states, by the teacher or from its cache."""
        if self.cached is not None:
            noise, states = _unpack(self.cached.to(self.device, non_blocking=True))
        else:
            noise = self.lq.view(-1, 3, self.size, self.size) if self.size else torch.randn_like(self.gt)
            states = self._states(noise, self.diffusion.condition(self.lq), phases)
        gt = states[:, -1] / 2 + 0.5 if self.size else self.gt
        drawn = {'lq': self.lq, 'gt': gt, 'noise': noise, 'states': states}
        return drawn if self.sources is None else {**drawn, 'sources': self.sources}

    def cacheable(self, lq: Tensor) -> Tensor:
        """Noise and states of a whole LR image, (1, 3 (K + 1), sH, sW); the noise is a function of the image."""
        condition = self.diffusion.condition(lq)
        assert condition is not None
        generator = torch.Generator().manual_seed(zlib.crc32(lq.cpu().numpy().tobytes()) + self.diffusion.seed)
        noise = torch.randn(condition.shape, generator=generator).to(lq)
        return torch.cat((noise, self._states(noise, condition, len(self.taps)).flatten(1, 2)), 1)

    def cache_record(self) -> dict[str, Any]:
        """The teacher, its sampler and seed, which are options of its network, and which states are kept."""
        return {**super().cache_record(), 'trajectory': {'states': self.taps, 'target': self.target}}

    # ---------------------------------------------------------------- one iteration

    def optimize_parameters(self, current_iter: int) -> None:
        """The base's iteration on a trajectory of the teacher, which `traj_reuse` iterations share."""
        phases = self.stages.at(current_iter).phase or len(self.taps)
        drawn = self.drawn
        # a student that has just grown needs a longer one
        if drawn is None or (current_iter - 1) % self.traj_reuse == 0 or drawn['states'].shape[1] < phases:
            drawn = self.drawn = self._draw(phases)
        else:
            self.gt_usm = None  # of the batch that is left out
        self.lq, self.gt, self.sources = drawn['lq'], drawn['gt'], drawn.get('sources')
        super().optimize_parameters(current_iter)

    def _phases(self) -> range:
        """The phases that are trained, from 0: all of them or, while the student grows, the newest."""
        newest = self.stage.phase if self.stage else None
        return range(len(self.taps)) if newest is None else range(newest - 1, newest)

    def _forward_student(self, step: Step, features: bool = False) -> None:
        """The images of the phases in the teacher's terms, each with its Y_k; blocks after the last one are not run."""
        assert self.drawn is not None
        net, phases = self.net_g, self._phases()
        maps = net.features(net.enter(step.lq, self.drawn['noise']), phases[-1])
        heads = [*self.aux['phase_heads'].children(), net.head]
        images = {k: heads[k](maps[k]) for k in phases}
        if phases[-1] == len(heads) - 1:
            step.output = net.finish(images[phases[-1]], step.lq)
            images[phases[-1]] = self.diffusion.encode(step.output, self.diffusion.condition(step.lq))
        else:
            step.output = images[phases[-1]] / 2 + 0.5
        step.pairs = {k: (image, self._wanted(k)) for k, image in images.items()}

    def _wanted(self, phase: int) -> Tensor:
        """Y_k: the state in the phase's size."""
        assert self.drawn is not None
        state, sizes = self.drawn['states'][:, phase], self.net_g.sizes
        height, width = (side * sizes[phase] // sizes[-1] for side in state.shape[-2:])
        return state if sizes[phase] == sizes[-1] else bicubic(state, (height, width))

    @torch.no_grad()
    def _forward_ema(self, step: Step) -> None:
        """The EMA's image from the noise that the student has."""
        assert self.drawn is not None
        step.ema = self.net_g_ema(step.lq, self.drawn['noise'])

    def _forward_teacher(self, step: Step, features: bool) -> None:
        """The end of the trajectory that is there already."""
        assert self.drawn is not None
        step.teacher = self.diffusion.decode(self.drawn['states'][:, -1], self.diffusion.condition(step.lq))

    def condition_of_d(self, step: Step) -> dict[str, Tensor | None]:
        """What the discriminators see beside an image."""
        assert self.drawn is not None
        return {'lq': None if self.size else step.lq, 'noise': self.drawn['noise']}

    # ---------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        """The trajectory that later iterations go on with."""
        return {'drawn': self.drawn} if self.traj_reuse > 1 else {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restores it."""
        drawn = state.get('drawn')
        self.drawn = {name: value.to(self.device) for name, value in drawn.items()} if drawn else None


def _unpack(cached: Tensor) -> tuple[Tensor, Tensor]:
    """Noise (N, 3, H, W) and states (N, K, 3, H, W) of what `cacheable` made."""
    images = cached.unflatten(1, (-1, 3))
    return images[:, 0], images[:, 1:]


def _sizes(opt: dict[str, Any]) -> list[int]:
    """Sides of the phases' images as multiples of the input's, of options not checked yet; empty if they are wrong."""
    try:
        return arch_of(opt, 'network_g').sizes_of(**opt['network_g'])
    except (AttributeError, TypeError, ValueError, KeyError):
        return []  # the check, or the network when it is built, says what is wrong


def _lq_side(opt: dict[str, Any]) -> int:
    """Side of the student's input in training."""
    if get(opt, 'network_g.size'):
        return 4
    size, scale = opt.get('gt_size') or get(opt, 'datasets.train.gt_size'), opt.get('scale')
    # 64 as the base has it for a dataset of another project
    return size // scale if isinstance(size, int) and isinstance(scale, int) and scale > 0 else 64
