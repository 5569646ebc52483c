"""What a class or function may be given in an option file: its signature, turned into a table of keys.

A class of this package says more about its arguments by `argument_kinds`, argument -> kind.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS

from kd_utils.schema.kinds import Table, fits, is_list, is_number
from kd_utils.schema.lookups import KNOWN_PACKAGES, OUR_PACKAGES, is_from

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
    'betas': 'betas', 'act_type': 'text', 'with_idt': 'bool', 'net': 'vgg|alex|squeeze',
    'out_size': 'side', 'resample_kernel': 'shares',  # of StyleGAN2
}
# Class of BasicSR -> arguments that take more than their default tells.
ARGUMENTS_OF: dict[str, Table] = {
    **dict.fromkeys(('StyleGAN2Generator', 'StyleGAN2Discriminator'), {'out_size': 'side!'}),
    'SwinIR': {'img_size': 'size or sides', 'patch_size': 'size or sides'},
}
ANNOTATIONS: Table = {'int': 'int', 'float': 'number', 'bool': 'bool', 'str': 'text', 'dict': 'dict', 'list': 'list'}


def arguments_of(factory: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, str]:
    """The key table of a constructor's or function's named arguments."""
    parameters = inspect.signature(factory).parameters.values()
    known = is_from(KNOWN_PACKAGES, factory)
    table = {p.name: _kind_of(p, ARGUMENTS.get(p.name) if known else None) for p in parameters
             if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in skip}
    of_class = ARGUMENTS_OF.get(getattr(factory, '__name__', ''), {}) if known else {}
    return {**table, **of_class, **getattr(factory, 'argument_kinds', {})}


def _kind_of(parameter: inspect.Parameter, kind: str | None) -> str:
    """The kind of an argument by its default, its annotation, and what its name means in the packages known here."""
    default = parameter.default
    if isinstance(default, bool):
        return 'bool'
    if isinstance(default, list | tuple):
        if kind is not None and fits(kind, default):
            return kind
        return 'numbers' if default and is_list(default, is_number) else 'list'
    if isinstance(default, dict):
        return 'dict'
    if kind is None or default not in (parameter.empty, None) and not fits(kind, default):
        kind = _annotated(parameter)  # another class may use the same name for something else
    if default is parameter.empty:
        return (kind or 'any') + '!'
    if default is None:
        return (kind or 'any').rstrip('?') + '?'
    if isinstance(default, str):
        return kind or 'text?'
    return kind or ('number' if is_number(default) else 'any')


def _annotated(parameter: inspect.Parameter) -> str | None:
    """The kind of an annotation such as `int` or `str | int`, None where it is missing or of another type."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, '__name__', str(annotation))
    parts = [part.strip().partition('[')[0] for part in text.split('|')]
    kinds = [ANNOTATIONS.get(part) for part in parts if part != 'None']
    if not kinds or None in kinds:
        return None
    return ' or '.join(kind for kind in kinds if kind) + ('?' if 'None' in parts else '')


def swallows_keys(factory: Callable[..., Any]) -> bool:
    """Whether it may have a use for other keys: `**kwargs`, which in BasicSR and here are accepted and not read."""
    swallows = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    return swallows and not is_from(('basicsr', *OUR_PACKAGES), factory)
