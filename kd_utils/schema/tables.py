"""The keys of every section of an option file: key -> kind of its value, in the words of `kinds.py`."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR

from kd_utils.schema.kinds import Table

TOP: Table = {
    'name': 'name!', 'model_type': 'str!', 'datasets': 'dict!', 'network_g': 'dict!', 'scale': 'size!',
    'num_gpu': 'gpus!', 'manual_seed': 'count?', 'network_d': 'dict?', 'teacher': 'dict?', 'path': 'dict?',
    'teachers': 'dict?', 'train': 'dict!train', 'val': 'dict?', 'logger': 'dict!train', 'dist_params': 'dict?',
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
OUR_TRAIN_KEYS = ('stages', 'update_order', 'gan_mode', 'ema_ramp_up', 'grad_clip', 'max_bad_steps', 'upcycling')
ADVERSARIAL_KEYS = ('update_order', 'gan_mode', 'net_d_iters', 'net_d_init_iters', 'net_d_reg_every', 'r1_reg_weight',
                    'gp_reg_weight', 'weight_clip')

# Besides these: <name>_opt of every loss.
TRAIN: Table = {
    'optim_g': 'dict!', 'optim_d': 'dict?', 'scheduler': 'dict?', 'total_iter': 'iters!', 'warmup_iter': 'warmup',
    'ema_decay': 'decay', 'ema_ramp_up': 'ratio?', 'stages': 'dicts?', 'update_order': 'simultaneous|g_first|d_first',
    'gan_mode': 'standard|relativistic', 'net_d_iters': 'size', 'net_d_init_iters': 'count', 'net_d_reg_every': 'size',
    'r1_reg_weight': 'weight', 'grad_clip': 'ratio?', 'max_bad_steps': 'size', 'upcycling': 'dict?',
}
# How second inputs are made.
UPCYCLING: Table = {'enlarge': 'prob', 'flip': 'bool', 'rotate': 'bool', 'invert': 'bool'}
STAGE: Table = {
    'name': 'str!', 'iters': 'iters!', 'losses': 'words!', 'train_d': 'bool', 'weights': 'dict?',
    'optimizer': 'keep|fresh', 'ema': 'keep|fresh', 'adaptors': 'keep|fresh', 'discriminator': 'student|teacher',
    'phase': 'size?',
}

VAL: Table = {'val_freq': 'iters!train', 'save_img': 'bool', 'suffix': 'name?', 'pbar': 'bool', 'metrics': 'dict?',
              'flip_seq': 'bool', 'center_frame_only': 'bool', 'self_ensemble': 'bool'}
METRIC: Table = {'type': 'str!', 'better': 'higher|lower', 'reference': 'str'}
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


def path_keys(labels: Iterable[str]) -> dict[str, str]:
    """The keys of `path` for networks with these labels, such as `g` and `d`."""
    return {f'{key}{label}': kind for label in labels for key, kind in PATH_OF_NETWORK.items()}
