"""BasicSR's face of a training: the hooks that its loop calls, in the order in which it calls them.

The order of an iteration follows `optimize_parameters`: the stage says which losses are on, the losses say what they
read, `Update` runs these forwards, sums the losses in one order and applies the updates.
"""
from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from kd_data.teacher_cache import IMAGE
from kd_models import build
from kd_models.adapters import build_adapter
from kd_models.adversary import Adversary
from kd_models.alarm import CollapseAlarm
from kd_models.averaging import averaged
from kd_models.checkpoints import Checkpoints, value_of_best
from kd_models.degradation import USM_KEYS
from kd_models.ema import update_ema
from kd_models.forwards import FORWARDS, Forward
from kd_models.report import trained_and_frozen
from kd_models.runtime import Runtime
from kd_models.stages import Stage
from kd_models.step import Step
from kd_models.taps import Taps
from kd_models.terms import TERMS, Term
from kd_models.training import Training
from kd_models.upcycling import check_upcycling, upcycled
from kd_models.update import Update, begin_stage
from kd_models.validation import ValidatedModel
from kd_utils.options import OptionError, apply_aliases, check_options, crop_size, teacher_caches
from kd_utils.schema import CheckedOptions, measured_teachers, teacher_key


@MODEL_REGISTRY.register()
class DistillationModel(ValidatedModel):
    """Trains a student generator with any of the losses in `TERMS`, with or without a teacher, with or without a GAN.

    With no teacher and BasicSR's losses alone it equals SRModel, SRGANModel (`gan_mode: standard`) or ESRGANModel
    (`gan_mode: relativistic`) bit for bit. The saved student is a plain BasicSR checkpoint.

    Args:
        opt: BasicSR's options with the keys of docs/options.md.

    Raises:
        OptionError: The options do not fit each other or the networks; nothing has been trained.

    Attributes:
        known_terms: The losses that a YAML file may have, by name, in the order of their sum.
        losses: Their default classes by name.
        forwards: Who is called in an iteration, and what each call writes into the step.
        adversary_type: The discriminator's side.
        degrades: Whether a RealESRGANDataset may be trained on.
        learns_from_latents: Whether a training set of latents is trained on where `latent_size` is not None.
    """
    known_terms: ClassVar[Mapping[str, type[Term]]] = TERMS
    losses: ClassVar[dict[str, str | None]] = {name: term.default_type for name, term in TERMS.items()}
    forwards: ClassVar[Mapping[str, Forward]] = {**FORWARDS, 'upcycled': upcycled}
    adversary_type: ClassVar[type[Adversary]] = Adversary
    degrades: ClassVar[bool] = True
    learns_from_latents: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.losses = {name: term.default_type for name, term in cls.known_terms.items()}

    def __init__(self, opt: dict[str, Any]) -> None:
        if not isinstance(opt, CheckedOptions):  # of another project's loop, or of a test
            messages = apply_aliases(opt) + self.complete(opt)
            for message in messages + check_options(opt, {**DistillationModel.losses, **self.losses}, strict=False):
                get_root_logger().warning(message)
        self.adapter = build_adapter(opt['network_g'])
        self.teachers = {}
        self.caches = teacher_caches(opt)
        device = torch.device('cuda' if opt['num_gpu'] != 0 else 'cpu')
        self.runtime = Runtime(device, opt.get('dist', False), opt.get('train'))
        super().__init__(opt)
        if not self.is_train:
            measured = {teacher_key(name) for name in measured_teachers(opt)}
            self.teachers = build.build_teachers(opt, self.device, measured)

    # ----------------------------------------------------------------------------------------------------- options

    @classmethod
    def complete(cls, opt: dict[str, Any]) -> list[str]:
        """Writes the sections that a method has by default into the options; one that the file sets to `~` stays off.

        Returns:
            list[str]: A message for each section that was added.
        """
        if not (opt.get('is_train', True) and isinstance(opt.get('train'), dict)):
            return []
        written = _sections(opt).keys()
        cls.complete_training(opt, opt['train'])
        added = {key: value for key, value in _sections(opt).items() if key not in written}
        return [f'`{key}` is not in the file: {cls.__name__} '
                + (f'has it on. To leave it out write `{key.removeprefix("train.")}: ~`.' if key.endswith('_opt')
                   else f'takes `{json.dumps(value, default=str)}`.') for key, value in added.items()]

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """What `complete` writes for a training; a method overrides it. The options have not been checked yet."""

    @classmethod
    def latent_size(cls, opt: dict[str, Any]) -> int | None:
        """How many numbers a latent has, where the generator makes images from noise; None for super-resolution."""
        return None

    @classmethod
    def refuse_unread(cls, train_opt: dict[str, Any], losses: Collection[str], unread: Collection[str] = ()) -> None:
        """Refuses what a method with an iteration of its own would not read.

        Args:
            train_opt: The `train` section.
            losses: The losses that the method has a place for.
            unread: Further keys of the base that it does not read.

        Raises:
            OptionError: Another loss, or one of these keys, is there.
        """
        read = [f'{name}_opt' for name in losses]
        for key, value in train_opt.items():
            if value is not None and (str(key).endswith('_opt') and key not in read or key in unread):
                raise OptionError(f'`train.{key}` is not read by {cls.__name__}, which has a place for '
                                  f'{" and ".join(f"`{name}`" for name in read)} only. Take it out.')

    # ------------------------------------------------------------------------------------------------ construction

    def init_training_settings(self) -> None:
        """Builds the training; see `build.py`."""
        self.training: Training = build.build_training(
            self.opt, self.runtime, self.adapter, self.net_g, sizes=(self.lq_size(), self.gt_size()),
            latent_size=self.latent_size(self.opt), adversary_type=self.adversary_type, auxiliary=self.auxiliary)
        self.teachers, self.net_d, self.aux = self.training.teachers, self.training.net_d, self.training.aux
        self.adversary, self.degradation = self.training.adversary, self.training.degradation
        self.ema_decay = self.opt['train'].get('ema_decay', 0)
        if self.training.net_g_ema is not None:
            self.net_g_ema = self.training.net_g_ema
        self.terms = build.build_terms(self.known_terms, self.training)
        self._check_inputs()
        build.build_optimizers(self.training, self.terms)
        self.stages, self.optimizers = self.training.stages, self.training.optimizers
        self.optimizer_g, self.optimizer_d = (*self.optimizers, None)[:2]
        self.training.schedulers = self.schedulers
        self.setup_schedulers()
        self.update = Update(self.training, self.terms, self.forwards)
        self.checkpoints = Checkpoints(self.training)
        self.alarm = CollapseAlarm()
        self.stage: Stage | None = None
        get_root_logger().info(trained_and_frozen(self.training))

    def _check_inputs(self) -> None:
        """Losses on a second input need a model that makes one, and networks that take it."""
        losses = {name: term.reads_features for name, term in self.terms.items() if 'upcycled' in term.forwards}
        if losses and 'upcycled' not in self.forwards:
            raise OptionError(f'`train.{next(iter(losses))}_opt.inputs` asks for upcycled images, which '
                              f'{type(self).__name__} does not make. Take it out.')
        check_upcycling(self.training, losses)

    def auxiliary(self) -> Mapping[str, nn.Module]:
        """Training-only modules that a method has besides those of its losses, by name; a method overrides it."""
        return {}

    def gt_size(self) -> tuple[int, ...]:
        """Shape of a training image of one, (1, C, sH, sW)."""
        size = crop_size(self.opt)
        return (1, self.opt['network_g'].get('num_out_ch', self._channels()), size, size)

    def lq_size(self) -> tuple[int, ...]:
        """Shape of a training input of one, (1, C, H, W)."""
        size = self.gt_size()[-1] // self.opt['scale']
        return (1, self._channels(), size, size)

    def _channels(self) -> int:
        names = ('num_in_ch', 'in_chans', 'in_channels')  # as BasicSR's networks call them
        return next((self.opt['network_g'][name] for name in names if name in self.opt['network_g']), 3)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Moves a network to the device; gradients are exchanged by `Runtime`, not by a wrapper."""
        return self.runtime.place(net)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True,
                     param_key: str | None = 'params') -> None:
        """As BasicSR's, reading no code, taking bare state dicts, and naming what does not fit."""
        build.load_network(net, load_path, strict, param_key)

    def setup_schedulers(self) -> None:
        """BasicSR's schedulers on every optimizer; a constant rate where none is named."""
        option = self.opt['train'].get('scheduler')
        if not option:
            return
        saved = dict(option)  # the parent pops `type`
        # the schedule counts all iterations, also those before the stage in which an optimizer begins
        warnings.filterwarnings('ignore', r'Detected call of `lr_scheduler\.step\(\)` before', UserWarning)
        super().setup_schedulers()
        self.opt['train']['scheduler'] = saved

    # ----------------------------------------------------------------------------------------------- one iteration

    def feed_data(self, data: dict[str, Any]) -> None:
        """Takes LR images and ground truths from a batch, or makes the LR images as Real-ESRGAN does.

        With a teacher's cache a batch brings the teacher's images along.
        """
        self.batch = data
        self.gt_usm: Tensor | None = None
        paths = data.get('lq_path')
        self.sources = torch.tensor([zlib.crc32(str(path).encode()) for path in paths]) if paths else None
        degradation = self.training.degradation if self.is_train else None
        if degradation is None or 'kernel1' not in data:  # validation images are not degraded
            self.lq = data['lq'].to(self.device, non_blocking=True)
            if 'gt' in data:
                self.gt = data['gt'].to(self.device, non_blocking=True)
            return
        degradation(data)
        self.lq, self.gt, self.gt_usm = degradation.lq, degradation.gt, degradation.gt_usm

    def optimize_parameters(self, current_iter: int) -> None:
        """One update of what the stage trains, from the images of `feed_data`."""
        stage = self.enter_stage(current_iter)
        step = self.step(current_iter, stage)
        with self.runtime.iteration():
            self.loss_tensors = self.update(step)
        self.runtime.guard.watch(self.loss_tensors)
        self.output, self.verdict = step.output.detach(), step.verdict
        if self.ema_decay > 0:
            self.model_ema(self._ema_decay_at(current_iter))

    def step(self, iteration: int, stage: Stage) -> Step:
        """What the iteration starts with."""
        return Step(iteration, stage, self.lq, {'gt': self.gt, **self.targets()},
                    inputs=self.adapter.inputs(self.net_g, self.lq, self.batch), unit=self.adapter.unit,
                    sources=self.sources, cached=self.cached())

    def cached(self) -> dict[str, Tensor]:
        """The images, and feature maps, that teachers have of this batch in their caches, by `item_key`.

        Raises:
            OptionError: There is a cache, and the loop does not read it.
        """
        if any(name not in self.batch for name in self.caches):
            raise OptionError('`teacher.cache` is read by the loop of kd_cli only. Call kd_cli.train.main in your '
                              'train.py, or take `teacher.cache` out.')
        return {key: value for key, value in self.batch.items() if key.partition(':')[0] in self.caches}

    def targets(self) -> dict[str, Tensor]:
        """Ground truths that differ from `gt`, by loss name: those that Real-ESRGAN's keys want sharpened."""
        if self.training.usm_sharpener is None:
            return {}
        if self.gt_usm is None:
            self.gt_usm = self.training.usm_sharpener(self.gt)
        return {loss: self.gt_usm for loss, key in USM_KEYS.items() if self.opt.get(key)}

    def enter_stage(self, iteration: int) -> Stage:
        """The stage of an iteration, with what it does at its beginning done."""
        stage = self.stages.at(iteration)
        if iteration == stage.start:
            begin_stage(self.training, self.terms, stage)
        if stage is not self.stage:
            self.stage = stage
            self.net_g.train(bool(stage.losses))  # otherwise statistics and random depth stand still too
            if len(self.stages) > 1 or self.opt['train'].get('stages'):
                get_root_logger().info(f'Stage {self.stages.index(stage) + 1} of {len(self.stages)}: {stage}')
        return stage

    def model_ema(self, decay: float = 0.999) -> None:
        """The EMA of parameters and a copy of the buffers."""
        update_ema(self.net_g_ema, self.net_g, decay)

    def _ema_decay_at(self, iteration: int) -> float:
        """With `ema_ramp_up` r, the half-life of the EMA is at most r times the iterations so far (StyleGAN2-ADA)."""
        ramp = self.opt['train'].get('ema_ramp_up')
        return min(self.ema_decay, 0.5**(1 / (ramp * iteration))) if ramp else self.ema_decay

    def get_current_log(self) -> dict[str, float]:
        """The last iteration's losses as numbers, averaged over the processes; the only wait for the device.

        All processes must call it, as the training loops do.

        Raises:
            TrainingError: Too many updates in a row were not finite.
        """
        skipped = self.runtime.guard.take()
        watched = self._watched()
        measured = self._read({**self.loss_tensors, **watched, **skipped})
        log = {name: measured[name] for name in self.loss_tensors}
        for warning in self.alarm.check(log, measured):
            get_root_logger().warning(warning)
        self._report_skipped({name: measured[name] for name in skipped})
        if len(self.stages) > 1 and self.stage is not None:
            log['stage'] = float(self.stages.index(self.stage) + 1)
        return log

    @property
    def log_dict(self) -> dict[str, float]:
        """The last iteration's losses as numbers, as stock models have them; reading it waits for the device."""
        return self._read(getattr(self, 'loss_tensors', {}))

    def _watched(self) -> dict[str, Tensor]:
        """What the alarm measures of the last iteration."""
        if self.stage is None:
            return {}
        output, lq = map(self.adapter.unit, (self.output, self.lq))
        return self.alarm.measure(self.stage, output, lq, self.verdict)

    def _read(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Numbers on the device, their means over the processes, in one go."""
        if not tensors:
            return {}
        values = self.runtime.mean(torch.stack([value.float() for value in tensors.values()])).tolist()
        return dict(zip(tensors, values, strict=True))

    def _report_skipped(self, counts: Mapping[str, float]) -> None:
        for warning in self.runtime.guard.check(counts):
            get_root_logger().warning(warning)

    # ------------------------------------------------------------------------------------------------------- cache

    def cacheable(self, lq: Tensor, name: str = 'teacher') -> Tensor | dict[str, Tensor]:
        """What a teacher's cache keeps of a whole LR image (1, C, H, W): an image (1, C', sH, sW), read as `cached`.

        With feature maps a dictionary of that, as `IMAGE`, and of the maps of `cached_layers`.
        """
        image, maps = self.teachers[name].generate(lq, self._cached_taps(name))
        return {IMAGE: image, **maps}

    def cached_layers(self, name: str = 'teacher') -> tuple[str, ...]:
        """The layers whose maps a teacher's cache keeps besides its images."""
        taps = self._cached_taps(name)
        if taps is None and self.caches[name]['features']:
            get_root_logger().warning(f'`{name}.cache.features` is of no use: no loss compares feature maps of it.')
        return tuple(taps.paths) if taps else ()

    def _cached_taps(self, name: str) -> Taps | None:
        return self.training.features.taps(name, tuple(self.terms)) if self.caches[name]['features'] else None

    def cache_record(self, name: str = 'teacher') -> dict[str, Any]:
        """What decides the images in a teacher's cache; others are not taken from it."""
        return self.teachers[name].fingerprint()

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes net_g (`params`, `params_ema`), net_d, and then the training state, which commits them.

        Raises:
            CheckpointWriteError: A file cannot be written; older checkpoints are as they were.
            TrainingError: The state is saved, and too many updates in a row were not finite.
        """
        if current_iter == -1:
            with averaged(self.optimizers):
                if self.opt['rank'] == 0:
                    self.checkpoints.save_networks(current_iter)
            return
        progress = {'best_metric_results': getattr(self, 'best_metric_results', {}), 'validated': self.validated}
        self.checkpoints.save(epoch, current_iter, self.own_state(), progress)
        self._report_skipped(self._read(self.runtime.guard.take()))

    def own_state(self) -> dict[str, Any]:
        """What a method's next iteration depends on besides networks and optimizers: tensors and numbers by name.

        Each process has its own.
        """
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restores what `own_state` returned."""

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restores what `save` wrote beside the networks.

        Raises:
            OptionError: The state is of a run with other networks, losses or optimizers.
        """
        self.load_own_state(self.checkpoints.resume(resume_state))
        if resume_state.get('best_metric_results'):
            self.best_metric_results = resume_state['best_metric_results']
        self.validated = resume_state.get('validated', {})

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """The checkpoint of this iteration may be there already: a stopped run leaves its validation to the resumed."""
        with averaged(self.optimizers):
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        if self.is_train and current_iter in self.training.kept:
            value = value_of_best(self.opt, self.validated, current_iter)  # type: ignore[arg-type]
            self.training.kept[current_iter] = value  # type: ignore[index]


def _sections(opt: dict[str, Any]) -> dict[str, Any]:
    """The sections at the top of the options and in `train`; a key that the file sets to `~` counts as one."""
    options = {**opt, **{f'train.{key}': value for key, value in opt['train'].items()}}
    return {key: value for key, value in options.items() if value is None or isinstance(value, dict | list)}
