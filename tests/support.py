"""Options, batches and comparisons that many tests share."""
from __future__ import annotations

from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from kd_data.draws import seed_everything
from kd_models.distillation_model import DistillationModel
from kd_utils.options import OptionError, check_options

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 2}
TEACHER = {**EDSR, 'num_feat': 12, 'num_block': 4}
UNET = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
GAN = {'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
       'optim_d': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]}}


ORDERS = ['simultaneous', 'g_first', 'd_first']

# The changes that make a GAN with adaptors of `train_yaml`.
GAN_YAML = {'network_d': dict(UNET),
            'train__gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
            'train__optim_d': {'type': 'Adam', 'lr': 1e-3}, 'train__feature_kd_opt': {'type': 'MLPFeatureLoss'}}

GCFSR = {'type': 'GCFSR', 'out_size': 32, 'narrow': 1 / 64, 'num_style_feat': 8, 'cond_norm': 8}
GCFSR_TEACHER = {**GCFSR, 'narrow': 1 / 32}
GCFSR_D = {'type': 'GCFSRDiscriminator', 'out_size': 32, 'narrow': 1 / 64}


def face_set(folder) -> dict:
    """A training set of faces of 32x32."""
    return {'name': 'Faces', 'type': 'FaceScaleDataset', 'dataroot_gt': str(folder), 'io_backend': {'type': 'disk'},
            'gt_size': 32, 'downsample_list': [8, 8, 4, 2], 'use_hflip': True}


def face_options(folder, train: dict | None = None, **top) -> dict:
    """`model_options` for GCFSR on 32x32 faces, its discriminator, and the order of its authors."""
    recipe = {'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 0.01}, 'ema_decay': 0.9,
              'optim_d': {'type': 'Adam', 'lr': 2e-3, 'betas': [0.0, 0.99]}, 'update_order': 'd_first',
              'r1_reg_weight': 10, 'net_d_reg_every': 2}
    networks = {'network_g': dict(GCFSR), 'network_d': dict(GCFSR_D), 'scale': 4}
    options = model_options(folder, {**recipe, **(train or {})}, **{**networks, **top})
    options['datasets']['train'] = {**face_set('faces'), 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2,
                                    'phase': 'train'}
    return options


def face_batches(count: int) -> list[dict]:
    """Random enlarged faces and ground truths in [-1, 1], of several scales."""
    return [{'lq': item['lq'] * 2 - 1, 'gt': item['gt'] * 2 - 1, 'scale': torch.tensor([[8.], [2.]])}
            for item in batches(count, size=32, scale=1)]


class WithBatchNorm(nn.Module):
    """A generator x2 with statistics in its buffers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PixelShuffle(2))

    def forward(self, x):
        return self.net(x)


@cache
def random_vgg(name: str) -> SimpleNamespace:
    """The first four blocks of `vgg16` or `vgg19` with random weights, made once: each of torchvision's draws 144 M."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SimpleNamespace(features=make_layers(cfgs[{'vgg16': 'D', 'vgg19': 'E'}[name]][:13], batch_norm=False))


def save_teacher(folder, network_g=None, network_d=None) -> dict:
    """A `teacher` section with freshly initialised weights saved in `folder`."""
    section: dict = {'network_g': dict(network_g or TEACHER), 'path': {}}
    networks = {'g': section['network_g']}
    if network_d:
        networks['d'] = section['network_d'] = dict(network_d)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        for label, option in networks.items():
            net = build_network(option)
            if label == 'd':
                for _ in range(20):  # spectral norm's power iteration, as in a trained one
                    net(torch.rand(1, 3, 32, 32))
            torch.save({'params': net.state_dict()}, folder / f'teacher_{label}.pth')
            section['path'][f'pretrain_network_{label}'] = str(folder / f'teacher_{label}.pth')
    return section


def model_options(folder, train: dict | None = None, **top) -> dict:
    """Options as `parse_options` leaves them, for a model that is built directly."""
    for name in ('models', 'training_states'):
        (folder / name).mkdir(exist_ok=True)
    options = {
        'name': 'test', 'model_type': 'DistillationModel', 'scale': 2, 'num_gpu': 0, 'manual_seed': 0,
        'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True,
        'network_g': dict(EDSR),
        'datasets': {'train': {'name': 'Tiny', 'type': 'PairedImageDataset', 'dataroot_gt': 'hr', 'dataroot_lq': 'lr',
                               'io_backend': {'type': 'disk'}, 'gt_size': 32, 'use_hflip': True, 'use_rot': True,
                               'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'phase': 'train'}},
        'path': {'experiments_root': str(folder), 'models': str(folder / 'models'),
                 'training_states': str(folder / 'training_states'), 'visualization': str(folder / 'visualization')},
        'train': {'total_iter': 100, 'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
                  'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]},
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [50], 'gamma': 0.5}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 100, 'use_tb_logger': False},
    }
    options['train'].update(deepcopy(train or {}))
    options.update(deepcopy(top))
    return options


def gan_options(folder, train: dict | None = None, **top) -> dict:
    """`model_options` with a U-Net discriminator."""
    return model_options(folder, {**deepcopy(GAN), **(train or {})}, **{'network_d': dict(UNET), **top})


def full_options(folder, **changes) -> dict:
    """`gan_options` with a teacher and the base's losses that need no file: everything that it can train."""
    losses = {'response_kd_opt': {'type': 'L1Loss', 'loss_weight': 0.5}, 'feature_kd_opt': {'type': 'MLPFeatureLoss'},
              'feature_kd_d_opt': {'type': 'MLPFeatureLoss'}, 'ldl_opt': {'type': 'L1Loss'}, 'ema_decay': 0.9,
              'r1_reg_weight': 10, 'net_d_reg_every': 2}
    return gan_options(folder, {**losses, **changes}, teacher=save_teacher(folder, TEACHER, {**UNET, 'num_feat': 8}))


def build(options: dict):
    """The model of these options, the same each time."""
    torch.manual_seed(1)
    return build_model(options)


def batches(count: int, size: int = 16, scale: int = 2, batch: int = 2) -> list[dict]:
    """`count` batches of random LR and GT images in [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    return [{'lq': torch.rand(batch, 3, size, size, generator=generator),
             'gt': torch.rand(batch, 3, size * scale, size * scale, generator=generator)} for _ in range(count)]


def train(model, data: list[dict], first: int = 1) -> list[dict]:
    """Runs a model over batches as the loop does; its losses of every iteration."""
    logs = []
    for iteration, item in enumerate(data, first):
        model.update_learning_rate(iteration)
        model.feed_data(item)
        model.optimize_parameters(iteration)
        logs.append(dict(model.get_current_log()))
    return logs


def train_seeded(model, data: list[dict], first: int = 1) -> list[dict]:
    """`train` with each iteration's random numbers seeded by its number, as in the loop; the data stay as they are."""
    logs = []
    for iteration, item in enumerate(data, first):
        seed_everything(0, iteration)
        copy = {name: value.clone() if torch.is_tensor(value) else value for name, value in item.items()}
        logs += train(model, [copy], iteration)
    return logs


def stopped_and_resumed(build, folder, data: list[dict], stop: int) -> tuple:
    """Two models of `build()` trained alike: in one go, and stopped after `stop` batches, saved and resumed."""
    whole = build()
    start, adaptors = weights(whole.net_g), weights(whole.aux)
    train_seeded(whole, data)
    averaged = hasattr(whole, 'net_g_ema')
    part = build()
    part.net_g.load_state_dict(start)
    part.aux.load_state_dict(adaptors)
    if averaged:
        part.model_ema(0)
    train_seeded(part, data[:stop])
    part.save(0, stop)
    resumed = build()
    saved = str(folder / f'models/net_g_{stop}.pth')
    resumed.load_network(resumed.net_g, saved)
    if averaged:
        resumed.load_network(resumed.net_g_ema, saved, True, 'params_ema')
    resumed.resume_training(torch.load(folder / f'training_states/{stop}.state', weights_only=True))
    train_seeded(resumed, data[stop:], stop + 1)
    return whole, resumed


def refusal(options: dict) -> str:
    """The message with which options are refused, by the check or by the model's construction."""
    model = MODEL_REGISTRY.get(options['model_type'])
    with pytest.raises(OptionError) as error:
        if issubclass(model, DistillationModel):
            model.complete(options)
        check_options(options, DistillationModel.losses)
        build_model(options)
    return str(error.value)


def weights(net) -> dict:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_equal_weights(a: dict, b: dict) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def write_yaml(path, options: dict):
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def train_yaml(images, **changes) -> dict:
    """The options of a tiny run as a user would write them."""
    data = {'name': 'Tiny', 'type': 'PairedImageDataset', 'dataroot_gt': str(images / 'hr'),
            'dataroot_lq': str(images / 'lr'), 'io_backend': {'type': 'disk'}}
    options = {
        'name': 'tiny', 'model_type': 'DistillationModel', 'scale': 2, 'num_gpu': 0, 'manual_seed': 0,
        'datasets': {'train': {**data, 'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0,
                               'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 1, 'prefetch_mode': None},
                     'val': deepcopy(data)},
        'network_g': dict(EDSR),
        'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
        'train': {'ema_decay': 0.9, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]},
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [5], 'gamma': 0.5}, 'total_iter': 8,
                  'warmup_iter': -1, 'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}},
        'val': {'val_freq': 4, 'save_img': False,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}}},
        'logger': {'print_freq': 2, 'save_checkpoint_freq': 4, 'use_tb_logger': False, 'wandb': {'project': None}},
    }
    for path, value in changes.items():
        *parents, last = path.split('__')
        section = options
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = deepcopy(value)
    return options
