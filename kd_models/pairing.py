"""Which layer of the teacher teaches which layer of the student, and whether their maps fit."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from kd_models.probe import Call, probe
from kd_models.taps import Taps
from kd_utils.options import OptionError


@dataclass(frozen=True)
class Tapped:
    """A network whose features are wanted: what it is called in messages, how it is called, on what input."""
    owner: str
    net: nn.Module
    call: Call | None
    size: tuple[int, ...]


@dataclass(frozen=True)
class FeaturePairs:
    """Teacher layer -> student layer, teacher layer -> (C_s, C_t), and the taps that read them."""
    layers: dict[str, str]
    channels: dict[str, tuple[int, int]]
    student: Taps
    teacher: Taps


def pair_features(student: Tapped, teacher: Tapped, layers: dict[str, str] | None, option: str) -> FeaturePairs:
    """Pairs the layers as written, or by default, and checks that their maps have one spatial size.

    Args:
        student: The student network.
        teacher: The teacher network.
        layers: Teacher layer -> student layer; None for the defaults of the architecture.
        option: The YAML key, for messages.

    Raises:
        OptionError: A layer does not exist, or two paired maps differ in size.
    """
    layers = pair_layers(layers, teacher.net, student.net, option)
    student_layers = list(dict.fromkeys(layers.values()))
    # in train mode, where a dropout may overwrite too; with two images, which batch normalisation then needs
    try:
        of_student = probe(student.net, (2, *student.size[1:]), student_layers, student.call, student.owner,
                           training=True)
        of_teacher = probe(teacher.net, teacher.size, layers, teacher.call, teacher.owner)
    except OptionError as error:
        raise OptionError(f'`{option}.layers`: {error}') from None
    channels = {}
    for teacher_layer, student_layer in layers.items():
        t, s = of_teacher.taps[teacher_layer], of_student.taps[student_layer]
        if t[2:] != s[2:]:
            raise OptionError(f'{option}.layers pairs `{teacher_layer}`, maps of {t[2]}x{t[3]}, with '
                              f'`{student_layer}`, maps of {s[2]}x{s[3]}. Pair layers of one spatial size.')
        channels[teacher_layer] = (s[1], t[1])
    return FeaturePairs(layers, channels, Taps(student.net, student_layers, student.owner, of_student.overwritten),
                        Taps(teacher.net, layers, teacher.owner, of_teacher.overwritten))


def _evenly(prefix: str, count: int, step: int = 1, offset: int = 0) -> list[str]:
    """Four of `count` blocks at equal relative depth: 5, 11, 17, 22 of 23."""
    indices = [-(-count * quarter // 4) - 1 for quarter in (1, 2, 3, 4)]  # the block that ends each quarter
    return [f'{prefix}.{index * step + offset}' for index in indices]


def _residual_net(net: Any) -> list[str]:  # EDSR, RCAN
    return ['conv_first', *_evenly('body', len(net.body)), 'conv_after_body']


def _gcfsr(net: Any) -> list[str]:  # each size of the encoder, then of the decoder
    return ['conv_body_first', *(f'conv_body_down.{i}' for i in range(len(net.conv_body_down))), 'final_conv',
            'style_conv1', *(f'style_convs.{i}' for i in range(1, len(net.style_convs), 2))]


def _stylegan2_discriminator(net: Any) -> list[str]:  # its residual blocks
    return [f'conv_body.{i}' for i in range(1, len(net.conv_body))]


DEFAULT_LAYERS: dict[str, Callable[[Any], list[str]]] = {
    'RRDBNet': lambda net: ['conv_first', *_evenly('body', len(net.body)), 'conv_body', 'conv_up1', 'conv_up2'],
    # body: first conv, activation, then (conv, activation) * num_conv, last conv
    'SRVGGNetCompact': lambda net: ['body.0', *_evenly('body', net.num_conv, step=2, offset=2)],
    'EDSR': _residual_net,
    'RCAN': _residual_net,
    'MSRResNet': lambda net: ['conv_first', *_evenly('body', len(net.body))],
    'SwinIR': lambda net: ['conv_first', *_evenly('layers', len(net.layers)), 'conv_after_body'],
    'UNetDiscriminatorSN': lambda net: [f'conv{i}' for i in range(7)],
    'VGGStyleDiscriminator': lambda net: [f'conv{i}_1' for i in range(5)],
    'GCFSR': _gcfsr,
    'GCFSR_blind': _gcfsr,
    'GCFSRDiscriminator': _stylegan2_discriminator,
    'StyleGAN2Discriminator': _stylegan2_discriminator,
}


def default_layers(net: nn.Module, option: str) -> list[str]:
    """The layers distilled where the YAML names none: one list per architecture, at equal relative depth.

    Args:
        net: A generator or discriminator of a known family, of any width and depth.
        option: The YAML key to set for other families, for the message.

    Returns:
        Module paths, always of the same length for one architecture (and `out_size`, where it has that), so that
        networks of different depth pair up.

    Raises:
        OptionError: The family has no entry.
    """
    family = type(net).__name__
    if family not in DEFAULT_LAYERS:
        layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
        raise OptionError(f'There are no default layers for {family}. Name them in `{option}.layers` as '
                          f'`teacher layer: student layer`; its convolutions are: {", ".join(layers[:40])}'
                          f'{" ..." if len(layers) > 40 else ""}.')
    return DEFAULT_LAYERS[family](net)


def pair_layers(layers: dict[str, str] | None, teacher: nn.Module, student: nn.Module, option: str) -> dict[str, str]:
    """Teacher layer -> student layer, as written in the YAML or by the defaults of both architectures.

    Raises:
        OptionError: No pairs are written and the two default lists do not pair up.
    """
    if layers:
        return dict(layers)
    of_teacher, of_student = default_layers(teacher, option), default_layers(student, option)
    if type(teacher).__name__ != type(student).__name__:
        raise OptionError(f'The default layers pair networks of one family, not {type(teacher).__name__} with '
                          f'{type(student).__name__}. Name the pairs in `{option}.layers`, for example '
                          f'`{{{of_teacher[1]}: {of_student[1]}}}`.')
    if len(of_teacher) != len(of_student):
        raise OptionError(f'The default layers of {type(teacher).__name__} are one per size of its maps, and teacher '
                          'and student have different numbers of sizes. Set one `out_size` for both, or name the '
                          f'pairs in `{option}.layers`.')
    return dict(zip(of_teacher, of_student, strict=True))
