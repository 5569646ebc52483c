"""A second input in each iteration, made from the first: data upcycling (DUKD, arXiv 2309.14162).

    x' = R(x)  or  Z(T(x)),    L = d(F^-1(S(F(x'))), T(x'))

with LR images x, teacher T, student S; R a bicubic reduction by the scale, whose HR image nobody needs, since the
teacher makes one; Z a crop, of the size of x, of the teacher's own image; F a random invertible augmentation, applied
to the student's input only and undone on its output (label consistency). d is every loss whose `inputs` are `upcycled`
or `both`, on images or on feature maps. Re-implemented from the abstract's description: how often which of the two is
taken, and the set of F, are options here.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kd_models.forwards import FORWARDS, teacher
from kd_models.step import Step
from kd_models.training import Training
from kd_utils.options import OptionError
from kd_utils.resize import as_square, bicubic

# The keys of `train.upcycling`, with the values that hold where the file has none.
DEFAULTS: dict[str, Any] = {'enlarge': 0.5, 'flip': True, 'rotate': True, 'invert': False}


def check_upcycling(training: Training, losses: dict[str, bool]) -> None:
    """Refuses second inputs that a student cannot be given.

    Args:
        training: What is trained, without its losses.
        losses: The losses that want a second input -> whether they compare feature maps.

    Raises:
        OptionError: Nothing describes the second input, or the networks are called with more than images.
    """
    option = training.opt['train'].get('upcycling')
    if not losses:
        return
    first = next(iter(losses))
    if option is None:
        raise OptionError(f'`train.{first}_opt.inputs` asks for upcycled images, and `train.upcycling`, which says how '
                          'they are made, is missing. Add `upcycling: {}` for its defaults, or write `inputs: given`.')
    if training.latent_size or training.adapter.value_range != (0, 1):
        raise OptionError(f'`train.upcycling` makes LR images of another size, which {type(training.net_g).__name__} '
                          'does not take. Take it out, and `inputs` of the losses.')
    features = next((name for name, reads_features in losses.items() if reads_features), None)
    if features and option.get('invert'):
        raise OptionError(f'`train.upcycling.invert` turns colours into their complements, which feature maps do not '
                          f'follow, and `train.{features}_opt` compares them. Write `invert: false`, or '
                          f'`inputs: given` there.')
    side = training.lq_size[-1] // training.opt['scale']
    if side < 8 and option.get('enlarge', DEFAULTS['enlarge']) < 1:
        raise OptionError(f'`train.upcycling` reduces LR crops of {training.lq_size[-1]} pixels to {side}, too few to '
                          'learn from. Write a larger `datasets.train.gt_size`, or `enlarge: 1`.')


def upcycled(training: Training, step: Step, name: str) -> None:
    """`step.upcycled`: the second input with the student's and the teachers' images and maps of it."""
    option = {**DEFAULTS, **training.opt['train']['upcycling']}
    wanted = [name for name in training.teachers if f'upcycled.{name}' in step.wanted]
    inputs = _second_input(training, step, wanted[0], float(option['enlarge']))
    second = replace(step, lq=inputs, cached={}, teachers={}, features={}, upcycled=None)
    for of_teacher in wanted:
        teacher(training, second, of_teacher)
    forward, back = _augmentation(option, *training.adapter.value_range)
    second.lq = forward(inputs)
    FORWARDS['student'](training, second, 'student')
    second.output = back(second.output)
    second.features['student'] = {layer: _turned_back(layer, maps, back)
                                  for layer, maps in second.features['student'].items()}
    step.upcycled = second


def _second_input(training: Training, step: Step, name: str, enlarge: float) -> Tensor:
    """R(x), or with probability `enlarge` Z(T(x)); (N, C, h, w) in the range of x."""
    low, high = training.adapter.value_range
    height, width = step.lq.shape[-2:]
    if float(torch.rand(())) >= enlarge:
        scale = training.opt['scale']
        return bicubic(step.lq, (height // scale, width // scale)).clamp(low, high)
    if name not in step.teachers:
        teacher(training, step, name)
    image = step.teachers[name]
    top, left = (int(torch.randint(large - small + 1, ())) for large, small in
                 zip(image.shape[-2:], (height, width), strict=True))
    return image[..., top:top + height, left:left + width].clamp(low, high)


Transform = Callable[[Tensor], Tensor]


def _turned_back(layer: str, maps: Tensor, back: Transform) -> Tensor:
    """Maps (N, C, H, W), or tokens (N, C, L, 1) of a square crop, as if the input had not been augmented."""
    square = as_square(maps)
    if maps.shape[-1] > 1 or maps.shape[-2] == 1:
        return back(maps)
    if square is maps:
        raise OptionError(f'`train.upcycling` turns inputs, and layer `{layer}` has {maps.shape[-2]} tokens, which are '
                          'no square. Name another layer, or write `flip: false` and `rotate: false`.')
    return back(square).flatten(2).unsqueeze(-1)


def _augmentation(option: dict[str, Any], low: float, high: float) -> tuple[Transform, Transform]:
    """F and its inverse: a random flip, quarter turns, and the complement of the colours, as far as they are on."""
    flip = option['flip'] and bool(torch.rand(()) < 0.5)
    turns = int(torch.randint(4, ())) if option['rotate'] else 0
    invert = option['invert'] and bool(torch.rand(()) < 0.5)

    def colours(images: Tensor) -> Tensor:
        return low + high - images if invert else images

    def forward(images: Tensor) -> Tensor:
        return colours(torch.rot90(images.flip(-1) if flip else images, turns, (-2, -1)))

    def back(images: Tensor) -> Tensor:
        turned = torch.rot90(images, -turns, (-2, -1))
        return colours(turned.flip(-1) if flip else turned)

    return forward, back
