"""The base of all methods: one training step, stages, validation and checkpoints.

The order of everything follows `optimize_parameters`: the stage says which losses are on, the losses say which
forwards they need, `Step` runs these, the losses are summed in one order, `Runtime` applies the update.
"""
from __future__ import annotations

import json
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from os import path as osp
from typing import Any
from urllib.error import URLError

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import USMSharp, get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from kd_models.adapters import build_adapter
from kd_models.adversary import Adversary
from kd_models.alarm import CollapseAlarm
from kd_models.degradation import USM_KEYS, Degradation, is_degrading
from kd_models.pairing import Tapped, pair_features
from kd_models.report import measure_networks, networks_table, trained_and_frozen
from kd_models.retention import Kept, obsolete, remove
from kd_models.runtime import Runtime
from kd_models.stages import Stage, Stages
from kd_models.step import Step
from kd_models.teacher import Teacher
from kd_models.terms import STOCK, TERMS, Term
from kd_models.validation import ValidatedModel, refers_to_teacher
from kd_utils import checkpoint
from kd_utils.options import OptionError, apply_aliases, check_options, teacher_cache
from kd_utils.rng import own_random_numbers
from kd_utils.schema import TERM_KEYS


@MODEL_REGISTRY.register()
class DistillationModel(ValidatedModel):
    """Trains a student generator with any of the losses in `TERMS`, with or without a teacher, with or without a GAN.

    With no teacher and BasicSR's losses alone it equals SRModel, SRGANModel (`gan_mode: standard`) or ESRGANModel
    (`gan_mode: relativistic`) bit for bit. The saved student is a plain BasicSR checkpoint.

    Args:
        opt: BasicSR's options with the keys of docs/options.md.

    Raises:
        OptionError: The options do not fit each other or the networks; nothing has been trained.
    """
    known_terms: dict[str, type[Term]] = TERMS
    losses: dict[str, str | None] = {name: term.default_type for name, term in TERMS.items()}
    degrades = True  # takes RealESRGANDataset
    learns_from_latents = False  # not from images, where there is a `latent_size`
    adversary_type = Adversary

    def __init__(self, opt: dict[str, Any]) -> None:
        # our loop has done this already, another project's has not
        messages = apply_aliases(opt) + self.complete(opt)
        for message in messages + check_options(opt, {**DistillationModel.losses, **self.losses}, strict=False):
            get_root_logger().warning(message)
        self.teacher: Teacher | None = None
        self.cache = teacher_cache(opt)
        self.cached: Any = None  # the teacher's images of this batch, from the cache
        self.sources: Tensor | None = None  # which file each image of the batch is of
        self.net_d: Any = None  # an nn.Module where there is a `network_d`
        self.degradation: Degradation | None = None
        self.aux = nn.ModuleDict()
        self.kept: Kept = {}
        self.adapter = build_adapter(opt['network_g'])
        device = torch.device('cuda' if opt['num_gpu'] != 0 else 'cpu')
        self.runtime = Runtime(device, opt.get('dist', False), opt.get('train'))
        super().__init__(opt)
        if not self.is_train and any(refers_to_teacher(option) for option in self._metrics().values()):
            self.teacher = Teacher(opt['teacher'], self.device)

    @classmethod
    def complete(cls, opt: dict[str, Any]) -> list[str]:
        """Writes what a method takes for granted into the options where they are silent; `~` is not silent.

        Returns:
            list[str]: A message for each section that the file does not have.
        """
        if not (opt.get('is_train', True) and isinstance(opt.get('train'), dict)):
            return []
        written = cls._sections(opt).keys()
        cls.complete_training(opt, opt['train'])
        supplied = {key: value for key, value in cls._sections(opt).items() if key not in written}
        return [f'`{key}` is not in the file: {cls.__name__} '
                + (f'has it on. To leave it out write `{key.removeprefix("train.")}: ~`.' if key.endswith('_opt')
                   else f'takes `{json.dumps(value, default=str)}`.') for key, value in supplied.items()]

    @staticmethod
    def _sections(opt: dict[str, Any]) -> dict[str, Any]:
        """Those at the top and those of `train`; a key that the file sets to `~` is one of them."""
        options = {**opt, **{f'train.{key}': value for key, value in opt['train'].items()}}
        return {key: value for key, value in options.items() if value is None or isinstance(value, dict | list)}

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """`complete` for a training. The options have not been checked yet."""

    @classmethod
    def latent_size(cls, opt: dict[str, Any]) -> int | None:
        """How many numbers a latent has, where the generator makes images from noise; None for super-resolution."""
        return None

    @classmethod
    def refuse_unread(cls, train_opt: dict[str, Any], losses: Collection[str], unread: Collection[str] = ()) -> None:
        """For methods with an iteration of their own.

        Args:
            train_opt: The `train` section.
            losses: The losses that they have a place for.
            unread: Further keys of the base that they do not read.

        Raises:
            OptionError: Another loss, or one of these keys, is there.
        """
        own = [f'{name}_opt' for name in losses]
        for key, value in train_opt.items():
            if value is not None and (str(key).endswith('_opt') and key not in own or key in unread):
                raise OptionError(f'`train.{key}` is not read by {cls.__name__}, which has a place for '
                                  f'{" and ".join(f"`{name}`" for name in own)} only. Take it out.')

    # ---------------------------------------------------------------- construction

    def init_training_settings(self) -> None:
        """Builds in the order of the stock models; what is ours draws no random number that theirs would have drawn."""
        train_opt = self.opt['train']
        self.net_g.train()
        self._build_ema(train_opt.get('ema_decay', 0))
        if self.opt.get('network_d'):
            self._build_discriminator()
        with own_random_numbers(self.device):
            if self.opt.get('teacher'):
                self.teacher = Teacher(self.opt['teacher'], self.device)
        if is_degrading(self.opt):
            self.degradation = Degradation(self.opt, self.device)
        self.usm_sharpener = USMSharp().to(self.device) if any(map(self.opt.get, USM_KEYS.values())) else None
        get_root_logger().info('Networks, for one training crop:\n' + networks_table(measure_networks(self)))
        self.adversary = self.adversary_type(self, train_opt.get('gan_mode', 'standard') == 'relativistic')
        self.net_d_iters = train_opt.get('net_d_iters', 1)
        self.net_d_init_iters = train_opt.get('net_d_init_iters', 0)
        self.terms = self._build_terms()
        self.stages = Stages(train_opt, list(self.terms))
        self.alarm = CollapseAlarm()
        self.stage: Stage | None = None
        self._update = {'simultaneous': self._simultaneous, 'g_first': self._g_first,
                        'd_first': self._d_first}[train_opt.get('update_order', 'simultaneous')]
        self.setup_optimizers()
        self.setup_schedulers()
        self.runtime.synchronize(*self.trained().values(), *([self.net_g_ema] if self.ema_decay else []))
        self._protect()
        get_root_logger().info(trained_and_frozen(self))

    def _build_ema(self, decay: float) -> None:
        self.ema_decay = decay
        if decay <= 0:
            return
        get_root_logger().info(f'Use Exponential Moving Average with decay: {decay}')
        self.net_g_ema = self.runtime.place(build_network(self.opt['network_g']))
        path = self.opt['path']
        if path.get('pretrain_network_g') is not None:
            self.load_network(self.net_g_ema, path['pretrain_network_g'], path.get('strict_load_g', True), 'params_ema')
        else:
            self.model_ema(0)  # copy net_g
        self.net_g_ema.eval().requires_grad_(False)

    def _build_discriminator(self) -> None:
        path = self.opt['path']
        self.net_d = self.model_to_device(build_network(self.opt['network_d']))
        self.print_network(self.net_d)
        if path.get('pretrain_network_d') is not None:
            self.load_network(self.net_d, path['pretrain_network_d'], path.get('strict_load_d', True),
                              path.get('param_key_d', 'params'))
        self.net_d.train()

    def _build_terms(self) -> dict[str, Term]:
        """The configured losses, in the order of `known_terms`."""
        train_opt, terms = self.opt['train'], {}
        for name, term in self.known_terms.items():
            option = train_opt.get(f'{name}_opt')
            if option is None:
                continue
            if self.cache and 'teacher_features' in term.needs:
                raise OptionError(f'`train.{name}_opt` compares feature maps of the teacher, and `teacher.cache` has '
                                  'only its images. Take one of the two out.')
            with nullcontext() if name in STOCK else own_random_numbers(self.device):
                option = {'type': term.default_type, **option}
                own = {key: option.pop(key) for key in TERM_KEYS.get(name, ()) if key in option}
                terms[name] = term(name, self._build_criterion(name, option), self, **own)
                self._try(terms[name])
        self.cri_feature_kd_d: Any = None
        if train_opt.get('feature_kd_d_opt') is not None:
            option = {'type': TERMS['feature_kd'].default_type, **train_opt['feature_kd_d_opt']}
            with own_random_numbers(self.device):
                self.cri_feature_kd_d = self._build_criterion('feature_kd_d', option)
        self.cri_gan: Any = terms['gan'].criterion if 'gan' in terms else None
        return terms

    def _try(self, term: Term) -> None:
        """Calls the loss once on blank images: a class that is not made for this place is refused here."""
        images = torch.zeros(self.gt_size(), device=self.device)
        try:
            fits = term.fits(images)
        except OptionError:
            raise
        except Exception:  # noqa: BLE001  a foreign class may raise anything
            fits = False
        if not fits:
            loss = type(term.criterion).__name__
            raise OptionError(f'train.{term.name}_opt: {loss} with these options cannot be the loss `{term.name}`. '
                              f'Use {term.default_type}, or one that is called alike.')

    def _build_criterion(self, name: str, option: dict[str, Any]) -> nn.Module:
        if name.startswith('feature_kd'):
            option = self._tap_features(name, option)
        try:
            criterion = build_loss(option).to(self.device)
        except TypeError as error:  # arguments that the model supplies
            raise OptionError(f'train.{name}_opt: {option["type"]} cannot be the loss `{name}` ({error}). '
                              f'Use {self.losses.get(name, "MLPFeatureLoss")}.') from None
        except URLError as error:
            raise OptionError(f'train.{name}_opt: {option["type"]} could not download its weights ({error.reason}). '
                              'Name a file instead: `type: VGGPerceptualLoss` with `weights: vgg19-dcbb9e9d.pth`, '
                              'from https://download.pytorch.org/models/vgg19-dcbb9e9d.pth') from None
        if any(p.requires_grad for p in criterion.parameters()):
            self.aux[name] = criterion
        return criterion

    def _tap_features(self, name: str, option: dict[str, Any]) -> dict[str, Any]:
        """Sets the taps of feature_kd or feature_kd_d and completes the loss's options with layers and channels."""
        assert self.teacher is not None
        layers, key = option.get('layers'), f'train.{name}_opt'
        if name == 'feature_kd':
            pairs = pair_features(Tapped('network_g (the student)', self.net_g, self.adapter, self.lq_size()),
                                  Tapped('teacher.network_g', self.teacher.net_g, self.teacher.adapter, self.lq_size()),
                                  layers, key)
            self.student_taps, self.teacher_taps = pairs.student, pairs.teacher
        else:
            pairs = pair_features(Tapped('network_d (the student)', self.net_d, None, self.gt_size()),
                                  Tapped('teacher.network_d', self.teacher.net_d, None, self.gt_size()), layers, key)
            self.adversary.taps, self.adversary.teacher_taps = pairs.student, pairs.teacher
        return {**option, 'layers': pairs.layers, 'channels': pairs.channels}

    def gt_size(self) -> tuple[int, int, int, int]:
        """Shape of a training batch of one, (1, C, sH, sW)."""
        default = self.opt.get('gt_size', 64 * self.opt['scale'])
        size = self.opt['datasets'].get('train', {}).get('gt_size', default)
        return (1, self.opt['network_g'].get('num_out_ch', self._channels()), size, size)

    def lq_size(self) -> tuple[int, int, int, int]:
        """Shape of a training batch of one, (1, C, H, W)."""
        size = self.gt_size()[-1] // self.opt['scale']
        return (1, self._channels(), size, size)

    def _channels(self) -> int:
        names = ('num_in_ch', 'in_chans', 'in_channels')  # as BasicSR's networks call them
        return next((self.opt['network_g'][name] for name in names if name in self.opt['network_g']), 3)

    def trained(self) -> dict[str, nn.Module]:
        """Everything that an optimizer updates, by name."""
        nets = {'net_g': self.net_g, **{f'aux.{name}': aux for name, aux in self.aux.items()}}
        return {**nets, 'net_d': self.net_d} if self._trains_discriminator() else nets

    def _trains_discriminator(self) -> bool:
        return self.net_d is not None and bool(self.opt['train'].get('optim_d'))

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Moves a network to the device; gradients are exchanged by `Runtime`, not by a wrapper."""
        return self.runtime.place(net)

    def setup_optimizers(self) -> None:
        """[optimizer_g] or [optimizer_g, optimizer_d]; each training-only module is a group of one of them."""
        self.optimizers = [self._build_optimizer('g', self.net_g)]
        self.optimizer_g = self.optimizers[0]
        if self._trains_discriminator():
            self.optimizer_d = self._build_optimizer('d', self.net_d)
            self.optimizers.append(self.optimizer_d)

    def _protect(self) -> None:
        """Lets `Runtime` skip updates that are not finite."""
        for label, optimizer, net in zip('gd', self.optimizers, (self.net_g, self.net_d), strict=False):
            self.runtime.protect(f'net_{label}', optimizer, net, *self._aux_of(label))

    def _aux_of(self, label: str) -> list[nn.Module]:
        """The training-only modules that `optim_g` or `optim_d` updates."""
        return [aux for name, aux in self.aux.items() if name.endswith('_d') == (label == 'd')]

    def _build_optimizer(self, label: str, net: nn.Module) -> torch.optim.Optimizer:
        option = dict(self.opt['train'][f'optim_{label}'])
        if 'betas' in option:
            option['betas'] = [float(beta) for beta in option['betas']]  # PyTorch refuses [0, 0.99]
        groups = [{'params': [p for p in net.parameters() if p.requires_grad]}]
        groups += [{'params': [p for p in aux.parameters() if p.requires_grad]} for aux in self._aux_of(label)]
        try:
            name = option.pop('type')
            return getattr(torch.optim, name)(groups, **{**self.runtime.optimizer_options(name), **option})
        except (ValueError, TypeError, RuntimeError) as error:
            raise OptionError(f'train.optim_{label}: {error}. Write other values there.') from None

    def setup_schedulers(self) -> None:
        """BasicSR's schedulers on every optimizer; a constant rate where none is named."""
        option = self.opt['train'].get('scheduler')
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault('initial_lr', group['lr'])  # for a warm-up without a scheduler
        if not option:
            return
        saved = dict(option)  # the parent pops `type`
        # the schedule counts all iterations, also those before the stage in which an optimizer begins
        warnings.filterwarnings('ignore', r'Detected call of `lr_scheduler\.step\(\)` before', UserWarning)
        super().setup_schedulers()
        self.opt['train']['scheduler'] = saved

    # ---------------------------------------------------------------- one iteration

    def optimize_parameters(self, current_iter: int) -> None:
        """One update of what the stage trains, from the images of `feed_data`."""
        if self.cache and self.cached is None:
            raise OptionError('`teacher.cache` is read by the loop of kd_cli only. Call kd_cli.train.main in your '
                              'train.py, or take `teacher.cache` out.')
        self._enter_stage(current_iter)
        inputs = self.adapter.inputs(self.net_g, self.lq, self.batch)
        step = Step(self.lq, {'gt': self.gt, **self.targets()}, inputs)
        self.loss_tensors: OrderedDict[str, Tensor] = OrderedDict()
        with self.runtime.iteration():
            self._update(step, current_iter)
        self.runtime.guard.watch(self.loss_tensors)
        self.output = step.output.detach()
        if self.ema_decay > 0:
            self.model_ema(self._ema_decay_at(current_iter))

    def _ema_decay_at(self, iteration: int) -> float:
        """With `ema_ramp_up` r, the half-life of the EMA is at most r times the iterations so far (StyleGAN2-ADA)."""
        ramp = self.opt['train'].get('ema_ramp_up')
        return min(self.ema_decay, 0.5**(1 / (ramp * iteration))) if ramp else self.ema_decay

    def feed_data(self, data: dict[str, Any]) -> None:
        """Takes LR images and ground truths from a batch, or makes the LR images as Real-ESRGAN does.

        With `teacher.cache` a batch brings the teacher's images along.
        """
        self.batch = data
        self.gt_usm: Tensor | None = None
        self.cached = data.get('teacher')
        paths = data.get('lq_path')
        self.sources = torch.tensor([zlib.crc32(str(path).encode()) for path in paths]) if paths else None
        if self.degradation is None or 'kernel1' not in data:  # validation images are not degraded
            self.lq = data['lq'].to(self.device, non_blocking=True)
            if 'gt' in data:
                self.gt = data['gt'].to(self.device, non_blocking=True)
            return
        self.degradation(data)
        self.lq, self.gt, self.gt_usm = self.degradation.lq, self.degradation.gt, self.degradation.gt_usm

    def targets(self) -> dict[str, Tensor]:
        """Ground truths that differ from `gt`, by loss name: those that Real-ESRGAN's keys want sharpened."""
        if self.usm_sharpener is None:
            return {}
        if self.gt_usm is None:
            self.gt_usm = self.usm_sharpener(self.gt)
        return {loss: self.gt_usm for loss, key in USM_KEYS.items() if self.opt.get(key)}

    def _enter_stage(self, iteration: int) -> None:
        stage = self.stages.at(iteration)
        if iteration == stage.start:
            self._begin_stage(stage)
        if stage is self.stage:
            return
        self.stage = stage
        self.adversary.stage = stage
        self.net_g.train(bool(stage.losses))  # otherwise statistics and random depth stand still too
        if len(self.stages) > 1 or self.opt['train'].get('stages'):
            get_root_logger().info(f'Stage {self.stages.index(stage) + 1} of {len(self.stages)}: {stage}')

    def _begin_stage(self, stage: Stage) -> None:
        """What a stage does once, before its first iteration."""
        if stage.optimizer == 'fresh':
            for optimizer in self.optimizers:
                optimizer.state.clear()
        if stage.ema == 'fresh' and self.ema_decay > 0:
            self.model_ema(0)
        if stage.adaptors == 'fresh':
            self._renew([aux for name, aux in self.aux.items() if name.startswith('feature_kd')])

    def _renew(self, adaptors: list[nn.Module]) -> None:
        """Starts modules anew, and forgets what the optimizers know of them."""
        for aux in adaptors:
            for module in aux.modules():
                if callable(reset := getattr(module, 'reset_parameters', None)):
                    reset()
            for optimizer in self.optimizers:
                for parameter in aux.parameters():
                    optimizer.state.pop(parameter, None)
        self.runtime.synchronize(*adaptors)

    def _losses(self, iteration: int) -> list[str]:
        """The losses that are on, in the order of their sum, whatever their order in the YAML file."""
        assert self.stage is not None
        return [name for name, term in self.terms.items() if name in self.stage.losses and iteration >= term.starts]

    def _updates_generator(self, iteration: int) -> bool:
        """BasicSR's net_d_iters and net_d_init_iters hold while the discriminator is trained."""
        in_turn = iteration % self.net_d_iters == 0 and iteration > self.net_d_init_iters
        return bool(self._losses(iteration)) and (in_turn or not self._updates_discriminator())

    def _simultaneous(self, step: Step, iteration: int) -> None:
        """As BasicSR's SRGANModel: both updates see the student's output from before the generator's."""
        self._forward(step, iteration)
        self._generator_phase(step, iteration)
        self._discriminator_phase(step, iteration)

    def _g_first(self, step: Step, iteration: int) -> None:
        """The discriminator sees the output of the generator just updated."""
        self._forward(step, iteration)
        self._generator_phase(step, iteration)
        if self._updates_generator(iteration) and self._updates_discriminator():
            with torch.no_grad():
                self._forward_student(step)
        self._discriminator_phase(step, iteration)

    def _d_first(self, step: Step, iteration: int) -> None:
        """The generator is judged by the discriminator just updated."""
        self._forward(step, iteration)
        self._discriminator_phase(step, iteration)
        self._generator_phase(step, iteration)

    def _forward(self, step: Step, iteration: int) -> None:
        """The student, and what else the losses of the stage need; without a graph where nothing is to be updated."""
        updates = self._updates_generator(iteration)
        losses = self._losses(iteration) if updates else []
        needs = {'student'}.union(*(self.terms[name].needs for name in losses))
        with torch.set_grad_enabled(updates):
            step.run(needs, self._forwards(needs))

    def _forwards(self, needs: set[str]) -> dict[str, Callable[[Step], None]]:
        """The forwards by name, in the order in which they run."""
        features = 'teacher_features' in needs
        return {'student': lambda step: self._forward_student(step, features),
                'ema': self._forward_ema,
                'teacher': lambda step: self._forward_teacher(step, features)}

    def _forward_student(self, step: Step, features: bool = False) -> None:
        def generate() -> Tensor:
            return self.adapter(self.net_g, step.lq, **step.inputs)

        if features:
            step.output, step.student_features = self.student_taps.run(generate)
        else:
            step.output = generate()

    @torch.no_grad()
    def _forward_ema(self, step: Step) -> None:
        step.ema = self.adapter(self.net_g_ema, step.lq, **step.inputs)

    def _forward_teacher(self, step: Step, features: bool) -> None:
        assert self.teacher is not None
        if self.cache:
            step.teacher = self.cached.to(self.device, non_blocking=True)
            return
        taps = self.teacher_taps if features else None
        step.teacher, step.teacher_features = self.teacher.generate(step.lq, taps, **step.inputs)

    def cacheable(self, lq: Tensor) -> Tensor:
        """What `teacher.cache` keeps of a whole LR image (1, C, H, W): (1, C', sH, sW), read by crop as `cached`."""
        assert self.teacher is not None
        return self.teacher.generate(lq)[0]

    def cache_record(self) -> dict[str, Any]:
        """What decides it."""
        assert self.teacher is not None
        return self.teacher.fingerprint()

    def _generator_phase(self, step: Step, iteration: int) -> None:
        if not self._updates_generator(iteration):
            return
        assert self.stage is not None
        if self.net_d is not None:
            self.net_d.requires_grad_(False)
        self.optimizer_g.zero_grad()
        total: Tensor | float = 0
        for name in self._losses(iteration):
            for log_name, value in self.terms[name](step).items():
                if log_name.startswith('l_'):
                    value = value * self.stage.weights[name] if name in self.stage.weights else value
                    total = total + value
                self.loss_tensors[log_name] = value.detach()
        self.runtime.backward(total)  # type: ignore[arg-type]
        self.runtime.step(self.optimizer_g)

    def _updates_discriminator(self) -> bool:
        assert self.stage is not None
        return self.net_d is not None and self.stage.train_d

    def _discriminator_phase(self, step: Step, iteration: int) -> None:
        if not self._updates_discriminator():
            return
        assert self.stage is not None
        self.net_d.requires_grad_(True)
        distill = self.stage.distill_d and self.cri_feature_kd_d is not None
        logs = self.adversary.update_discriminator(step, iteration, distill)
        self.loss_tensors.update((name, value.detach()) for name, value in logs.items())

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """EMA of parameters, as in BasicSR, and a copy of the buffers, which BasicSR leaves at their initial values."""
        ema: list[Tensor] = list(self.net_g_ema.parameters())
        net: list[Tensor] = list(self.net_g.parameters())
        torch._foreach_mul_(ema, decay)
        torch._foreach_add_(ema, net, alpha=1 - decay)
        for of_ema, of_net in zip(self.net_g_ema.buffers(), self.net_g.buffers(), strict=True):
            of_ema.copy_(of_net)

    def get_current_log(self) -> dict[str, float]:
        """The last iteration's losses as numbers, averaged over the processes; the only wait for the device.

        All processes must call it, as the training loops do.

        Raises:
            TrainingError: Too many updates in a row were not finite.
        """
        skipped = self.runtime.guard.take()
        measured = self._read({**self.loss_tensors, **self.alarm.measure(self), **skipped})
        log = {name: measured[name] for name in self.loss_tensors}
        for warning in self.alarm.check(log, measured):
            get_root_logger().warning(warning)
        self._report_skipped({name: measured[name] for name in skipped})
        if len(self.stages) > 1 and self.stage is not None:
            log['stage'] = float(self.stages.index(self.stage) + 1)
        return log

    def _read(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Numbers on the device, their means over the processes, in one go."""
        if not tensors:
            return {}
        values = self.runtime.mean(torch.stack([value.float() for value in tensors.values()])).tolist()
        return dict(zip(tensors, values, strict=True))

    def _report_skipped(self, counts: Mapping[str, float]) -> None:
        for warning in self.runtime.guard.check(counts):
            get_root_logger().warning(warning)

    # ---------------------------------------------------------------- checkpoints

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes net_g (`params`, `params_ema`), net_d, and then the training state, which commits them.

        Raises:
            CheckpointWriteError: A file cannot be written; older checkpoints are as they were.
            TrainingError: The state is saved, and too many updates in a row were not finite.
        """
        files: dict[str, checkpoint.Record] = {}
        if self.opt['rank'] == 0:
            if self.ema_decay > 0:
                files |= self._write_network([self.net_g, self.net_g_ema], 'net_g', current_iter,
                                             ['params', 'params_ema'])
            else:
                files |= self._write_network([self.net_g], 'net_g', current_iter, ['params'])
            if self.net_d is not None:
                files |= self._write_network([self.net_d], 'net_d', current_iter, ['params'])
        if current_iter == -1:
            return
        if self.degradation is not None:
            files |= self._write_own('pool', self.degradation.state(), current_iter)
        if self.opt['rank'] > 0:  # what the first process has of its own is in the state and the networks
            files |= self._write_own('own', {'own': self.own_state(), 'buffers': self._buffers()}, current_iter)
        for of_process in self.runtime.gather(files):  # nothing is committed before all of them have written
            files |= of_process
        self._save_state(epoch, current_iter, files)
        self._report_skipped(self._read(self.runtime.guard.take()))

    def _own_path(self, folder: str, kind: str, iteration: int) -> str:
        """What each process has of its own lies beside the state: training pair pool, `own_state`, statistics."""
        return osp.join(folder, f'{iteration}_{kind}_{self.opt["rank"]}.pth')

    def _write_own(self, kind: str, content: dict[str, Any], iteration: int) -> dict[str, checkpoint.Record]:
        path = self._own_path(self.opt['path']['training_states'], kind, iteration)
        return {f'training_states/{osp.basename(path)}': checkpoint.save(content, path)}

    def _write_network(self, nets: list[nn.Module], label: str, iteration: int,
                       keys: list[str]) -> dict[str, checkpoint.Record]:
        """A file with the networks by key; its name in the experiment's folder, with its record."""
        states = {key: {name: value.cpu() for name, value in net.state_dict().items()}
                  for net, key in zip(nets, keys, strict=True)}
        name = f'{label}_{"latest" if iteration == -1 else iteration}.pth'
        return {f'models/{name}': checkpoint.save(states, osp.join(self.opt['path']['models'], name))}

    @master_only
    def _save_state(self, epoch: int, iteration: int, files: dict[str, checkpoint.Record]) -> None:
        """BasicSR's state, and beside it what exact resuming needs; then older checkpoints may go."""
        self.kept[iteration] = self._value(iteration)
        state = {'epoch': epoch, 'iter': iteration,
                 'optimizer_types': [type(optimizer).__name__ for optimizer in self.optimizers],
                 'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
                 'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
                 'aux': self.aux.state_dict(),
                 'own': self.own_state(),
                 'stages': self.stages.plan(),
                 'best_metric_results': getattr(self, 'best_metric_results', {}),
                 'validated': self.validated,
                 'kept': self.kept,
                 'kept_by': self._kept_by(),
                 'files': files}
        checkpoint.save_state(state, osp.join(self.opt['path']['training_states'], f'{iteration}.state'))
        self._remove_old(iteration)

    def _kept_by(self) -> list[Any]:
        """The metric of `logger.keep_best` with its options."""
        metric = self.opt['logger'].get('keep_best')
        return [metric, self._metrics().get(metric)]

    def _value(self, iteration: int) -> float | None:
        """What `logger.keep_best` goes by, if it was measured."""
        metric = self.opt['logger'].get('keep_best')
        measured = self.validated['metrics'] if self.validated.get('iter') == iteration else {}
        return next((of_set[metric] for of_set in measured.values() if metric in of_set), None)

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """The checkpoint of this iteration may be there already: a stopped run leaves its validation to the resumed."""
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        if isinstance(current_iter, int) and current_iter in self.kept:
            self.kept[current_iter] = self._value(current_iter)

    def _remove_old(self, iteration: int) -> None:
        """Deletes what `logger.keep_last` and `keep_best` do not ask for, once the newest can be read back."""
        last = self.opt['logger'].get('keep_last')
        if not last:
            return
        better = self._metrics().get(self.opt['logger'].get('keep_best'), {}).get('better', 'higher')
        folders, old = self.opt['path'], obsolete(self.kept, last, better)
        if old:
            checkpoint.load_complete(osp.join(folders['training_states'], f'{iteration}.state'), folders['models'])
        for iteration in old:
            remove(folders['experiments_root'], iteration)
            del self.kept[iteration]

    def own_state(self) -> dict[str, Any]:
        """What a method's next iteration depends on besides networks and optimizers: tensors and numbers by name.

        Each process has its own.
        """
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restores what `own_state` returned."""

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restores optimizers, schedulers, training-only modules and best metrics.

        The schedule itself is the YAML's, so that a run can be extended; the state says where in it the run is.

        Raises:
            OptionError: The state is of a run with other networks, losses or optimizers.
        """
        self._check_state(resume_state)
        for optimizer, state in zip(self.optimizers, resume_state['optimizers'], strict=True):
            # `fused` is this device's, not that of the machine which saved the state
            groups = [{**saved, 'fused': own['fused']} if 'fused' in own else saved
                      for saved, own in zip(state['param_groups'], optimizer.param_groups, strict=True)]
            optimizer.load_state_dict({**state, 'param_groups': groups})
        for scheduler, state in zip(self.schedulers, resume_state['schedulers'], strict=False):
            scheduler.__dict__.update({key: state[key] for key in ('last_epoch', '_step_count', '_last_lr')})
        self.aux.load_state_dict(resume_state.get('aux', {}))
        self._resume_own(resume_state)
        if resume_state.get('stages', self.stages.plan()) != self.stages.plan():
            get_root_logger().warning('`train.stages` are not those of the state. Iterations go on by the new ones; '
                                      'what a stage does at its beginning is not done for those that have begun.')
        if resume_state.get('best_metric_results'):
            self.best_metric_results = resume_state['best_metric_results']
        self.validated = resume_state.get('validated', {})
        self.kept = resume_state.get('kept', {})
        if resume_state.get('kept_by') != self._kept_by():
            self.kept = dict.fromkeys(self.kept)  # values of another metric say nothing about this one
        if self.degradation is not None:
            self._resume_pool(self.degradation, resume_state['iter'])

    def _buffers(self) -> dict[str, dict[str, Tensor]]:
        """Those of networks that are not frozen: batch normalisation has statistics of its own on each process."""
        nets = {**self.trained(), **({'net_g_ema': self.net_g_ema} if self.ema_decay > 0 else {})}
        return {name: dict(net.named_buffers()) for name, net in nets.items()}

    def _resume_own(self, resume_state: dict[str, Any]) -> None:
        """The first process's for those that the stopped run did not have."""
        path = self._own_path(self._folder_of_state(), 'own', resume_state['iter'])
        if self.opt['rank'] == 0 or not osp.exists(path):
            self.load_own_state(resume_state.get('own', {}))
            return
        content, nets = checkpoint.load(path), self._buffers()
        for name in nets.keys() & content['buffers'].keys():
            for key, buffer in nets[name].items():
                buffer.copy_(content['buffers'][name][key])
        self.load_own_state(content['own'])

    def _folder_of_state(self) -> str:
        return osp.dirname(self.opt['path'].get('resume_state') or '')

    def _resume_pool(self, degradation: Degradation, iteration: int) -> None:
        path = self._own_path(self._folder_of_state(), 'pool', iteration)
        lacking, why = 0., 'on another process than the first'
        try:
            degradation.load_state(checkpoint.load(path))
        except (checkpoint.CheckpointError, RuntimeError, KeyError, ValueError) as error:
            lacking, why = 1., str(error)
        if self.runtime.mean(torch.tensor(lacking, device=self.device)) > 0:  # only the first process has a log
            get_root_logger().warning('The training pair pool starts empty, so that this run is not exactly the '
                                      f'uninterrupted one. ({why})')

    def _check_state(self, state: dict[str, Any]) -> None:
        def sizes(optimizers: list[dict[str, Any]]) -> list[list[int]]:
            return [[len(group['params']) for group in optimizer['param_groups']] for optimizer in optimizers]

        def shapes(aux: dict[str, Tensor]) -> dict[str, torch.Size]:
            return {name: value.shape for name, value in aux.items()}

        own = [type(optimizer).__name__ for optimizer in self.optimizers]
        same = (sizes(state['optimizers']) == sizes([optimizer.state_dict() for optimizer in self.optimizers])
                and state.get('optimizer_types', own) == own
                and shapes(state.get('aux', {})) == shapes(self.aux.state_dict()))
        if not same:
            raise OptionError(f'The state of iteration {state["iter"]} is of a run with other networks, losses or '
                              'optimizers than this YAML file. Resume with the options.yml beside it, or start a new '
                              'run from its weights, by path.pretrain_network_g.')

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True,
                     param_key: str | None = 'params') -> None:
        """As BasicSR's, reading no code, taking bare state dicts, and naming what does not fit."""
        get_root_logger().info(f'Loading {type(net).__name__} from {load_path}, with param key: [{param_key}].')
        checkpoint.load_network(net, load_path, strict, param_key)
