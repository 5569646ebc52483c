"""What Adv-KD takes for granted: its presets, and the discriminators and stages that follow from the networks."""
from __future__ import annotations

from copy import deepcopy
from typing import Any

from kd_arch.denoising_phase_arch import PhaseChain, PhaseDiscriminators
from kd_arch.diffusion_arch import DiffusionUNet
from kd_utils.options import OptionError, crop_size
from kd_utils.schema import arch_of, get, is_another, require

# What `train.preset` writes where the file has nothing.
PRESETS: dict[str, dict[str, Any]] = {
    'practical': {'phase_kd_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
                  'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 0.02}},
    'faithful': {'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 1.0},
                 'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.5, 0.999]}},
}
# The same for discriminators, with `gan_opt`.
PENALTIES: dict[str, dict[str, Any]] = {'practical': {'r1_reg_weight': 1, 'net_d_reg_every': 16},
                                        'faithful': {'gp_reg_weight': 10, 'weight_clip': 0.1}}
# The losses that it has a place for, in the order of their sum.
LOSSES = ('pixel', 'perceptual', 'gan', 'response_kd', 'contrastive', 'self_distill', 'phase_kd')
OF_PHASES = ('gan', 'phase_kd')  # the others are of the SR image, which only the last phase has


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


def complete_preset(model: str, presets: str, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
    """Writes the losses, penalties, discriminators and stages of a preset where the file has none of its own.

    Args:
        model: The model's name, for messages.
        presets: The names of the presets, joined by `|`.
        opt: All options, not checked yet.
        train_opt: Their `train` section.

    Raises:
        OptionError: The networks are not of their kinds, or the preset does not fit them.
    """
    check_networks(model, opt)
    preset = train_opt.setdefault('preset', 'practical')
    require('train.preset', presets, preset)  # before it decides about anything
    for key, value in PRESETS[preset].items():
        train_opt.setdefault(key, deepcopy(value))
    if train_opt['gan_opt'] is not None:
        _complete_discriminators(opt, train_opt, preset)
    elif opt.get('network_d'):
        raise OptionError('`network_d` has nothing to learn without `train.gan_opt`. Take one of `network_d` and '
                          '`gan_opt: ~` out.')
    total, phases = train_opt.get('total_iter'), len(_sizes(opt))
    if preset == 'faithful' and not train_opt.get('stages') and total is not None and phases:
        require('train.total_iter', 'iters', total)
        configured = [name for name in LOSSES if train_opt.get(f'{name}_opt') is not None]
        train_opt['stages'] = progressive_stages(int(total), phases, configured)


def check_networks(model: str, opt: dict[str, Any]) -> None:
    """Student and teacher must be of their kinds, and of one size.

    Raises:
        OptionError: They are not.
    """
    if not isinstance(opt.get('network_g'), dict):
        return  # the check says so
    if not opt.get('teacher') or is_another(opt, 'teacher.network_g', DiffusionUNet):
        raise OptionError(f'{model} needs a diffusion model as `teacher.network_g`. Name a DiffusionUNet, '
                          'as trained by DiffusionSRModel.')
    if opt.get('teachers'):
        raise OptionError(f'`teachers` is not read by {model}, whose student learns the states of one teacher. Take it '
                          'out.')
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


def _complete_discriminators(opt: dict[str, Any], train_opt: dict[str, Any], preset: str) -> None:
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
    size, scale = crop_size(opt), opt.get('scale')
    return size // scale if isinstance(size, int) and isinstance(scale, int) and scale > 0 else 0
