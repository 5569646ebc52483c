"""The base of all methods: one training step, stages, validation and checkpoints.

The order of everything follows `optimize_parameters`: the stage says which losses are on, the losses say which
forwards they need, `Step` runs these, the losses are summed in one order, `Runtime` applies the update.
"""
from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from os import path as osp
from typing import Any

import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from tqdm import tqdm

from kd_models.adapters import build_adapter
from kd_models.adversary import Adversary
from kd_models.probe import Probe, probe
from kd_models.runtime import Runtime
from kd_models.stages import Stage, Stages
from kd_models.step import Step
from kd_models.taps import Taps, pair_layers
from kd_models.teacher import Teacher
from kd_models.terms import STOCK, TERMS, Term
from kd_utils import checkpoint
from kd_utils.options import OptionError, apply_aliases, check_options


@MODEL_REGISTRY.register()
class DistillationModel(SRModel):
    """Trains a student generator with any of the losses in `TERMS`, with or without a teacher, with or without a GAN.

    With no teacher and BasicSR's losses alone it equals SRModel, SRGANModel (`gan_mode: standard`) or ESRGANModel
    (`gan_mode: relativistic`) bit for bit. The saved student is a plain BasicSR checkpoint.

    Args:
        opt: BasicSR's options with the keys of docs/options.md.

    Raises:
        OptionError: The options do not fit each other or the networks; nothing has been trained.
    """
    losses: dict[str, str | None] = {name: term.default_type for name, term in TERMS.items()}

    def __init__(self, opt: dict[str, Any]) -> None:
        for message in apply_aliases(opt) + check_options(opt, self.losses):  # another project's loop has not done it
            get_root_logger().warning(message)
        self.teacher: Teacher | None = None
        self.net_d: nn.Module | None = None
        self.aux = nn.ModuleDict()
        self.adapter = build_adapter(opt['network_g'])
        device = torch.device('cuda' if opt['num_gpu'] != 0 else 'cpu')
        self.runtime = Runtime(device, opt.get('dist', False))
        super().__init__(opt)
        if not self.is_train and any(_refers_to_teacher(option) for option in self._metrics().values()):
            self.teacher = Teacher(opt['teacher'], self.device)

    # ---------------------------------------------------------------- construction

    def init_training_settings(self) -> None:
        """Builds in the order of the stock models; what is ours draws no random number that theirs would have drawn."""
        train_opt = self.opt['train']
        self.net_g.train()
        self._build_ema(train_opt.get('ema_decay', 0))
        if self.opt.get('network_d'):
            self._build_discriminator()
        with self._own_random_numbers():
            if self.opt.get('teacher'):
                self.teacher = Teacher(self.opt['teacher'], self.device)
        self.adversary = Adversary(self, train_opt.get('gan_mode', 'standard') == 'relativistic')
        self.net_d_iters = train_opt.get('net_d_iters', 1)
        self.net_d_init_iters = train_opt.get('net_d_init_iters', 0)
        self.terms = self._build_terms()
        self.stages = Stages(train_opt, list(self.terms))
        self.stage: Stage | None = None
        self._update = {'simultaneous': self._simultaneous, 'g_first': self._g_first,
                        'd_first': self._d_first}[train_opt.get('update_order', 'simultaneous')]
        self.setup_optimizers()
        self.setup_schedulers()
        self.runtime.synchronize(*self._trained().values(), *([self.net_g_ema] if self.ema_decay else []))
        self._describe()

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
        """The configured losses, in the order of `TERMS`."""
        train_opt, terms = self.opt['train'], {}
        for name, term in TERMS.items():
            option = train_opt.get(f'{name}_opt')
            if option is None:
                continue
            with nullcontext() if name in STOCK else self._own_random_numbers():
                option = {'type': term.default_type, **option}
                terms[name] = term(name, self._build_criterion(name, option), self)
        if train_opt.get('feature_kd_d_opt'):
            with self._own_random_numbers():
                self.cri_feature_kd_d = self._build_criterion('feature_kd_d', train_opt['feature_kd_d_opt'])
        self.cri_gan = terms['gan'].criterion if 'gan' in terms else None
        return terms

    def _build_criterion(self, name: str, option: dict[str, Any]) -> nn.Module:
        if name.startswith('feature_kd'):
            option = self._tap_features(name, option)
        criterion = build_loss(option).to(self.device)
        if any(p.requires_grad for p in criterion.parameters()):
            self.aux[name] = criterion
        return criterion

    def _tap_features(self, name: str, option: dict[str, Any]) -> dict[str, Any]:
        """Sets the taps of feature_kd or feature_kd_d and completes the loss's options with layers and channels."""
        assert self.teacher is not None
        if name == 'feature_kd':
            student, teacher, key = self.net_g, self.teacher.net_g, 'network_g'
            size, calls = self._lq_size(), (self.adapter, self.teacher.adapter)
        else:
            student, teacher, key = self.net_d, self.teacher.net_d, 'network_d'
            size, calls = self._gt_size(), (None, None)
        layers = pair_layers(option.get('layers'), teacher, student, f'train.{name}_opt')
        names = f'{key} (the student)', f'teacher.{key}'
        student_layers = list(dict.fromkeys(layers.values()))
        of_student = probe(student, size, student_layers, calls[0], names[0])
        of_teacher = probe(teacher, size, layers, calls[1], names[1])
        channels = {}
        for teacher_layer, student_layer in layers.items():
            t, s = of_teacher.taps[teacher_layer], of_student.taps[student_layer]
            if t[2:] != s[2:]:
                raise OptionError(f'train.{name}_opt.layers pairs `{teacher_layer}`, maps of {t[2]}x{t[3]}, with '
                                  f'`{student_layer}`, maps of {s[2]}x{s[3]}. Pair layers of one spatial size.')
            channels[teacher_layer] = (s[1], t[1])
        taps = (Taps(student, student_layers, names[0], of_student.overwritten),
                Taps(teacher, layers, names[1], of_teacher.overwritten))
        if name == 'feature_kd':
            self.student_taps, self.teacher_taps = taps
        else:
            self.adversary.taps, self.adversary.teacher_taps = taps
        return {**option, 'layers': layers, 'channels': channels}

    def _gt_size(self) -> tuple[int, int, int, int]:
        """Shape of a training batch of one, (1, C, sH, sW)."""
        size = self.opt['datasets'].get('train', {}).get('gt_size', 64 * self.opt['scale'])
        return (1, self.opt['network_g'].get('num_out_ch', 3), size, size)

    def _lq_size(self) -> tuple[int, int, int, int]:
        """Shape of a training batch of one, (1, C, H, W)."""
        size = self._gt_size()[-1] // self.opt['scale']
        return (1, self.opt['network_g'].get('num_in_ch', 3), size, size)

    @staticmethod
    def _own_random_numbers() -> Any:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        return torch.random.fork_rng(devices=devices)

    def _trained(self) -> dict[str, nn.Module]:
        nets = {'net_g': self.net_g, 'net_d': self.net_d, **{f'aux.{name}': aux for name, aux in self.aux.items()}}
        return {name: net for name, net in nets.items() if net is not None}

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Moves a network to the device; gradients are exchanged by `Runtime`, not by a wrapper."""
        return self.runtime.place(net)

    def setup_optimizers(self) -> None:
        """[optimizer_g] or [optimizer_g, optimizer_d]; each training-only module is a group of one of them."""
        self.optimizers = [self._build_optimizer('g', self.net_g)]
        self.optimizer_g = self.optimizers[0]
        if self.net_d is not None and self.opt['train'].get('optim_d'):
            self.optimizer_d = self._build_optimizer('d', self.net_d)
            self.optimizers.append(self.optimizer_d)

    def _build_optimizer(self, label: str, net: nn.Module) -> torch.optim.Optimizer:
        option = dict(self.opt['train'][f'optim_{label}'])
        groups = [{'params': [p for p in net.parameters() if p.requires_grad]}]
        groups += [{'params': list(aux.parameters())} for name, aux in self.aux.items()
                   if name.endswith('_d') == (label == 'd')]
        return getattr(torch.optim, option.pop('type'))(groups, **option)

    def setup_schedulers(self) -> None:
        """BasicSR's schedulers on every optimizer; a constant rate where none is named."""
        option = self.opt['train'].get('scheduler')
        if not option:
            return
        saved = dict(option)  # the parent pops `type`
        super().setup_schedulers()
        self.opt['train']['scheduler'] = saved

    # ---------------------------------------------------------------- one iteration

    def optimize_parameters(self, current_iter: int) -> None:
        """One update of what the stage trains, from the images of `feed_data`."""
        self._enter_stage(current_iter)
        step = Step(self.lq, {'gt': self.gt, **self.targets()})
        self.loss_tensors: OrderedDict[str, Tensor] = OrderedDict()
        self._update(step, current_iter)
        self.output = step.output.detach()
        if self.ema_decay > 0:
            self.model_ema(self.ema_decay)

    def targets(self) -> dict[str, Tensor]:
        """Ground truths that differ from `gt`, by loss name; none here."""
        return {}

    def _enter_stage(self, iteration: int) -> None:
        stage = self.stages.at(iteration)
        if iteration == stage.start and stage.optimizer == 'fresh':
            for optimizer in self.optimizers:
                optimizer.state.clear()
        if stage is self.stage:
            return
        self.stage = stage
        self.adversary.stage = stage
        if len(self.stages) > 1:
            get_root_logger().info(f'Stage {self.stages.index(stage) + 1} of {len(self.stages)}: {stage}')

    def _updates_generator(self, iteration: int) -> bool:
        assert self.stage is not None
        in_turn = self.net_d is None or (iteration % self.net_d_iters == 0 and iteration > self.net_d_init_iters)
        return bool(self.stage.losses) and in_turn

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
        assert self.stage is not None
        updates = self._updates_generator(iteration)
        needs = {'student'}.union(*(self.terms[name].needs for name in self.stage.losses)) if updates else {'student'}
        with torch.set_grad_enabled(updates):
            step.run(needs, self._forwards(needs))

    def _forwards(self, needs: set[str]) -> dict[str, Callable[[Step], None]]:
        """The forwards by name, in the order in which they run."""
        features = 'teacher_features' in needs
        return {'student': lambda step: self._forward_student(step, features),
                'ema': self._forward_ema,
                'teacher': lambda step: self._forward_teacher(step, features)}

    def _forward_student(self, step: Step, features: bool = False) -> None:
        if features:
            step.output, step.student_features = self.student_taps.run(lambda: self.adapter(self.net_g, step.lq))
        else:
            step.output = self.adapter(self.net_g, step.lq)

    @torch.no_grad()
    def _forward_ema(self, step: Step) -> None:
        step.ema = self.adapter(self.net_g_ema, step.lq)

    def _forward_teacher(self, step: Step, features: bool) -> None:
        assert self.teacher is not None
        step.teacher, step.teacher_features = self.teacher.generate(step.lq, self.teacher_taps if features else None)

    def _generator_phase(self, step: Step, iteration: int) -> None:
        if not self._updates_generator(iteration):
            return
        assert self.stage is not None
        if self.net_d is not None:
            self.net_d.requires_grad_(False)
        self.optimizer_g.zero_grad()
        total: Tensor | float = 0
        for name in self.terms:  # one order for every YAML file
            if name in self.stage.losses:
                for log_name, value in self.terms[name](step).items():
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
        assert self.net_d is not None and self.stage is not None
        self.net_d.requires_grad_(True)
        logs = self.adversary.update_discriminator(step, iteration, distill=self._distills_discriminator())
        self.loss_tensors.update((name, value.detach()) for name, value in logs.items())

    def _distills_discriminator(self) -> bool:
        """feature_kd_d belongs to the stages that distil: those with feature_kd, or all where that is not configured."""
        assert self.stage is not None
        if not hasattr(self, 'cri_feature_kd_d'):
            return False
        return 'feature_kd' in self.stage.losses or 'feature_kd' not in self.terms

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """EMA of parameters, as in BasicSR, and a copy of the buffers, which BasicSR leaves at their initial values."""
        ema, net = list(self.net_g_ema.parameters()), list(self.net_g.parameters())
        torch._foreach_mul_(ema, decay)
        torch._foreach_add_(ema, net, alpha=1 - decay)
        for of_ema, of_net in zip(self.net_g_ema.buffers(), self.net_g.buffers(), strict=True):
            of_ema.copy_(of_net)

    def get_current_log(self) -> dict[str, float]:
        """The last iteration's losses as numbers, averaged over the processes: the only synchronisation with the device.

        All processes must call it, as the training loops do.
        """
        log: dict[str, float] = {}
        if self.loss_tensors:
            values = self.runtime.mean(torch.stack([value.float() for value in self.loss_tensors.values()]))
            log.update(zip(self.loss_tensors, values.tolist(), strict=True))
        if len(self.stages) > 1 and self.stage is not None:
            log['stage'] = float(self.stages.index(self.stage) + 1)
        return log

    # ---------------------------------------------------------------- validation

    def test(self) -> None:
        """`self.output` from `self.lq`, by the EMA generator where there is one."""
        net = getattr(self, 'net_g_ema', self.net_g)
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = self.adapter(net, self.lq)
        net.train(training)

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """BasicSR's validation; it keeps each image's metrics and leaves out those that a set without GT cannot have."""
        dataset = dataloader.dataset.opt['name']
        if self._metrics():
            self._initialize_best_metric_results(dataset)
        images: dict[str, dict[str, float]] = {}
        for data in tqdm(dataloader, unit='image', disable=not self.opt['val'].get('pbar', False), leave=False):
            name = osp.splitext(osp.basename(data['lq_path'][0]))[0]
            if hasattr(self, 'gt'):
                del self.gt  # of the training batch or the image before
            self.feed_data(data)
            self.test()
            image = tensor2img([self.output.cpu()])
            if save_img:
                imwrite(image, self._image_path(dataset, name, current_iter))
            images[name] = self._measure(image)
        self._report_metrics(dataset, images, current_iter, tb_logger)

    def _metrics(self) -> dict[str, dict[str, Any]]:
        return (self.opt.get('val') or {}).get('metrics') or {}

    def _measure(self, image: np.ndarray) -> dict[str, float]:
        """The metrics of the current image against the ground truth, or the teacher's image (`reference: teacher`)."""
        values, references = {}, {}
        for name, option in self._metrics().items():
            source = option.get('reference', 'gt')
            if source not in references:
                references[source] = self._reference(source)
            reference = {} if references[source] is None else {'img2': references[source]}
            if reference or _needs_no_reference(option):
                option = {key: value for key, value in option.items() if key != 'reference'}
                values[name] = float(calculate_metric({'img': image, **reference}, option))
        return values

    def _reference(self, source: str) -> np.ndarray | None:
        if source == 'gt':
            return tensor2img([self.gt.cpu()]) if hasattr(self, 'gt') else None
        assert self.teacher is not None
        return tensor2img([self.teacher.generate(self.lq)[0].cpu()])

    def _image_path(self, dataset: str, name: str, current_iter: int | str) -> str:
        root = self.opt['path']['visualization']
        if self.opt['is_train']:
            return osp.join(root, name, f'{name}_{current_iter}.png')
        return osp.join(root, dataset, f'{name}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _report_metrics(self, dataset: str, images: dict[str, dict[str, float]], current_iter: int | str,
                        tb_logger: Any) -> None:
        measured = next(iter(images.values()), {})
        skipped = [metric for metric in self._metrics() if metric not in measured]
        if skipped:
            get_root_logger().warning(f'{dataset} has no ground truth; left out: {", ".join(skipped)}.')
        self.metric_results = {metric: sum(values[metric] for values in images.values()) / len(images)
                               for metric in measured}
        if not self.metric_results:
            return
        for metric, value in self.metric_results.items():
            self._update_best_metric_result(dataset, metric, value, current_iter)
        self._log_validation_metric_values(current_iter, dataset, tb_logger)
        self._write_metrics(dataset, images, current_iter)

    def _write_metrics(self, dataset: str, images: dict[str, dict[str, float]], current_iter: int | str) -> None:
        """For `kd-compare`: a line per validation while training, a file with each image's values in a test."""
        if self.opt['is_train']:
            line = {'iter': current_iter, 'dataset': dataset, 'metrics': self.metric_results}
            with open(osp.join(self.opt['path']['experiments_root'], 'validation.jsonl'), 'a') as file:
                file.write(json.dumps(line) + '\n')
            return
        root = self.opt['path'].get('results_root') or osp.dirname(self.opt['path']['visualization'])
        with open(osp.join(root, f'metrics_{dataset}.json'), 'w') as file:
            json.dump({'dataset': dataset, 'mean': self.metric_results, 'images': images}, file, indent=1)

    # ---------------------------------------------------------------- checkpoints

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes net_g (`params`, `params_ema`), net_d, and then the training state."""
        if self.ema_decay > 0:
            self.save_network([self.net_g, self.net_g_ema], 'net_g', current_iter, ['params', 'params_ema'])
        else:
            self.save_network(self.net_g, 'net_g', current_iter)
        if self.net_d is not None:
            self.save_network(self.net_d, 'net_d', current_iter)
        self.save_training_state(epoch, current_iter)

    @master_only
    def save_network(self, net: Any, net_label: str, current_iter: int, param_key: Any = 'params') -> None:
        """As BasicSR's, but written whole or not at all, and never ignoring a failure."""
        nets, keys = (net, param_key) if isinstance(net, list) else ([net], [param_key])
        states = {key: {name: value.cpu() for name, value in n.state_dict().items()}
                  for n, key in zip(nets, keys, strict=True)}
        label = 'latest' if current_iter == -1 else current_iter
        checkpoint.save(states, osp.join(self.opt['path']['models'], f'{net_label}_{label}.pth'))

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """BasicSR's state with the training-only modules and the best metrics beside it."""
        if current_iter == -1:
            return
        state = {'epoch': epoch, 'iter': current_iter,
                 'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
                 'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
                 'aux': self.aux.state_dict(),
                 'best_metric_results': getattr(self, 'best_metric_results', {})}
        checkpoint.save(state, osp.join(self.opt['path']['training_states'], f'{current_iter}.state'))

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restores optimizers, schedulers, training-only modules and best metrics."""
        super().resume_training(resume_state)
        self.aux.load_state_dict(resume_state.get('aux', {}))
        if resume_state.get('best_metric_results'):
            self.best_metric_results = resume_state['best_metric_results']

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params') -> None:
        """As BasicSR's, reading no code, taking bare state dicts, and naming what does not fit."""
        get_root_logger().info(f'Loading {type(net).__name__} from {load_path}, with param key: [{param_key}].')
        checkpoint.load_network(net, load_path, strict, param_key)

    # ---------------------------------------------------------------- what is about to happen

    def _describe(self) -> None:
        """Checks that teacher and student answer alike, and logs what is trained, what is frozen and what each costs."""
        rows = {'student net_g': probe(self.net_g, self._lq_size(), (), self.adapter, 'network_g')}
        if self.teacher is not None:
            rows['teacher net_g'] = probe(self.teacher.net_g, self._lq_size(), (), self.teacher.adapter,
                                          'teacher.network_g')
        for name, row in rows.items():
            if row.shape != self._gt_size():
                raise OptionError(f'{name} turns an LR crop of {_by(row.size)} into {_by(row.shape)}, not into the GT '
                                  f'crop of {_by(self._gt_size())}. Set its scale to {self.opt["scale"]}, '
                                  'or name a network of that scale.')
        for name, net in (('student net_d', self.net_d), ('teacher net_d', self.teacher and self.teacher.net_d)):
            if net is not None:
                rows[name] = probe(net, self._gt_size(), (), None, name)
        get_root_logger().info('Networks, for one training crop:\n' + _table(rows))
        counts = {name: sum(p.requires_grad for p in net.parameters()) for name, net in self._trained().items()}
        frozen = [name for name in rows if name.startswith('teacher')]
        get_root_logger().info('Trained tensors: ' + ', '.join(f'{name} {count}' for name, count in counts.items())
                               + '. Frozen: ' + (', '.join(frozen) or 'none') + '.')


def _refers_to_teacher(metric_opt: dict[str, Any]) -> bool:
    return metric_opt.get('reference') == 'teacher'


def _needs_no_reference(metric_opt: dict[str, Any]) -> bool:
    return 'niqe' in metric_opt['type']


def _by(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape[-2:]))


def _table(rows: dict[str, Probe]) -> str:
    """Parameters, multiply-adds, size on disk, and the teacher's as a multiple of the student's."""
    lines = [f'\t{"":14}{"params":>14}{"MACs":>12}{"input":>10}{"fp32 on disk":>14}{"params, MACs vs student":>26}']
    for name, row in rows.items():
        student = rows.get(name.replace('teacher', 'student'), row)
        ratio = f'{row.params / student.params:.1f}x, {row.macs / max(student.macs, 1):.1f}x' if row is not student else ''
        lines.append(f'\t{name:14}{row.params:>14,}{row.macs / 1e9:>10.3f} G{_by(row.size):>10}'
                     f'{row.megabytes:>10.2f} MiB{ratio:>26}')
    return '\n'.join(lines)
