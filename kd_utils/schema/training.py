"""Checks of losses, optimizers, schedules, validation and logging."""
from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY

from kd_utils.schema.arguments import ARGUMENTS, arguments_of, swallows_keys
from kd_utils.schema.checks import Checks
from kd_utils.schema.kinds import Table, is_whole, require
from kd_utils.schema.lookups import (
    get,
    is_from,
    registered,
    teacher_key,
    teacher_sections,
    teachers_of_loss,
)
from kd_utils.schema.messages import Options, nearest, nearest_or_all
from kd_utils.schema.optimizers import optimizer_class
from kd_utils.schema.rules import Rules
from kd_utils.schema.tables import METRIC, OPTIMIZERS, SCHEDULERS, TRAIN, UNFIT_OPTIMIZERS, UPCYCLING, VAL


class TrainingChecks(Checks):
    """The part of the check that is about `train`, `val` and `logger`."""

    def check_retention(self) -> None:
        """Refuses a `logger.keep_best` whose metric is not known wherever a checkpoint is saved."""
        metric = get(self.opt, 'logger.keep_best')
        if metric is None:
            return
        if get(self.opt, 'logger.keep_last') is None:
            self.refuse('`logger.keep_best` keeps one more checkpoint than `logger.keep_last`, which is missing. '
                        'Write how many are to be kept besides the best, such as `keep_last: 3`.')
        metrics = get(self.opt, 'val.metrics') or {}
        if metric not in metrics:
            self.refuse(f'`logger.keep_best: {metric}` is none of `val.metrics`, which has: '
                        f'{", ".join(metrics) or "nothing"}.{nearest(str(metric), metrics)}')
        validated, saved = get(self.opt, 'val.val_freq'), get(self.opt, 'logger.save_checkpoint_freq')
        if is_whole(validated) and is_whole(saved) and saved % validated:
            self.refuse(f'`logger.keep_best` needs a validation wherever a checkpoint is saved, and {saved} is no '
                        f'multiple of `val.val_freq`, {validated}. Write `save_checkpoint_freq: {validated}`.')

    def check_wandb(self) -> None:
        """Refuses wandb without tensorboard or without its package: BasicSR finds out when the run has its folders."""
        project = get(self.opt, 'logger.wandb.project')
        if project is None or not (self.training and self.strict) or 'debug' in self.opt['name']:
            return
        if not self.opt['logger'].get('use_tb_logger'):
            self.refuse('`logger.wandb.project` needs tensorboard, which `logger.use_tb_logger` leaves out. '
                        'Write `use_tb_logger: true`, or `project: ~`.')
        if importlib.util.find_spec('wandb') is None:
            self.refuse('`logger.wandb.project` needs the package wandb, which is not installed. '
                        'Run `pip install wandb`, or write `project: ~`.')

    def check_train(self) -> None:
        train = self.opt['train']
        table = self.extended('train', {**TRAIN, **{f'{name}_opt': 'dict?' for name in self.losses}})
        self.table('train', train, table, self.training)
        for name in self.losses:
            self.check_loss(name)
        self.check_optimizer('optim_g')
        self.check_optimizer('optim_d')
        self.check_scheduler()
        self.check_simple('train.upcycling', UPCYCLING)
        if self.ours:
            Rules(self).check()

    def check_loss(self, name: str) -> None:
        key, option = f'train.{name}_opt', self.opt['train'].get(f'{name}_opt')
        if option is None:
            return
        kind = option.get('type', self.losses[name])
        if kind is None:
            self.refuse(f'`{key}.type` is missing. Name a loss.{nearest_or_all(name, registered(LOSS_REGISTRY))}')
        loss = self.lookup(f'{key}.type', 'loss', kind, registered(LOSS_REGISTRY))
        table = arguments_of(loss, skip=getattr(loss, 'supplied', ()))
        table.update({extra: ARGUMENTS.get(extra, 'any') for extra in getattr(loss, 'options', ())})
        term = self.terms.get(name)
        of_term = self.term_keys(term)
        table.update(of_term)
        if term is not None and 'teacher' in option and 'teacher' not in table:
            self.refuse(f'Unknown key `{key}.teacher`: the loss `{name}` compares with no teacher. Take it out.')
        self.constructor(key, option, table, swallows_keys(loss), self.refuse_in_ours)
        if 'loss_weight' in of_term and 'perceptual_weight' in option and 'loss_weight' not in option:
            self.refuse(f'`{key}.perceptual_weight` is a factor within {kind}, and the weight of the loss is '
                        '`loss_weight`. Write `loss_weight` too, or instead.')
        if term is not None and 'teacher' in option:
            self.check_teachers_of(name, key)
        if isinstance(loss, type) and issubclass(loss, PerceptualLoss):
            self.check_layers(key, option)

    @staticmethod
    def term_keys(term: Any) -> dict[str, str]:
        """The keys of a loss's section that the model reads, not the class of the loss."""
        if term is None:
            return {}
        return {**({'teacher': 'str'} if 'teacher' in term.reads or term.reads_features else {}), **term.option_keys}

    def check_teachers_of(self, name: str, key: str) -> None:
        """Refuses a loss that names a teacher which is not there, or one twice."""
        known = [found.removeprefix('teachers.') for found in teacher_sections(self.opt)]
        names = teachers_of_loss(self.opt, name)
        for teacher in names:
            if teacher not in known:
                self.refuse(f'`{key}.teacher` names `{teacher}`, and there is no such teacher.'
                            f'{nearest_or_all(teacher, known)} Others than `teacher` stand in `teachers`.')
        if not names:
            self.refuse(f'`{key}.teacher` is an empty list. Name a teacher, or several.')
        if len(set(names)) < len(names):
            self.refuse(f'`{key}.teacher` must name each teacher once. Write a name, or a list of different ones.')

    def check_layers(self, key: str, option: Options) -> None:
        layers = VGG_LAYERS.get(option.get('vgg_type', 'vgg19'), ())
        if option.get('layer_weights') == {}:
            self.refuse(f'`{key}.layer_weights` names no layer. Write some, such as {{conv3_1: 1}}.')
        for layer in option.get('layer_weights') or {}:
            if layer not in layers:
                self.refuse(f'`{key}.layer_weights`: there is no layer `{layer}`.{nearest_or_all(layer, layers)}')

    def check_optimizer(self, name: str) -> None:
        kind = get(self.opt, f'train.{name}.type')
        if self.ours and kind in UNFIT_OPTIMIZERS:
            self.refuse(f'`train.{name}.type`: {kind} does not fit this loop, which calls step() without a closure, '
                        'on dense gradients of any shape. Use Adam or AdamW.')
        foreign = {kind: optimizer_class(f'train.{name}.type', kind)} if self.ours and '.' in str(kind) else {}
        self.check_tool(f'train.{name}', 'optimizer', {**OPTIMIZERS, **foreign}, {'lr': 'weight!'})

    def check_scheduler(self) -> None:
        option = self.opt['train'].get('scheduler')
        if not option:
            self.warnings.append('`train.scheduler` is missing: the learning rate stays constant.')
            return
        self.check_tool('train.scheduler', 'scheduler', SCHEDULERS, {})
        if option.get('type') in SCHEDULERS:
            self.check_periods(option, 'periods' if 'periods' in option else 'restarts')

    def check_periods(self, option: Options, name: str) -> None:
        periods, weights = option.get(name, (0, )), option.get('restart_weights', (1, ))
        if len(periods) != len(weights):
            self.refuse(f'`train.scheduler` has {len(periods)} `{name}`, but {len(weights)} `restart_weights`. '
                        'Write as many of one as of the other.')
        total = self.opt['train'].get('total_iter', 0)
        if name == 'periods' and sum(periods) < total:
            self.refuse(f'`train.scheduler.periods` add up to {sum(periods)}, there is no learning rate after that. '
                        f'Make them reach `train.total_iter`, {total}.')

    def check_tool(self, key: str, what: str, choices: Mapping[str, Any], extra: Table) -> None:
        """Checks the section of an optimizer or of a scheduler."""
        option = get(self.opt, key)
        if not option:
            return
        if not self.ours and option.get('type') not in choices:
            self.refuse_in_ours(f'`{key}.type`: no {what} is called `{option.get("type")}`.')
            return
        tool = self.lookup(f'{key}.type', what, option.get('type'), choices)
        table = {**arguments_of(tool, skip=('params', 'optimizer', 'last_epoch')), **extra}
        self.constructor(key, option, table, False, self.refuse_in_ours)

    def check_val(self) -> None:
        val, datasets = self.opt.get('val'), self.opt.get('datasets') or {}
        val_sets = [name for name in datasets if str(name).startswith('val')]
        if val:
            self.table('val', val, self.extended('val', VAL), self.training)
            for key in ('flip_seq', 'center_frame_only') if self.ours else ():
                if val.get(key):
                    self.refuse(f'`val.{key}` is of video models, and not read by {self.opt["model_type"]}. '
                                'Take it out.')
            for name, metric in (val.get('metrics') or {}).items():
                self.check_metric(f'val.metrics.{name}', metric)
        if self.training and val and not val_sets:
            self.warnings.append('`val` has no dataset `datasets.val`: nothing will be validated.')
        if self.training and val_sets and not val:
            self.refuse_in_ours(f'`datasets.{val_sets[0]}` would never be used, there is no section `val`. '
                                'Write `val: {val_freq: 5000, metrics: ...}`, or take the dataset out.')

    def check_metric(self, key: str, metric: Any) -> None:
        require(key, 'dict', metric)
        function = self.lookup(f'{key}.type', 'metric', metric.get('type'), registered(METRIC_REGISTRY))
        table = {**arguments_of(function, skip=('img', 'img2')), **METRIC}
        self.constructor(key, metric, table, swallows_keys(function), self.refuse)
        if is_from(('kd_metrics', ), function):
            self.check_layers(key, metric)
        self.check_package(key, metric['type'], getattr(function, 'package', None))
        if inspect.isclass(function) and not self.ours:
            self.refuse(f'`{key}.type`: {metric["type"]} is of a whole set, which {self.opt["model_type"]} does not '
                        'know. Set `model_type: DistillationModel`, or take the metric out.')
        reference = metric.get('reference', 'gt')
        if reference == 'gt':
            return
        if not self.ours:
            self.refuse(f'`{key}.reference: {reference}` is not read by {self.opt["model_type"]}. '
                        'Set `model_type: DistillationModel`, or write `gt`.')
        if teacher_key(reference) not in teacher_sections(self.opt):
            names = ['gt', *(found.removeprefix('teachers.') for found in teacher_sections(self.opt))]
            self.refuse(f'`{key}.reference: {reference}` needs `{teacher_key(reference)}`, which is missing. Add it, '
                        f'or write {" or ".join(f"`{name}`" for name in names)}.')

    def check_package(self, key: str, metric: str, package: str | None) -> None:
        """Refuses a metric whose optional package is not installed."""
        if package is not None and importlib.util.find_spec(package) is None:
            name = package.replace('_', '-')
            self.refuse(f'`{key}.type`: {metric} needs the package {name}, which is not installed. '
                        f'Run `pip install {name}`, or take the metric out.')
