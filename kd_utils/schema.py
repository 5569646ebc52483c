"""What an option file may say: the key tables of every section, then the check against them.

The tables map a key to the kind of its value, a word of `KINDS`, or the allowed words joined by `|`. A kind may end in

    ?         the value may also be `~`
    !         the key must be there
    !train    the key must be there for training

Constructors (networks, losses, optimizers, schedulers, metrics) have no table: their signatures are turned into one.
A model of this package has a class attribute `losses`. What it does not know is refused; what a model of another
project may know becomes a warning. Classes extend the tables themselves: a model by `option_keys`, full key -> kind,
such as `{'train.queue': 'size'}`, and by `needs`, like NEEDS; a dataset by `option_keys`, key -> kind; a loss by
`supplied`, the constructor's arguments that come from the model, and `options`, the keys that the model reads. A model
whose `latent_size` is not None makes images from noise.
"""
from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

Options = dict[str, Any]
Table = Mapping[str, str]


class OptionError(ValueError):
    """Something that the user wrote cannot work; the message says what to write instead."""


# ------------------------------------------------------------------------------------------------------------- kinds


def _is_number(value: Any) -> bool:
    # comparing leaves out inf and nan, and does not overflow on an int of 400 digits as math.isfinite does
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _is_int(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_decay(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_name(value: Any) -> bool:
    # a folder or file is called so, and must not be another one's
    return _is_text(value) and not set('/\\') & set(value) and value.strip() not in ('.', '..')


def _is_template(value: Any) -> bool:
    return _is_text(value) and value.count('{}') == 1 and not set('{}') & set(value.replace('{}', ''))


def _is_list(value: Any, item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(item, value))


# Of basicsr.data.degradations.random_mixed_kernels.
BLUR_KERNELS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')

KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'any': (lambda v: True, 'a value'),
    'bool': (lambda v: isinstance(v, bool), 'true or false'),
    'str': (_is_text, 'text, in quotes where it looks like a number'),
    'text': (lambda v: isinstance(v, str), 'text, in quotes where it looks like a number'),
    'name': (_is_name, 'text, in quotes where it looks like a number, without / and \\'),
    'path': (_is_text, 'a path'),
    'y': (lambda v: v == 'y', '`y`'),
    'template': (_is_template, 'a name with {} where the GT name stands, as in {}x4'),
    'int': (_is_int, 'a whole number'),
    'count': (lambda v: _is_int(v) and v >= 0, 'a whole number, 0 or above'),
    'size': (lambda v: _is_int(v) and v > 0, 'a whole number above 0'),
    'iters': (lambda v: _is_whole(v) and v > 0, 'a whole number above 0, such as 5000 or 5e3'),
    'warmup': (lambda v: _is_whole(v) and v >= -1, 'a number of iterations, or -1 for no warm-up'),
    'gpus': (lambda v: v == 'auto' or _is_int(v) and v >= 0, '`auto` or a number of GPUs'),
    'number': (_is_number, 'a number, such as 0.1 or 1.0e-4'),
    'weight': (lambda v: _is_number(v) and v >= 0, 'a number, 0 or above, such as 0.1 or 1.0e-4'),
    'ratio': (lambda v: _is_number(v) and v > 0, 'a number above 0'),
    'prob': (lambda v: _is_number(v) and 0 <= v <= 1, 'a number from 0 to 1'),
    'decay': (_is_decay, 'a number from 0 up to, but not including, 1, such as 0.999'),
    'power': (lambda v: _is_int(v) and v in (32, 64, 128, 256, 512, 1024), 'a power of two from 32 to 1024'),
    'side': (lambda v: _is_int(v) and v in (4, 8, 16, 32, 64, 128, 256, 512, 1024), 'a power of two from 4 to 1024'),
    'largest': (lambda v: _is_number(v) and v >= 1, 'a number, 1 or above, such as 32'),
    'list': (lambda v: isinstance(v, list | tuple), 'a list, such as [1, 2]'),
    'numbers': (lambda v: _is_list(v, _is_number), 'a list of numbers, such as [1, 2]'),
    'scales': (lambda v: _is_list(v, lambda scale: _is_int(scale) and scale > 0) and len(v) > 0,
               'a list of whole numbers above 0, such as [32, 16, 8, 4]'),
    'channels': (lambda v: _is_list(v, _is_number) and len(v) in (1, 3), 'a list of three numbers, or of one'),
    'betas': (lambda v: _is_list(v, _is_decay) and len(v) == 2,
              'a list of two numbers from 0 up to, but not including, 1, such as [0.9, 0.99]'),
    'range': (lambda v: _is_list(v, _is_number) and len(v) == 2 and 0 <= v[0] <= v[1],
              'a list [lowest, highest] of numbers, 0 or above'),
    'odds': (lambda v: _is_list(v, _is_number) and len(v) == 3 and min(v) >= 0 < sum(v),
             'a list of three odds, not all 0: up, down, keep'),
    'shares': (lambda v: _is_list(v, _is_number) and len(v) > 0 and min(v) >= 0 < sum(v),
               'a list of numbers, 0 or above and not all 0'),
    'weights': (lambda v: _is_list(v, lambda item: _is_number(item) and item >= 0),
                'a list of numbers, 0 or above, such as [1, 2]'),
    'sides': (lambda v: KINDS['scales'][0](v) and len(v) == 2,
              'a list of two whole numbers above 0, height and width'),
    'kernels': (lambda v: _is_list(v, lambda name: name in BLUR_KERNELS) and len(v) > 0,
                f'a list of: {", ".join(BLUR_KERNELS)}'),
    'quality': (lambda v: KINDS['range'][0](v) and v[0] >= 1 and v[1] <= 100,
                'a list [lowest, highest] within 1 to 100'),
    'words': (lambda v: _is_list(v, _is_text), 'a list of names, such as [a, b]'),
    'dict': (lambda v: isinstance(v, dict), 'a section, keys with values under it'),
    'factors': (lambda v: isinstance(v, dict), 'a section of numbers, such as {conv5_4: 1}'),
    'pairs': (lambda v: isinstance(v, dict) and all(map(_is_text, (*v, *v.values()))),
              'names in pairs, in quotes where they look like numbers, such as {body.16: body.4}'),
    'dicts': (lambda v: _is_list(v, lambda item: isinstance(item, dict)), 'a list of sections, one `- {...}` each'),
}

# ------------------------------------------------------------------------------------------------------------ tables

TOP: Table = {
    'name': 'name!', 'model_type': 'str!', 'datasets': 'dict!', 'network_g': 'dict!', 'scale': 'size!',
    'num_gpu': 'gpus!', 'manual_seed': 'count?', 'network_d': 'dict?', 'teacher': 'dict?', 'path': 'dict?',
    'train': 'dict!train', 'val': 'dict?', 'logger': 'dict!train', 'dist_params': 'dict?',
    'find_unused_parameters': 'bool',
}
# Set at the top of the options while they are read.
RUN: Table = {
    'rank': 'count', 'world_size': 'size', 'dist': 'bool', 'root_path': 'path', 'is_train': 'bool',
    'auto_resume': 'bool',
}

# At the top of the file too: the second-order degradation of Real-ESRGAN.
DEGRADATION: Table = {
    'resize_prob': 'odds', 'resize_range': 'range', 'gaussian_noise_prob': 'prob', 'noise_range': 'range',
    'poisson_scale_range': 'range', 'gray_noise_prob': 'prob', 'jpeg_range': 'quality', 'second_blur_prob': 'prob',
    'resize_prob2': 'odds', 'resize_range2': 'range', 'gaussian_noise_prob2': 'prob', 'noise_range2': 'range',
    'poisson_scale_range2': 'range', 'gray_noise_prob2': 'prob', 'jpeg_range2': 'quality', 'gt_size': 'size',
}
REAL_ESRGAN: Table = {
    **DEGRADATION, 'high_order_degradation': 'bool', 'degradation': 'exact|fast', 'queue_size': 'size',
    'gt_usm': 'bool', 'l1_gt_usm': 'bool', 'percep_gt_usm': 'bool', 'gan_gt_usm': 'bool',
}

# RealESRGANDataset cuts or pads every image to this size.
REAL_ESRGAN_CROP = 400

# Of each network X that the file has, besides PATH. BasicSR makes a folder of every key without a word of NO_FOLDER.
NO_FOLDER = ('strict_load', 'pretrain_network', 'resume', 'param_key')
PATH_OF_NETWORK: Table = {'pretrain_network_': 'path?', 'param_key_': 'str?', 'strict_load_': 'bool'}
PATH: Table = {
    'resume_state': 'path?', 'ignore_resume_networks': 'words?',
}
# Set in `path` while the options are read.
FOLDERS: Table = {
    'experiments_root': 'path', 'results_root': 'path', 'models': 'path', 'training_states': 'path', 'log': 'path',
    'visualization': 'path',
}

TEACHER: Table = {'network_g': 'dict!', 'network_d': 'dict?', 'path': 'dict!', 'cache': 'path?'}

# BasicSR's names of losses; those of other names are this package's.
STOCK_LOSSES = ('pixel', 'ldl', 'perceptual', 'gan')
# Keys of `train` that BasicSR's models do not know, and those that are of no use without a discriminator.
OUR_TRAIN_KEYS = ('stages', 'update_order', 'gan_mode', 'ema_ramp_up', 'grad_clip', 'max_bad_steps')
ADVERSARIAL_KEYS = ('update_order', 'gan_mode', 'net_d_iters', 'net_d_init_iters', 'net_d_reg_every', 'r1_reg_weight',
                    'gp_reg_weight', 'weight_clip')

# Besides these: <name>_opt of every loss.
TRAIN: Table = {
    'optim_g': 'dict!', 'optim_d': 'dict?', 'scheduler': 'dict?', 'total_iter': 'iters!', 'warmup_iter': 'warmup',
    'ema_decay': 'decay', 'ema_ramp_up': 'ratio?', 'stages': 'dicts?', 'update_order': 'simultaneous|g_first|d_first',
    'gan_mode': 'standard|relativistic', 'net_d_iters': 'size', 'net_d_init_iters': 'count', 'net_d_reg_every': 'size',
    'r1_reg_weight': 'weight', 'grad_clip': 'ratio?', 'max_bad_steps': 'size',
}
TERM_KEYS: dict[str, Table] = {
    'self_distill': {'loss_weight': 'weight', 'augment': 'bool', 'start_iter': 'count'},
}
STAGE: Table = {
    'name': 'str!', 'iters': 'iters!', 'losses': 'words!', 'train_d': 'bool', 'weights': 'dict?',
    'optimizer': 'keep|fresh', 'ema': 'keep|fresh', 'adaptors': 'keep|fresh', 'discriminator': 'student|teacher',
    'phase': 'size?',
}

VAL: Table = {'val_freq': 'iters!train', 'save_img': 'bool', 'suffix': 'name?', 'pbar': 'bool', 'metrics': 'dict?',
              'flip_seq': 'bool', 'center_frame_only': 'bool', 'self_ensemble': 'bool'}
METRIC: Table = {'type': 'str!', 'better': 'higher|lower', 'reference': 'gt|teacher'}
LOGGER: Table = {'print_freq': 'iters!train', 'save_checkpoint_freq': 'iters!train', 'keep_last': 'size?',
                 'keep_best': 'str?', 'use_tb_logger': 'bool', 'wandb': 'dict?'}
WANDB: Table = {'project': 'str?', 'resume_id': 'str?'}
DIST_PARAMS: Table = {'backend': 'nccl|gloo|mpi', 'port': 'size'}

# Of every dataset: what BasicSR's loader reads (use_shuffle stands in its files, though nothing reads it).
LOADER: Table = {
    'name': 'name!', 'type': 'str!', 'phase': 'train|val|test', 'scale': 'size', 'io_backend': 'dict!',
    'num_worker_per_gpu': 'count!train', 'batch_size_per_gpu': 'size!train', 'dataset_enlarge_ratio': 'ratio',
    'prefetch_mode': 'cpu|cuda?', 'num_prefetch_queue': 'size', 'pin_memory': 'bool', 'persistent_workers': 'bool',
    'use_shuffle': 'bool',
}
IO_BACKEND: Table = {
    'type': 'disk|lmdb|memcached!', 'readonly': 'bool', 'lock': 'bool', 'readahead': 'bool', 'db_paths': 'any',
    'client_keys': 'any', 'server_list_cfg': 'path', 'client_cfg': 'path', 'sys_path': 'path?',
}
_NORMALIZE = {'mean': 'channels?', 'std': 'channels?'}
_AUGMENT = {'gt_size': 'size!train', 'use_hflip': 'bool!train', 'use_rot': 'bool!train'}
_PAIR = {'dataroot_gt': 'path!', 'dataroot_lq': 'path!'}
_CLIPS = {**_PAIR, **_AUGMENT, 'dataroot_flow': 'path?', 'meta_info_file': 'path!', 'num_frame': 'size!',
          'random_reverse': 'bool'}
_REDS = {**_CLIPS, 'val_partition': 'REDS4|official!', 'interval_list': 'numbers', 'test_mode': 'bool',
         'flip_sequence': 'bool'}
_VIDEO = {**_PAIR, 'meta_info_file': 'path', 'cache_data': 'bool!', 'num_frame': 'size!', 'padding': 'str'}
_KERNELS = {'blur_kernel_size': 'size!', 'kernel_list': 'kernels!', 'kernel_prob': 'shares!', 'blur_sigma': 'range!',
            'betag_range': 'range!', 'betap_range': 'range!', 'sinc_prob': 'prob!'}
DATASETS: dict[str, Table] = {
    'PairedImageDataset': {**_PAIR, **_AUGMENT, **_NORMALIZE, 'meta_info_file': 'path?', 'filename_tmpl': 'template',
                           'color': 'y?'},
    'SingleImageDataset': {**_NORMALIZE, 'dataroot_lq': 'path!', 'meta_info_file': 'path', 'color': 'y?'},
    'RealESRGANDataset': {**_AUGMENT, 'gt_size': 'size', 'dataroot_gt': 'path!', 'meta_info': 'path',
                          **_KERNELS, **{f'{key}2': kind for key, kind in _KERNELS.items()},
                          'final_sinc_prob': 'prob!'},
    'RealESRGANPairedDataset': {**_PAIR, **_AUGMENT, **_NORMALIZE, 'meta_info': 'path?', 'filename_tmpl': 'template'},
    'FFHQDataset': {'dataroot_gt': 'path!', 'mean': 'channels!', 'std': 'channels!', 'use_hflip': 'bool!',
                    'use_rot': 'bool', 'gt_size': 'size'},
    'REDSDataset': _REDS,
    'REDSRecurrentDataset': _REDS,
    'Vimeo90KDataset': _CLIPS,
    'Vimeo90KRecurrentDataset': {**_CLIPS, 'flip_sequence': 'bool!'},
    'VideoTestDataset': _VIDEO,
    'VideoTestVimeo90KDataset': {**_VIDEO, 'meta_info_file': 'path!'},
    'VideoTestDUFDataset': {**_VIDEO, 'use_duf_downsampling': 'bool!'},
    'VideoRecurrentTestDataset': _VIDEO,
}

# The top packages of this project, and those of the classes to which the names in ARGUMENTS apply.
OUR_PACKAGES = ('kd_arch', 'kd_data', 'kd_losses', 'kd_metrics', 'kd_models', 'kd_utils')
KNOWN_PACKAGES = ('basicsr', 'torch', *OUR_PACKAGES)
# Constructor arguments whose kind neither their default nor their annotation tells, or tells too loosely.
ARGUMENTS: Table = {
    **dict.fromkeys(('num_in_ch', 'num_out_ch', 'num_feat', 'num_block', 'num_group', 'num_grow_ch', 'num_conv',
                     'num_channel', 'num_style_feat', 'upscale', 'scale', 'input_size', 'num_mlp',
                     'stddev_group', 'in_chans', 'embed_dim', 'window_size', 'squeeze_factor', 'layers_per_block',
                     'norm_num_groups', 'patch_size', 'num_patches', 'k_image', 'k_patch', 'd_emb'), 'size'),
    **dict.fromkeys(('narrow', 'channel_multiplier', 'img_range', 'res_scale', 'mlp_ratio', 'lr_mlp', 'cond_norm',
                     'tau', 'tau_min', 'tau_max'), 'ratio'),
    **dict.fromkeys(('loss_weight', 'perceptual_weight', 'style_weight', 'image_weight', 'patch_weight',
                     'weight_decay', 'lr', 'eta_min', 'gamma', 'eps'), 'weight'),
    **dict.fromkeys(('drop_rate', 'attn_drop_rate', 'drop_path_rate', 'dropout'), 'prob'),
    **dict.fromkeys(('depths', 'num_heads', 'block_out_channels'), 'scales'),
    **dict.fromkeys(('milestones', 'periods', 'restarts', 'restart_weights'), 'weights'),
    'gan_type': 'vanilla|lsgan|wgan|wgan_softplus|hinge', 'reduction': 'none|mean|sum', 'criterion': 'l1|l2|fro',
    'vgg_type': '|'.join(VGG_LAYERS), 'layer_weights': 'factors', 'layers': 'pairs?', 'crop_border': 'count',
    'betas': 'betas', 'act_type': 'text', 'with_idt': 'bool',
    'out_size': 'side', 'resample_kernel': 'shares',  # of StyleGAN2
}
# Class -> arguments that take more than their default tells.
ARGUMENTS_OF: dict[str, Table] = {
    **dict.fromkeys(('GCFSR', 'GCFSR_blind'), {'out_size': 'power!', 'cond_norm': 'largest?'}),
    'GCFSRDiscriminator': {'out_size': 'power!'},
    **dict.fromkeys(('StyleGAN2Generator', 'StyleGAN2Discriminator'), {'out_size': 'side!'}),
    'SwinIR': {'img_size': 'size or sides', 'patch_size': 'size or sides'},
    'DenoisingPhaseNet': {'scale': 'size', 'phases': 'size', 'num_block': 'size', 'noise': 'paired|zero',
                          'seed': 'count', 'sizes': 'list?'},
    'PhaseDecoder': {'size': 'size'},
    'PhaseDiscriminators': {'sizes': 'list!'},
    'DiffusionUNet': {'prediction_type': 'epsilon|v_prediction|sample', 'dropout': 'decay',
                      'scale': 'size', 'size': 'size?', 'steps': 'size', 'timesteps': 'size', 'seed': 'count',
                      'tile': 'count', 'tile_pad': 'count'},
    'LPIPSLoss': {'net': 'vgg|alex|squeeze'},
    'calculate_lpips': {'net': 'vgg|alex|squeeze'},
    'RandomFID': {'seed': 'count'},
}
ANNOTATIONS: Table = {'int': 'int', 'float': 'number', 'bool': 'bool', 'str': 'text', 'dict': 'dict', 'list': 'list'}

SCHEDULERS: dict[str, Callable[..., Any]] = {
    'MultiStepLR': MultiStepRestartLR, 'MultiStepRestartLR': MultiStepRestartLR,
    'CosineAnnealingRestartLR': CosineAnnealingRestartLR,
}
# They need a closure, sparse gradients, or matrices only.
UNFIT_OPTIMIZERS = ('LBFGS', 'SparseAdam', 'Muon')
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    name: value for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    and name not in ('Optimizer', *UNFIT_OPTIMIZERS)
}

# Loss -> the options without which it cannot be computed.
NEEDS: dict[str, tuple[str, ...]] = {
    'ldl': ('train.ema_decay', ),
    'self_distill': ('train.ema_decay', ),
    'response_kd': ('teacher', ),
    'phase_kd': ('teacher', ),
    'contrastive': ('teacher', ),
    'feature_kd': ('teacher', ),
    'feature_kd_d': ('network_d', 'teacher.network_d'),
}

# ------------------------------------------------------------------------------------------------------ small helpers


_MOST_NAMES = 8


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, or None if none is like it."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    matches = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean ...?` for an error message, empty if no choice is like `word`."""
    choice = closest(word, choices)
    return f' Did you mean `{choice}`?' if choice else ''


def nearest_or_all(word: str, choices: Iterable[str]) -> str:
    """` Did you mean ...?` for an error message, or the choices; of many, those most like `word`."""
    names = sorted(map(str, choices))
    if nearest(word, names) or not names:
        return nearest(word, names)
    if len(names) <= _MOST_NAMES:
        return f' Choose from: {", ".join(names)}.'
    names.sort(key=lambda name: -difflib.SequenceMatcher(None, str(word).lower(), name.lower()).ratio())
    return f' Choose from: {", ".join(names[:_MOST_NAMES])}, ...'


def get(opt: Options, key: str) -> Any:
    """The value under a dotted key such as `teacher.path`, None where there is none."""
    value: Any = opt
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def registered(registry: Registry) -> dict[str, Any]:
    """Name -> object as `registry.get` finds them, which prints at each name that is stored with BasicSR's suffix."""
    objects = dict(iter(registry))
    return {**{name.removesuffix('_basicsr'): value for name, value in objects.items()}, **objects}


def arch_of(opt: Options, key: str) -> Any:
    """What is registered for the network at `key`; None where its type is missing or unknown."""
    return registered(ARCH_REGISTRY).get(str(get(opt, f'{key}.type')))


def is_another(opt: Options, key: str, base: type) -> bool:
    """Whether a known network is named at `key` that is no `base`."""
    arch = arch_of(opt, key)
    return arch is not None and not (isinstance(arch, type) and issubclass(arch, base))


def is_foreign(model_type: Any) -> bool:
    """Whether a model of another project, BasicSR included, is registered under that name."""
    model = registered(MODEL_REGISTRY).get(model_type) if isinstance(model_type, str) else None
    return model is not None and not isinstance(getattr(model, 'losses', None), Mapping)


def is_from(packages: Iterable[str], factory: Any) -> bool:
    """Whether a class or function is defined in one of these top packages."""
    return str(getattr(factory, '__module__', '')).partition('.')[0] in packages


def needs_of(opt: Options) -> dict[str, tuple[str, ...]]:
    """NEEDS with those that the model's class adds, as `needs`."""
    return {**NEEDS, **getattr(registered(MODEL_REGISTRY).get(opt.get('model_type', '')), 'requires', {})}


def measures_teacher(opt: Options) -> bool:
    """Whether a metric compares with the teacher's images."""
    metrics = get(opt, 'val.metrics')
    return isinstance(metrics, dict) and any(get(metric, 'reference') == 'teacher' for metric in metrics.values())


def check_arguments(opt: Options, *keys: str) -> None:
    """Refuses networks with arguments that their classes do not take, before anything is derived from the others."""
    checker = _Checker(opt, {}, strict=True)
    for key in keys:
        network, arch = get(opt, key), arch_of(opt, key)
        if isinstance(network, dict) and arch is not None and set(network) - {'type'} - set(_arguments(arch)):
            checker.check_network(key, network)


def teacher_cache(opt: Options) -> str | None:
    """The folder of the teacher's stored images; None where there is none or no loss reads them."""
    train = opt.get('train') or {}
    read = any('teacher' in needs and train.get(f'{name}_opt') is not None for name, needs in needs_of(opt).items())
    return get(opt, 'teacher.cache') if read and not is_foreign(opt.get('model_type')) else None


def teacher_caches(opt: Options) -> dict[str, str]:
    """Teacher -> the folder of its stored images."""
    folder = teacher_cache(opt)
    return {'teacher': folder} if folder else {}


def crop_size(opt: Options) -> int:
    """Side of a ground truth in training; that of a 64x64 LR crop for a dataset that does not tell."""
    return get(opt, 'datasets.train.gt_size') or opt.get('gt_size') or 64 * opt.get('scale', 1)


def _fits(kind: str, value: Any) -> bool:
    if kind.endswith('?'):
        return value is None or _fits(kind[:-1], value)
    if '|' in kind:
        return isinstance(value, str) and value in kind.split('|')
    return any(KINDS[part][0](value) for part in kind.split(' or '))


def _words(kind: str) -> str:
    kind, null = kind.removesuffix('?'), ', or ~' if kind.endswith('?') else ''
    if '|' in kind:
        return 'one of ' + ', '.join(f'`{word}`' for word in kind.split('|')) + null
    return ', or '.join(KINDS[part][1] for part in kind.split(' or ')) + null


def require(key: str, kind: str, value: Any) -> None:
    """Refuses a value of another kind.

    Raises:
        OptionError: With what to write instead.
    """
    kind = kind.partition('!')[0]
    if not _fits(kind, value):
        hint = nearest(value, kind.rstrip('?').split('|')) if '|' in kind and isinstance(value, str) else ''
        raise OptionError(f'`{key}` cannot be {_short(value)}. Write {_words(kind)}.{hint}')
    if kind.rstrip('?') == 'factors':
        for name, item in (value or {}).items():
            require(f'{key}.{name}', 'weight', item)


def _short(value: Any) -> str:
    text = '~' if value is None else 'a section' if isinstance(value, dict) and value else repr(value)
    return text if len(text) <= 60 else text[:57] + '...'


def _arguments(factory: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, str]:
    """The key table of a constructor's or function's named arguments."""
    parameters = inspect.signature(factory).parameters.values()
    known = is_from(KNOWN_PACKAGES, factory)
    table = {p.name: _kind_of(p, ARGUMENTS.get(p.name) if known else None) for p in parameters
             if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in skip}
    return {**table, **(ARGUMENTS_OF.get(getattr(factory, '__name__', ''), {}) if known else {})}


def _kind_of(parameter: inspect.Parameter, kind: str | None) -> str:
    """The kind of an argument by its default, its annotation, and what its name means in the packages known here."""
    default = parameter.default
    if isinstance(default, bool):
        return 'bool'
    if isinstance(default, list | tuple):
        if kind is not None and _fits(kind, default):
            return kind
        return 'numbers' if default and _is_list(default, _is_number) else 'list'
    if isinstance(default, dict):
        return 'dict'
    if kind is None or default not in (parameter.empty, None) and not _fits(kind, default):
        kind = _annotated(parameter)  # another class may use the same name for something else
    if default is parameter.empty:
        return (kind or 'any') + '!'
    if default is None:
        return (kind or 'any').rstrip('?') + '?'
    if isinstance(default, str):
        return kind or 'text?'
    return kind or ('number' if _is_number(default) else 'any')


def _annotated(parameter: inspect.Parameter) -> str | None:
    """The kind of an annotation such as `int` or `str | int`, None where it is missing or of another type."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, '__name__', str(annotation))
    parts = [part.strip().partition('[')[0] for part in text.split('|')]
    kinds = [ANNOTATIONS.get(part) for part in parts if part != 'None']
    if not kinds or None in kinds:
        return None
    return ' or '.join(kind for kind in kinds if kind) + ('?' if 'None' in parts else '')


def _swallows_keys(factory: Callable[..., Any]) -> bool:
    """Whether it may have a use for other keys: `**kwargs`, which in BasicSR and here are accepted and not read."""
    swallows = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    return swallows and not is_from(('basicsr', *OUR_PACKAGES), factory)


# --------------------------------------------------------------------------------------------------------- the check


def check_options(opt: Options, losses: Mapping[str, str | None], *, strict: bool = True) -> list[str]:
    """Refuses options that cannot work, before anything is built. The registries must be filled.

    Args:
        opt: As returned by `parse_options`.
        losses: The losses of this package: name -> loss class where `<name>_opt` gives no `type`, None for no default.
            Those of the model's own `losses` are added.
        strict: False inside another project's loop, which may have keys of its own at the top, in `logger`,
            `dist_params` and `datasets`: what is unknown there becomes a warning.

    Returns:
        list[str]: Warnings: what a model or dataset of another project may know, and what is of no use.

    Raises:
        OptionError: At the first thing that is wrong.
    """
    return _Checker(opt, losses, strict).check()


class _Checker:
    """One pass over the options; each method checks one section."""

    def __init__(self, opt: Options, losses: Mapping[str, str | None], strict: bool) -> None:
        self.opt = opt
        self.losses = dict(losses)
        self.strict = strict
        self.training = bool(opt.get('is_train', True))
        self.warnings: list[str] = []
        self.model: Any = None
        self.ours = True

    def check(self) -> list[str]:
        self.check_model()
        self.check_sets()
        networks = {key: value for key, value in self.opt.items() if str(key).startswith('network_')}
        self.check_networks('', {key: networks.pop(key) for key in ('network_g', ) if key in networks})
        self.table('', self.opt, self.extended('', {**TOP, **RUN, **REAL_ESRGAN, **self.networks()}), self.training,
                   None if self.strict else self.strange)
        self.check_stock_model()
        self.check_teacher()
        self.check_path()
        self.check_datasets()
        self.check_networks('', networks)  # a method may have derived what they lack from all of the above
        self.check_val()
        self.check_simple('logger', LOGGER)
        self.check_retention()
        self.check_simple('logger.wandb', WANDB)
        self.check_wandb()
        self.check_simple('dist_params', DIST_PARAMS)
        if self.training and self.opt.get('train'):
            self.check_train()
        return self.warnings

    # ---- ways to answer

    def refuse(self, message: str) -> NoReturn:
        raise OptionError(message)

    def doubt(self, message: str) -> None:
        """Refuses what our models cannot work with; the model of another project may know better."""
        if self.ours:
            self.refuse(message)
        self.warnings.append(f'{message} (A warning only, {self.opt["model_type"]} may know better.)')

    def strange(self, message: str) -> None:
        """Refuses what our loop does not read; another project's loop may know better."""
        if self.strict:
            self.refuse(message)
        self.warnings.append(f'{message} (A warning only, the loop may know better.)')

    # ---- generic checks

    def table(self, prefix: str, section: Options, table: Table, training: bool,
              unknown: Callable[[str], None] | None = None, missing: Callable[[str], None] | None = None) -> None:
        """Checks keys and kinds of a section.

        `unknown` is told of keys outside the table, `missing` of those that must be there; `doubt` by default.
        """
        for key, value in section.items():
            full = _join(prefix, key)
            if key in table:
                require(full, table[key], value)
            else:
                known = table.keys() - RUN.keys() - FOLDERS.keys()
                (unknown or self.doubt)(f'Unknown key `{full}`.{self.place(key) or nearest_or_all(key, known)}')
        for key, kind in table.items():
            kind, _, when = kind.partition('!') if '!' in kind else (kind, '', 'never')
            if key not in section and (when == '' or when == 'train' and training):
                (missing or self.doubt)(f'`{_join(prefix, key)}` is missing. Write {_words(kind)}.')

    def place(self, key: Any) -> str:
        """` Move it ...` for a key that another section knows, empty if none does."""
        losses = {f'{name}_opt': 'dict?' for name in self.losses}
        sections = {'to the top of the file': {**TOP, **REAL_ESRGAN}, 'into `train`': {**TRAIN, **losses},
                    'into `val`': VAL, 'into `logger`': LOGGER, 'into `path`': {**PATH, **_path_keys('gd')},
                    'into each of the `datasets`': {'io_backend': 'dict'}}
        if re.fullmatch(r'(val|test)_\d+', str(key)):
            return ' Move it into `datasets`.'
        return next((f' Move it {place}.' for place, table in sections.items() if key in table), '')

    def extended(self, prefix: str, table: Table) -> dict[str, str]:
        """The table with the keys that the model's class adds to this section."""
        own = getattr(self.model, 'option_keys', {})
        return {**table, **{key.rpartition('.')[2]: kind for key, kind in own.items()
                            if key.rpartition('.')[0] == prefix}}

    def lookup(self, key: str, what: str, name: Any, choices: Mapping[str, Any]) -> Any:
        """The object that is registered under the name written at `key`."""
        if name is None:
            self.refuse(f'`{key}` is missing. Name the {what}.')
        require(key, 'str', name)
        if name not in choices:
            hint = nearest_or_all(name, {choice.removesuffix('_basicsr') for choice in choices})
            self.refuse(f'`{key}`: no {what} is called `{name}`.{hint} One of your own must be imported to be known.')
        return choices[name]

    def constructor(self, prefix: str, section: Options, table: Table, swallows: bool,
                    unknown: Callable[[str], None], missing: Callable[[str], None] | None = None) -> None:
        """Checks a section whose keys are the arguments of a class."""
        self.table(prefix, section, {'type': 'str', **table}, self.training, _ignore if swallows else unknown, missing)

    def check_simple(self, key: str, table: Table) -> None:
        """Checks a section that the loop reads, so that no model can know better."""
        section = get(self.opt, key)
        if section:
            self.table(key, section, self.extended(key, table), self.training, self.strange)

    # ---- sections

    def check_model(self) -> None:
        name = self.opt.get('model_type')
        self.model = self.lookup('model_type', 'model', name, registered(MODEL_REGISTRY))
        self.ours = not is_foreign(name)
        if self.ours:
            self.losses.update(self.model.losses)
        if 'feature_kd' in self.losses:
            self.losses.setdefault('feature_kd_d', self.losses['feature_kd'])  # the same between the discriminators

    def check_stock_model(self) -> None:
        """What BasicSR's own models would leave unread without a word."""
        if self.ours or not is_from(('basicsr', ), self.model):
            return
        if get(self.opt, 'datasets.train.type') == 'FaceScaleDataset':
            self.refuse('`datasets.train.type`: FaceScaleDataset gives each face its scale, which '
                        f'{self.opt["model_type"]} does not hand to the network. Set `model_type: DistillationModel`.')
        keys = [f'{name}_opt' for name in {**self.losses, **NEEDS} if name not in STOCK_LOSSES]
        keys = [f'train.{key}' for key in (*keys, *OUR_TRAIN_KEYS)] if self.training else []
        name = self.model.__name__
        if name in ('RealESRGANModel', 'RealESRNetModel') and self.training and not self.opt['num_gpu']:
            self.refuse(f'{name} of BasicSR needs a GPU. Set `model_type: DistillationModel`, which does the same on '
                        'any device.')
        for key in ('teacher', 'degradation', 'val.self_ensemble', 'logger.keep_last', 'logger.keep_best', *keys):
            if get(self.opt, key) is not None:
                self.refuse(f'`{key}` is not read by {self.opt["model_type"]}, which is BasicSR\'s own. '
                            f'Set `model_type: DistillationModel`, or take `{key}` out.')

    def networks(self) -> dict[str, str]:
        """Another project may have any number of networks."""
        return {} if self.ours else {key: 'dict?' for key in self.opt if str(key).startswith('network_')}

    def check_networks(self, prefix: str, section: Options) -> None:
        for key, network in section.items():
            if str(key).startswith('network_') and network:
                self.check_network(_join(prefix, key), network)

    def check_network(self, key: str, network: Options) -> None:
        require(key, 'dict', network)
        arch = self.lookup(f'{key}.type', 'network', network.get('type'), registered(ARCH_REGISTRY))
        # BasicSR's own models add nothing to what is written; a model of another project may
        missing = self.refuse if is_from(('basicsr', ), self.model) else None
        self.constructor(key, network, _arguments(arch), _swallows_keys(arch), self.refuse, missing)

    def check_teacher(self) -> None:
        teacher = self.opt.get('teacher')
        if not teacher:
            return
        self.table('teacher', teacher, self.extended('teacher', TEACHER), self.training)
        self.check_networks('teacher', teacher)
        path = teacher.get('path') or {}
        self.table('teacher.path', path, _path_keys('gd'), self.training)
        self.check_owners('teacher.', teacher)
        for label in 'gd' if self.training or measures_teacher(self.opt) else '':
            network = teacher.get(f'network_{label}')
            if network and not network.get('pretrained') and not path.get(f'pretrain_network_{label}'):
                self.doubt(f'`teacher.path.pretrain_network_{label}` is missing, and an untrained network teaches '
                           f'nothing. Name the file with the weights of `teacher.network_{label}`.')
        if self.ours and self.training and teacher.get('cache') is not None:
            self.check_cache()

    def check_cache(self) -> None:
        kind = str(get(self.opt, 'datasets.train.type')).removesuffix('_basicsr')
        if kind != 'PairedImageDataset':
            self.refuse('`teacher.cache` keeps one image of the teacher for each training image, which fits the fixed '
                        f'pairs of PairedImageDataset only. {kind} may degrade or crop otherwise at each draw. '
                        'Use PairedImageDataset with prepared LR images, or take `teacher.cache` out.')
        if teacher_cache(self.opt) is None:
            self.warnings.append("`teacher.cache` is of no use: no loss asks for the teacher's images.")

    def check_path(self) -> None:
        path = self.opt.get('path') or {}
        labels = {'g', 'd', *(key.removeprefix('network_') for key in self.networks())}
        table = self.extended('path', {**PATH, **FOLDERS, **_path_keys(labels)})
        self.table('path', path, table, self.training)
        for key, value in path.items():
            if key not in table and not any(word in str(key) for word in NO_FOLDER):
                require(f'path.{key}', 'path', value)  # BasicSR makes a folder of it
        self.check_owners('', self.opt)
        if not self.training and self.opt.get('network_g') and not path.get('pretrain_network_g'):
            self.warnings.append('`path.pretrain_network_g` is missing: a network with random weights is measured.')

    def check_owners(self, prefix: str, section: Options) -> None:
        """Weights must be of a network that is there."""
        for key, value in (section.get('path') or {}).items():
            network = str(key).removeprefix('pretrain_')
            if value is not None and network.startswith('network_') and not section.get(network):
                self.doubt(f'`{prefix}path.{key}` has weights for `{prefix}{network}`, which is missing. '
                           'Add the network, or take the weights out.')

    def check_retention(self) -> None:
        """`logger.keep_best` names a metric that the state of each saved iteration knows."""
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
        if _is_whole(validated) and _is_whole(saved) and saved % validated:
            self.refuse(f'`logger.keep_best` needs a validation wherever a checkpoint is saved, and {saved} is no '
                        f'multiple of `val.val_freq`, {validated}. Write `save_checkpoint_freq: {validated}`.')

    def check_wandb(self) -> None:
        """What BasicSR finds out after the folders of the run are made."""
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
        if self.ours:
            _Rules(self).check()

    def check_loss(self, name: str) -> None:
        key, option = f'train.{name}_opt', self.opt['train'].get(f'{name}_opt')
        if option is None:
            return
        kind = option.get('type', self.losses[name])
        if kind is None:
            self.refuse(f'`{key}.type` is missing. Name a loss.{nearest_or_all(name, registered(LOSS_REGISTRY))}')
        loss = self.lookup(f'{key}.type', 'loss', kind, registered(LOSS_REGISTRY))
        table = _arguments(loss, skip=getattr(loss, 'supplied', ()))
        table.update({extra: ARGUMENTS.get(extra, 'any') for extra in getattr(loss, 'options', ())})
        table.update(TERM_KEYS.get(name, {}))
        self.constructor(key, option, table, _swallows_keys(loss), self.doubt)
        if 'loss_weight' in TERM_KEYS.get(name, {}) and 'perceptual_weight' in option and 'loss_weight' not in option:
            self.refuse(f'`{key}.perceptual_weight` is a factor within {kind}, and the weight of the loss is '
                        '`loss_weight`. Write `loss_weight` too, or instead.')
        if isinstance(loss, type) and issubclass(loss, PerceptualLoss):
            self.check_layers(key, option)

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
        self.check_tool(f'train.{name}', 'optimizer', OPTIMIZERS, {'lr': 'weight!'})

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
        """An optimizer or a scheduler."""
        option = get(self.opt, key)
        if not option:
            return
        if not self.ours and option.get('type') not in choices:
            self.doubt(f'`{key}.type`: no {what} is called `{option.get("type")}`.')
            return
        tool = self.lookup(f'{key}.type', what, option.get('type'), choices)
        table = {**_arguments(tool, skip=('params', 'optimizer', 'last_epoch')), **extra}
        self.constructor(key, option, table, False, self.doubt)

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
            self.doubt(f'`datasets.{val_sets[0]}` would never be used, there is no section `val`. '
                       'Write `val: {val_freq: 5000, metrics: ...}`, or take the dataset out.')

    def check_metric(self, key: str, metric: Any) -> None:
        require(key, 'dict', metric)
        function = self.lookup(f'{key}.type', 'metric', metric.get('type'), registered(METRIC_REGISTRY))
        table = {**_arguments(function, skip=('img', 'img2')), **METRIC}
        self.constructor(key, metric, table, _swallows_keys(function), self.refuse)
        if is_from(('kd_metrics', ), function):
            self.check_layers(key, metric)
        self.check_package(key, metric['type'], getattr(function, 'package', None))
        if inspect.isclass(function) and not self.ours:
            self.refuse(f'`{key}.type`: {metric["type"]} is of a whole set, which {self.opt["model_type"]} does not '
                        'know. Set `model_type: DistillationModel`, or take the metric out.')
        if metric.get('reference') != 'teacher':
            return
        if not self.ours:
            self.refuse(f'`{key}.reference: teacher` is not read by {self.opt["model_type"]}. '
                        'Set `model_type: DistillationModel`, or write `gt`.')
        if not self.opt.get('teacher'):
            self.refuse(f'`{key}.reference: teacher` needs `teacher`, which is missing. Add it, or write `gt`.')

    def check_package(self, key: str, metric: str, package: str | None) -> None:
        """What an optional extra of this package brings."""
        if package is not None and importlib.util.find_spec(package) is None:
            name = package.replace('_', '-')
            self.refuse(f'`{key}.type`: {metric} needs the package {name}, which is not installed. '
                        f'Run `pip install {name}`, or take the metric out.')

    # ---- datasets

    def check_sets(self) -> None:
        datasets = self.opt.get('datasets') or {}
        require('datasets', 'dict', datasets)
        if self.training and datasets and 'train' not in datasets:
            self.strange('`datasets.train` is missing. Write the data set to train on there.')

    def check_datasets(self) -> None:
        datasets = self.opt.get('datasets') or {}
        allowed = ('train', 'val') if self.training else ('val', 'test')
        for name, dataset in datasets.items():
            require(f'datasets.{name}', 'dict', dataset)
            phase = str(name).split('_')[0]
            if phase not in allowed or (phase == 'train' and name != 'train'):
                self.strange(f'`datasets.{name}` is of no use in {"training" if self.training else "a test"}. '
                            f'Call it `{"` or `".join(allowed)}`; further ones are `{allowed[1]}_2`, `{allowed[1]}_3`.')
            self.check_dataset(f'datasets.{name}', dataset, phase == 'train')
        names = [dataset.get('name') for phase, dataset in datasets.items() if phase != 'train']
        for name in names:
            if names.count(name) > 1:
                self.refuse(f'`datasets` has two sets with `name: {name}`, whose results would overwrite each other. '
                            'Give each a name of its own.')
        if not datasets and self.training:
            self.strange('`datasets.train` is missing. Write the data set to train on there.')
        if not datasets:
            self.refuse('`datasets` is empty. Write the data sets to test on there: `test_1`, `test_2` and so on.')

    def check_dataset(self, key: str, dataset: Options, training: bool) -> None:
        cls = self.lookup(f'{key}.type', 'dataset', dataset.get('type'), registered(DATASET_REGISTRY))
        name = dataset['type'].removesuffix('_basicsr')
        table = DATASETS.get(name, getattr(cls, 'option_keys', None))
        unknown: Callable[[str], None] = self.strange if table is not None else _ignore
        if self.ours and table is not None:
            self.check_latents(key, name, dataset, training)
        if table is None:
            self.warnings.append(f'`{key}.type`: {name} is of another project, so its own keys are not checked.')
        self.table(key, dataset, {**LOADER, **(table or {})}, training, unknown)
        if 'io_backend' in dataset:
            self.table(f'{key}.io_backend', dataset['io_backend'], IO_BACKEND, training, unknown)
        if name == 'RealESRGANDataset' and not training:
            self.refuse(f'`{key}.type`: RealESRGANDataset is for training. Use PairedImageDataset, or '
                        'SingleImageDataset where there is no ground truth.')
        if name == 'RealESRGANDataset':
            if self.ours and not getattr(self.model, 'degrades', False):
                self.refuse(f'`{key}.type`: RealESRGANDataset gives no LR images, and '
                            f'{self.opt["model_type"]} makes none. Use PairedImageDataset with prepared LR images.')
            self.check_degradation(key, dataset)
        elif training and self.ours and table is not None and self.opt.get('high_order_degradation', True):
            keys = [name for name in DEGRADATION if name in self.opt and name != 'gt_size']
            if keys:
                self.refuse(f'`{keys[0]}` degrades the images of a RealESRGANDataset, but `{key}` is a {name} with LR '
                            'images of its own. Write `high_order_degradation: false`, or take these keys out.')
        if training:
            self.check_prefetch(key, dataset)
        if training and table is not None:
            self.check_crop(key, dataset)
        if table is not None and (dataset.get('mean') is None) != (dataset.get('std') is None):
            self.refuse(f'`{key}` has one of `mean` and `std` only. Write both, or neither.')
        if dataset.get('persistent_workers') and not (training and dataset.get('num_worker_per_gpu')):
            self.refuse(f'`{key}.persistent_workers` needs workers, and there are none'
                        f'{"" if training else " in validation"}. Set `{key}.persistent_workers` to false.')

    def check_latents(self, key: str, name: str, dataset: Options, training: bool) -> None:
        """Latents are for generators that make images from noise, and nothing else is, but to learn from."""
        model, size = self.opt['model_type'], getattr(self.model, 'latent_size', lambda opt: None)(self.opt)
        wanted = size is not None and (not training or self.model.learns_from_latents)
        if name != 'SampleDataset' and wanted:
            self.refuse(f'`{key}.type`: {name} gives images, and {model} makes its own from latents. '
                        'Use SampleDataset.')
        if name == 'SampleDataset' and not wanted:
            self.refuse(f'`{key}.type`: SampleDataset gives latents, and {model} '
                        + ('takes LR images here. Use PairedImageDataset.' if size is None
                           else 'learns from images. Use FFHQDataset.'))
        if name == 'FFHQDataset' and size is None:
            self.refuse(f'`{key}.type`: FFHQDataset gives no LR images. Use PairedImageDataset.')
        if wanted and dataset.get('num_style_feat', size) != size:
            self.refuse(f'`{key}.num_style_feat` is {dataset.get("num_style_feat")}, and `network_g` takes latents of '
                        f'{size} numbers. Leave it out.')

    def check_degradation(self, key: str, dataset: Options) -> None:
        if 'meta_info' not in dataset and get(dataset, 'io_backend.type') != 'lmdb':
            self.refuse(f'`{key}.meta_info` is missing. Name the text file that lists the images, one per line.')
        for suffix in ('', '2'):
            kernels, odds = (len(dataset.get(f'kernel_{what}{suffix}') or ()) for what in ('list', 'prob'))
            if kernels != odds:
                self.refuse(f'`{key}.kernel_prob{suffix}` has {odds} numbers for {kernels} kernels. '
                            'Write one for each.')
        if not self.opt.get('high_order_degradation', True):
            self.doubt(f'`{key}.type`: RealESRGANDataset gives no LR images, and `high_order_degradation: false` makes '
                       'none. Write true, or use PairedImageDataset.')
        for name, kind in DEGRADATION.items():
            if name not in self.opt:
                self.doubt(f'`{name}` is missing, which degrades the images of `{key}`. Write {_words(kind)}.')
        sharpened = [name for name in ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm') if name in self.opt]
        if 'gt_usm' in self.opt and sharpened:
            self.doubt(f"`gt_usm` is RealESRNet's and `{sharpened[0]}` Real-ESRGAN's; they sharpen at different "
                       'places. Take one of them out.')
        if get(self.opt, 'network_g.num_in_ch') not in (None, 3):
            self.doubt(f'`{key}.type`: RealESRGANDataset gives images of three channels, and `network_g.num_in_ch` is '
                       f'{get(self.opt, "network_g.num_in_ch")}. Write 3.')
        self.check_pool(key, dataset)

    def check_pool(self, key: str, dataset: Options) -> None:
        """Sizes that BasicSR finds out at the first batch, or never."""
        queue, batch = self.opt.get('queue_size', 180), dataset.get('batch_size_per_gpu')
        if batch and queue % batch:
            self.doubt(f'`queue_size` is {queue}, which batches of {batch} do not fill exactly. '
                       f'Write a multiple of `{key}.batch_size_per_gpu`, such as {-(-queue // batch) * batch}.')
        size, scale = self.opt.get('gt_size'), self.opt.get('scale')
        if size and size > REAL_ESRGAN_CROP:
            self.doubt(f'`gt_size` is {size}, but RealESRGANDataset gives crops of {REAL_ESRGAN_CROP}. '
                       f'Write at most {REAL_ESRGAN_CROP}.')
        if size and scale and size % scale:
            self.doubt(f'`gt_size` is {size}, which the scale {scale} does not divide. '
                       f'Write {max(size // scale, 1) * scale}.')
        if size and dataset.get('gt_size', size) != size:
            self.doubt(f'`{key}.gt_size` is {dataset["gt_size"]}, but `gt_size` at the top, which counts, is {size}. '
                       'Write the same number, or leave the former out.')

    def check_prefetch(self, key: str, dataset: Options) -> None:
        mode = dataset.get('prefetch_mode')
        if mode == 'cpu' and not dataset.get('num_worker_per_gpu'):
            self.refuse(f'`{key}.prefetch_mode: cpu` with no workers loads in a thread that shares the random numbers '
                        'of training. Set `num_worker_per_gpu` to 1 or more, or `prefetch_mode: ~`.')
        if mode == 'cuda' and not dataset.get('pin_memory'):
            self.refuse(f'`{key}.prefetch_mode: cuda` copies from pinned memory only. Add `pin_memory: true`.')

    def check_crop(self, key: str, dataset: Options) -> None:
        size, scale = dataset.get('gt_size'), self.opt.get('scale')
        if 'dataroot_lq' in dataset and size and scale and size % scale:
            self.refuse(f'`{key}.gt_size` is {size}, which the scale {scale} does not divide. '
                        f'Write {max(size // scale, 1) * scale}.')


class _Rules:
    """What the training options of our models must be to each other."""

    def __init__(self, checker: _Checker) -> None:
        self.opt, self.train = checker.opt, checker.opt['train']
        self.losses, self.warnings, self.refuse = checker.losses, checker.warnings, checker.refuse
        self.checker = checker
        self.configured = [name for name in self.losses if self.train.get(f'{name}_opt') is not None]
        # feature_kd_d is the discriminator's, it goes with its update and is named in no stage
        self.generators = [name for name in self.configured if name != 'feature_kd_d']

    def check(self) -> None:
        for name in self.configured:
            self.check_needs(name)
        given = self.train.get('stages') or []
        for i, stage in enumerate(given):
            self.check_stage(f'train.stages[{i}]', stage)
        self.check_sum(given)
        self.check_names(given)
        stages = {f'train.stages[{i}]': stage for i, stage in enumerate(given)}
        stages = stages or {'train': {'losses': self.generators}}
        self.check_adversary(stages)
        self.check_turns(stages)
        self.check_starts(stages)
        self.warn_of_unused(list(stages.values()))
        self.warn_of_idle_adversary(stages)

    def check_needs(self, name: str) -> None:
        for need in needs_of(self.opt).get(name, ()):
            if not get(self.opt, need):
                state, remedy = ('missing or 0', 'Write a number such as 0.999 there') if need == 'train.ema_decay' \
                    else ('missing', 'Add it')
                # `~` also switches off what the model has on by itself
                self.refuse(f'`train.{name}_opt` needs `{need}`, which is {state}. '
                            f'{remedy}, or `{name}_opt: ~`.')

    def check_stage(self, key: str, stage: Options) -> None:
        self.checker.table(key, stage, self.checker.extended('train.stages', STAGE), True)
        for name in stage['losses']:
            if name not in self.losses:
                self.refuse(f'`{key}.losses` names `{name}`, which is no loss.{nearest_or_all(name, self.generators)}')
            if name not in self.configured:
                self.refuse(f'`{key}.losses` names `{name}`, which has no options. Add `train.{name}_opt`.')
            if name not in self.generators:
                self.refuse(f'`{key}.losses` names `{name}`, which is of the discriminator and goes with `train_d`. '
                            'Take it out of the list.')
        if len(set(stage['losses'])) < len(stage['losses']):
            self.refuse(f'`{key}.losses` names a loss twice. Write each once, and factors under `weights`.')
        for name, weight in (stage.get('weights') or {}).items():
            if name not in stage['losses']:
                self.refuse(f'`{key}.weights` names `{name}`, which is not on in this stage.'
                            f'{nearest_or_all(name, stage["losses"])}')
            require(f'{key}.weights.{name}', 'weight', weight)

    def check_sum(self, stages: list[Options]) -> None:
        total, given = sum(int(stage['iters']) for stage in stages), int(self.train['total_iter'])
        if stages and total != given:
            self.refuse(f'`train.stages` add up to {total} iterations, but `train.total_iter` is {given}. '
                        f'Make them equal, for example `total_iter: {total}`.')

    def check_names(self, stages: list[Options]) -> None:
        names = [stage['name'] for stage in stages]
        for i, name in enumerate(names):
            if name in names[:i]:
                self.refuse(f'`train.stages[{i}].name`: there is a stage `{name}` before. '
                            'Give each stage a name of its own.')

    def check_adversary(self, stages: dict[str, Options]) -> None:
        for key, stage in stages.items():
            self.check_adversarial_stage(key, stage)
        trained = [key for key, stage in stages.items() if self._trains_d(stage)]
        if trained and not self.train.get('optim_d'):
            self.refuse(f'`{trained[0]}` trains the discriminator, but `train.optim_d` is missing. '
                        'Add it, for example with the values of `train.optim_g`.')
        if self.train.get('optim_d') and not trained:
            self.refuse('`train.optim_d` is there, but nothing trains the discriminator. '
                        'Add `train.gan_opt` (and `train_d: true` to a stage), or take `train.optim_d` out.')

    def check_adversarial_stage(self, key: str, stage: Options) -> None:
        gan, train_d = 'gan' in stage['losses'], self._trains_d(stage)
        what = f'`{key}` trains the discriminator' if train_d else f'`{key}` has the loss `gan`'
        if not stage['losses'] and not train_d:
            self.refuse(f'`{key}` trains nothing. Give it a loss (of those with options: '
                        f'{", ".join(self.generators) or "none yet, such as pixel_opt"}), or `train_d: true`.')
        if stage['losses'] in (['self_distill'], ('self_distill', )):
            self.refuse(f'`{key}` has the loss `self_distill` alone, which keeps a generator where it is. '
                        'Add another one, such as `pixel` or `gan`.')
        if train_d and 'gan' not in self.configured:
            self.refuse(f'{what}, but `train.gan_opt` is missing. Add it.')
        if gan and stage.get('discriminator') == 'teacher':
            if not get(self.opt, 'teacher.network_d'):
                self.refuse(f'`{key}.discriminator: teacher` needs `teacher.network_d`, which is missing. '
                            'Add it, or write `discriminator: student`.')
            gan = False
        if (gan or train_d) and not self.opt.get('network_d'):
            self.refuse(f'{what}, but `network_d` is missing. '
                        'Add it, for example `network_d: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 64}`.')

    @staticmethod
    def _trains_d(stage: Options) -> bool:
        """As kd_models/stages.py has it."""
        own = stage.get('discriminator', 'student') == 'student'
        return bool(stage.get('train_d', own and 'gan' in stage['losses']))

    def check_turns(self, stages: dict[str, Options]) -> None:
        """While the discriminator is trained, these keys leave the generator only some of the iterations."""
        total = int(self.train['total_iter'])
        for key in ('net_d_iters', 'net_d_init_iters'):
            both = any(stage['losses'] and self._trains_d(stage) for stage in stages.values())
            in_all = key == 'net_d_iters' and self.train.get(key) == 1  # however few they are
            if both and not in_all and self.train.get(key, 0) >= total:
                self.refuse(f'`train.{key}` is {self.train[key]} of {total} iterations, so the generator would never '
                            'learn while the discriminator does. Write a smaller number.')

    def check_starts(self, stages: dict[str, Options]) -> None:
        """A loss that begins after its last iteration would never be on."""
        for name in (name for name in self.configured if 'start_iter' in TERM_KEYS.get(name, ())):
            start, end, last = self.train[f'{name}_opt'].get('start_iter', 0), 0, 0
            for stage in stages.values():
                end += int(stage.get('iters', self.train['total_iter']))
                last = end if name in stage['losses'] else last
            if last and start >= last:
                self.refuse(f'`train.{name}_opt.start_iter` is {start}, and the last iteration with this loss is '
                            f'{last}, so it would never be on. Write a smaller number, or `{name}_opt: ~`.')

    def warn_of_unused(self, stages: list[Options]) -> None:
        used = {name for stage in stages for name in stage['losses']}
        trained = [stage for stage in stages if self._trains_d(stage)]
        if trained:
            used.add('gan')
        if any('feature_kd' in stage['losses'] or 'feature_kd' not in self.configured for stage in trained):
            used.add('feature_kd_d')
        needs = needs_of(self.opt)
        asked = any(need.startswith('teacher') for name in self.configured for need in needs.get(name, ()))
        asked = asked or any(stage.get('discriminator') == 'teacher' for stage in stages)
        asked = asked or measures_teacher(self.opt)
        self.warnings += [f'`train.{name}_opt` is on in no stage.' for name in self.configured if name not in used]
        if any(stage.get('ema') == 'fresh' for stage in stages) and not self.train.get('ema_decay'):
            self.warnings.append('`ema: fresh` of a stage is of no use without `train.ema_decay`.')
        if get(self.opt, 'datasets.train.type') != 'RealESRGANDataset':
            self.warnings += [f'`{key}` is of no use: it belongs to the degradation of a RealESRGANDataset.'
                              for key in ('degradation', 'queue_size', 'gt_usm') if key in self.opt]
        if self.train.get('ema_ramp_up') and not self.train.get('ema_decay'):
            self.warnings.append('`train.ema_ramp_up` is of no use without `train.ema_decay`.')
        if self.opt.get('teacher') and not asked:
            self.warnings.append('`teacher` is there, but no loss or metric asks it: nothing is distilled.')

    def warn_of_idle_adversary(self, stages: dict[str, Options]) -> None:
        for key, stage in stages.items():
            if stage.get('discriminator') == 'teacher' and 'gan' not in stage['losses']:
                self.warnings.append(f'`{key}.discriminator: teacher` is of no use without `gan` in `{key}.losses`.')
        if not any(self._trains_d(stage) or 'gan' in stage['losses'] for stage in stages.values()):
            self.warnings += [f'`train.{key}` is of no use: there is no `gan`, and no discriminator is trained.'
                              for key in ADVERSARIAL_KEYS if key in self.train]


def _ignore(message: str) -> None:
    """For keys that only the class itself knows."""


def _join(prefix: str, key: Any) -> str:
    return f'{prefix}.{key}' if prefix else str(key)


def _path_keys(labels: Iterable[str]) -> dict[str, str]:
    return {f'{key}{label}': kind for label in labels for key, kind in PATH_OF_NETWORK.items()}
