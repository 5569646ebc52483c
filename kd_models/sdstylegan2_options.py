"""What StyleGAN2 takes for granted: BasicSR's recipe, and data of its own."""
from __future__ import annotations

from inspect import signature
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from kd_models.degradation import USM_KEYS
from kd_utils.options import OptionError
from kd_utils.schema import DATASETS, OPTIMIZERS, get, registered, require

DEFAULTS: dict[str, Any] = {
    'ema_decay': 0.5**(32 / 10_000), 'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 1.0},
    'self_distill_opt': {'loss_weight': 1.0}, 'r1_reg_weight': 10, 'net_d_reg_every': 16, 'path_reg_weight': 2,
    'net_g_reg_every': 4, 'path_batch_shrink': 2, 'mixing_prob': 0.9, 'update_order': 'd_first',
}
# What the base reads and StyleGAN2's iteration has no place for.
UNREAD = ('gan_mode', 'stages')
# The same, but these values, which are in BasicSR's file, ask for nothing.
IDLE = {'net_d_iters': 1, 'net_d_init_iters': 0}
GENERATOR = 'StyleGAN2Generator'
GRID = 16  # samples in the picture of a validation


def complete_data(opt: dict[str, Any]) -> None:
    """Writes a SampleDataset for a validation that has no data, and checks the range of the training images.

    Args:
        opt: All options, not checked yet.

    Raises:
        OptionError: They ask for what has no place here.
    """
    generator = str(get(opt, 'network_g.type'))
    if generator in registered(ARCH_REGISTRY) and generator != GENERATOR:
        raise OptionError(f'`network_g.type`: {generator} is not what SDStyleGAN2Model trains. Write {GENERATOR}, '
                          'or `model_type: SDGANModel` for super-resolution.')
    key = next(filter(opt.get, USM_KEYS.values()), None)
    if key:
        raise OptionError(f'`{key}` is not read by SDStyleGAN2Model. Take it out.')
    if isinstance(opt.get('datasets'), dict):
        _complete_validation(opt, opt['datasets'])
        _check_range(opt['datasets'].get('train'))


def _complete_validation(opt: dict[str, Any], datasets: dict[str, Any]) -> None:
    val = opt.get('val')
    if not (val and isinstance(val, dict)):
        return
    if opt.get('is_train', True) and not any(str(name).startswith('val') for name in datasets):
        count = val.pop('num_val_samples', GRID)
        require('val.num_val_samples', 'size', count)
        datasets['val'] = {'name': 'samples', 'type': 'SampleDataset', 'n': count, 'phase': 'val', 'scale': 1}
    if 'num_val_samples' in val:
        raise OptionError('`val.num_val_samples` is the size of a validation set that the file leaves out. Write '
                          '`n` of the SampleDataset, and take it out.')


def _check_range(train_set: Any) -> None:
    """The generator's images are in [-1, 1]; datasets of another project may give such by themselves."""
    if not isinstance(train_set, dict) or str(train_set.get('type')) not in DATASETS:
        return
    for key in ('mean', 'std'):
        numbers = train_set.get(key)
        if not isinstance(numbers, list | tuple) or any(number != 0.5 for number in numbers):
            raise OptionError(f'`datasets.train.{key}` cannot be {numbers}: StyleGAN2 learns from images in '
                              f'[-1, 1]. Write `{key}: [0.5, 0.5, 0.5]`.')


def complete_recipe(train_opt: dict[str, Any]) -> None:
    """Writes BasicSR's values, and Adam's betas, which lazy regularisation adapts (Karras et al. 2020).

    Raises:
        OptionError: The file asks for another order of updates.
    """
    for key, value in DEFAULTS.items():
        train_opt.setdefault(key, dict(value) if isinstance(value, dict) else value)
    if train_opt['update_order'] != 'd_first':
        raise OptionError('`train.update_order`: StyleGAN2 updates the discriminator first, each network on fakes '
                          'of its own. Write `d_first`, or leave it out.')
    for label in 'gd':
        optimizer, every = train_opt.get(f'optim_{label}'), train_opt[f'net_{label}_reg_every']
        kind = OPTIMIZERS.get(str(optimizer.get('type'))) if isinstance(optimizer, dict) else None
        if kind and 'betas' in signature(kind).parameters and isinstance(every, int) and every > 0:
            train_opt[f'optim_{label}'].setdefault('betas', [0, 0.99**(every / (every + 1))])
