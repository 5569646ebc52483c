"""Training steps to be compared: this package's, BasicSR's own, and the same written by hand without a framework.

A hand-written step does what its recipe says and nothing else: no check for values that are not finite, no stages, no
log. It starts from the same weights, so that a test can compare what comes out.
"""
from __future__ import annotations

# ruff: noqa: I001
import kd_models  # noqa: F401  first: it makes basicsr importable and registers the networks

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from torch import Tensor, nn

from kd_utils.options import load_yaml

Batch = dict[str, Tensor]
GAN = {'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
       'optim_d': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]}, 'ema_decay': 0.999}
UNET = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3}
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 32, 'num_block': 8, 'upscale': 4}


@dataclass
class Case:
    """A training step.

    Args:
        file: The shipped option file.
        gt_size: Side of a training image.
        batch: Images.
        by_hand: Makes the hand-written step of a model that has not been trained yet.
        stock: BasicSR's model of the same step, where there is one.
        changes: Of the top of the file: a section is updated, anything else replaced.
    """
    file: str
    gt_size: int
    batch: int
    by_hand: Callable[[Any], Callable[[Batch], None]]
    stock: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    def options(self, folder: Path, num_gpu: int = 0, **changes: Any) -> dict[str, Any]:
        """The options as the loop would hand them to a model; teachers have random weights, written to `folder`.

        What is degraded while training, perceptual losses (their weights are downloaded) and validation are left out.
        """
        opt = load_yaml(self.file)
        keys = {'name', 'model_type', 'scale', 'network_g', 'network_d', 'teacher', 'train', 'datasets'}
        opt = {key: value for key, value in opt.items() if key in keys}
        for key, value in [*self.changes.items(), *changes.items()]:
            opt[key] = {**opt.get(key, {}), **value} if isinstance(value, dict) and key != 'network_g' else value
        opt['train'] = {key: value for key, value in opt['train'].items() if key != 'perceptual_opt'}
        for name in ('feature_kd_opt', 'feature_kd_d_opt'):  # the step by hand has one rate for all that learns
            if opt['train'].get(name) is not None:
                opt['train'][name] = {**opt['train'][name], 'adaptor_lr': 1}
        if opt['train'].pop('stages', None):  # the last one, in which all is on
            opt['train']['stages'] = [{'name': 'all', 'iters': opt['train']['total_iter'],
                                       'losses': ['pixel', 'feature_kd', 'gan']}]
        opt.update(num_gpu=num_gpu, manual_seed=0, dist=False, rank=0, world_size=1, is_train=True, logger={},
                   path={'experiments_root': str(folder)})
        opt['datasets'] = {'train': {
            'name': 'random', 'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'phase': 'train',
            'io_backend': {'type': 'disk'}, 'gt_size': self.gt_size, 'use_hflip': True, 'use_rot': True,
            'batch_size_per_gpu': self.batch, 'num_worker_per_gpu': 0}}
        if opt.get('teacher'):
            opt['teacher'] = _with_weights(opt['teacher'], folder)
        return opt

    def data(self, opt: dict[str, Any], device: torch.device) -> Batch:
        """A batch of random images in [0, 1]."""
        generator, side = torch.Generator().manual_seed(1), self.gt_size // opt['scale']
        return {'lq': torch.rand(self.batch, 3, side, side, generator=generator).to(device),
                'gt': torch.rand(self.batch, 3, self.gt_size, self.gt_size, generator=generator).to(device)}

    def ours(self, folder: Path, **changes: Any) -> tuple[Any, Callable[[Batch], None]]:
        """The model and its step."""
        return self._model(self.options(folder, **changes))

    def of_basicsr(self, folder: Path, num_gpu: int = 0) -> tuple[Any, Callable[[Batch], None]]:
        """BasicSR's model and its step."""
        return self._model(self.options(folder, num_gpu, model_type=self.stock))

    @staticmethod
    def _model(opt: dict[str, Any]) -> tuple[Any, Callable[[Batch], None]]:
        torch.manual_seed(0)
        model, iteration = build_model(opt), iter(range(1, 10**9))

        def step(data: Batch) -> None:
            model.feed_data(data)
            model.optimize_parameters(next(iteration))

        return model, step


def _with_weights(teacher: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A `teacher` section whose networks have random weights in files."""
    path = {}
    for key in (key for key in teacher if key.startswith('network_')):
        torch.manual_seed(2)
        label = key.removeprefix('network_')
        path[f'pretrain_network_{label}'] = str(folder / f'{key}.pth')
        torch.save({'params': build_network(teacher[key]).state_dict()}, folder / f'{key}.pth')
    return {**{key: value for key, value in teacher.items() if key != 'path'}, 'path': path}


# --------------------------------------------------------------------------------------------------------- by hand


class _ByHand:
    """Networks like those of a model with their optimizers, and the parts that the steps have in common."""

    def __init__(self, model: Any) -> None:
        self.net_g, self.net_d, self.ema = (
            deepcopy(getattr(model, name, None)) for name in ('net_g', 'net_d', 'net_g_ema'))
        self.criteria = nn.ModuleDict({name: deepcopy(term.criterion) for name, term in model.terms.items()})
        train_opt = model.opt['train']
        self.decay = train_opt.get('ema_decay', 0)
        self.teacher = getattr(model.teachers.get('teacher'), 'net_g', None)
        self.teacher_d = getattr(model.teachers.get('teacher'), 'net_d', None)
        self.optim_g = self._optimizer(train_opt['optim_g'], [self.net_g, *self._trained('g')])
        if self.net_d is not None:
            self.optim_d = self._optimizer(train_opt['optim_d'], [self.net_d, *self._trained('d')])

    def _trained(self, side: str) -> list[nn.Module]:
        return [criterion for name, criterion in self.criteria.items() if name.endswith('_d') == (side == 'd')]

    @staticmethod
    def _optimizer(option: dict[str, Any], nets: list[nn.Module]) -> torch.optim.Optimizer:
        params = [p for net in nets for p in net.parameters() if p.requires_grad]
        fused = {'fused': True} if params[0].is_cuda else {}
        return torch.optim.Adam(params, lr=option['lr'], betas=tuple(option['betas']), **fused)

    def generator(self, lq: Tensor, gt: Tensor) -> Tensor:
        """The generator's loss; a step overrides it. Sets `self.output`."""
        self.output = self.net_g(lq)
        return self.criteria['pixel'](self.output, gt)

    def fool(self) -> Tensor:
        """The adversarial loss of `self.output`."""
        return self.criteria['gan'](self.net_d(self.output), True, is_disc=False)

    def update_g(self, lq: Tensor, gt: Tensor) -> None:
        if self.net_d is not None:
            self.net_d.requires_grad_(False)
        self.optim_g.zero_grad()
        self.generator(lq, gt).backward()
        self.optim_g.step()

    def update_d(self, gt: Tensor) -> None:
        self.net_d.requires_grad_(True)
        self.optim_d.zero_grad()
        for images, real in ((gt, True), (self.output.detach(), False)):
            self.judged(images, real).backward()
        self.optim_d.step()

    def judged(self, images: Tensor, real: bool) -> Tensor:
        """The discriminator's loss on images."""
        return self.criteria['gan'](self.net_d(images), real, is_disc=True)

    @torch.no_grad()
    def average(self) -> None:
        """The EMA."""
        if self.decay:
            of_ema, of_net = list(self.ema.parameters()), list(self.net_g.parameters())
            torch._foreach_mul_(of_ema, self.decay)
            torch._foreach_add_(of_ema, of_net, alpha=1 - self.decay)

    def __call__(self, data: Batch) -> None:
        self.update_g(data['lq'], data['gt'])
        self.forget()
        if self.net_d is not None:
            self.update_d(data['gt'])
            self.forget()
        self.average()

    def forget(self) -> None:
        """Frees what a phase has kept for itself."""


class ByHand(_ByHand):
    """BasicSR's SRModel, or SRGANModel where there is a discriminator."""

    def generator(self, lq: Tensor, gt: Tensor) -> Tensor:
        loss = super().generator(lq, gt)
        return loss if self.net_d is None else loss + self.fool()


class SDAKDByHand(_ByHand):
    """Feature maps of both networks against those of the teachers, by hooks."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.maps: dict[str, dict[str, Tensor]] = {}
        for side, name, net, teacher in (('g', 'feature_kd', self.net_g, self.teacher),
                                         ('d', 'feature_kd_d', self.net_d, self.teacher_d)):
            layers = self.criteria[name].layers
            self._hook(f'student_{side}', net, layers.values())
            self._hook(f'teacher_{side}', teacher, layers)

    def _hook(self, key: str, net: Any, layers: Any) -> None:
        maps, modules = self.maps.setdefault(key, {}), dict(net.named_modules())
        for layer in layers:
            modules[layer].register_forward_hook(
                # an activation in place may follow
                lambda module, inputs, result, layer=layer: maps.__setitem__(layer, result.clone()))

    def generator(self, lq: Tensor, gt: Tensor) -> Tensor:
        pixel = super().generator(lq, gt)
        with torch.no_grad():
            self.teacher(lq)
        adversarial = self.fool()
        return pixel + adversarial + self.criteria['feature_kd'](self.maps['student_g'], self.maps['teacher_g'])

    def judged(self, images: Tensor, real: bool) -> Tensor:
        loss = super().judged(images, real)
        with torch.no_grad():
            self.teacher_d(images)
        return loss + 0.5 * self.criteria['feature_kd_d'](self.maps['student_d'], self.maps['teacher_d'])

    def forget(self) -> None:
        for maps in self.maps.values():
            maps.clear()


class MCADKDByHand(_ByHand):
    """Pixels, the teacher's image, contrast and a discriminator, which is updated first."""

    def generator(self, lq: Tensor, gt: Tensor) -> Tensor:
        pixel = self.criteria['pixel'](self.output, gt)
        adversarial = self.fool()
        response = self.criteria['response_kd'](self.output, self.taught)
        return pixel + adversarial + response + self.criteria['contrastive'](self.output, self.taught)['loss']

    def __call__(self, data: Batch) -> None:
        self.output = self.net_g(data['lq'])
        with torch.no_grad():
            self.taught = self.teacher(data['lq'])
        self.update_d(data['gt'])
        self.update_g(data['lq'], data['gt'])
        self.average()


def cases(small: bool) -> dict[str, Case]:
    """The steps by name: as the shipped files have them, or `small` enough for one thread of a CPU."""
    demo, scale = 'demo/student_alone.yml', {'network_g': EDSR, 'scale': 4}
    gan = {**scale, 'train': GAN, 'network_d': {**UNET, 'num_feat': 16 if small else 64}}
    mcadkd = {**scale, 'teacher': {'network_g': {**EDSR, 'num_feat': 128}}, 'network_d': {'num_feat': 16}}
    compact, rrdb = (f'train/SDAKD/sdakd_realesrgan_{name}_quarter.yml' for name in ('compact_x4', 'x4'))
    return {
        'SRModel': Case(demo, 32, 8, ByHand, 'SRModel'),
        'SRGANModel': Case(demo, *(96, 2) if small else (192, 16), ByHand, 'SRGANModel', gan),
        'SDAKD compact': Case(compact, *(128, 2) if small else (256, 12), SDAKDByHand),
        'MCAD-KD': Case('train/MCADKD/mcadkd_edsr_x4.yml', *(96, 2) if small else (192, 16), MCADKDByHand,
                        changes=mcadkd if small else {}),
        'SDAKD RRDB': Case(rrdb, *(64, 1) if small else (256, 12), SDAKDByHand),
    }
