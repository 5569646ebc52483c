"""Optimizers that are not of `torch.optim`: whether they fit this loop, and those that average the weights themselves.

A schedule-free optimizer (Defazio et al. 2024, "The Road Less Scheduled") computes gradients at one point and promises
its results at another, an average of the weights. Its `train()` and `eval()` move the parameters between the two.
"""
from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def averages(optimizer: Optimizer) -> bool:
    """Whether the parameters have two positions, one to train and one to use."""
    return all(callable(getattr(optimizer, name, None)) for name in ('train', 'eval'))


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Its parameters, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group['params']]


@contextmanager
def averaged(optimizers: Sequence[Optimizer]) -> Iterator[list[list[Tensor]]]:
    """Around validation and saving: parameters are where they are to be used, and afterwards exactly where they were.

    Going there and back by the optimizer alone would change them by rounding, so that a training that saves more often
    would not be the same training.

    Args:
        optimizers: Those of a training; the ones that average nothing are left alone.

    Yields:
        Of each optimizer the parameters as they are trained; an empty list of one that averages nothing.
    """
    which = [optimizer for optimizer in optimizers if averages(optimizer)]
    trained = {id(optimizer): [p.detach().clone() for p in parameters_of(optimizer)] for optimizer in which}
    for optimizer in which:
        optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield [trained.get(id(optimizer), []) for optimizer in optimizers]
    finally:
        for optimizer in which:
            go_on(optimizer, trained[id(optimizer)])


@torch.no_grad()
def go_on(optimizer: Optimizer, trained: Sequence[Tensor]) -> None:
    """Trains again, from the parameters that `averaged` has told."""
    if averages(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    for parameter, value in zip(parameters_of(optimizer), trained, strict=False):
        parameter.copy_(value)


def forget(optimizer: Optimizer) -> None:
    """Starts an optimizer anew: its state, and what it counts in its groups; the learning rates stay."""
    if averages(optimizer):
        optimizer.eval()  # type: ignore[attr-defined]
    optimizer.state.clear()
    for group in optimizer.param_groups:
        kept: dict[str, Any] = {key: group[key] for key in ('params', 'lr', 'initial_lr') if key in group}
        group.clear()
        group.update({**optimizer.defaults, **kept})
    go_on(optimizer, [])


def try_optimizer(kind: type[Optimizer], options: dict[str, Any]) -> None:
    """Three updates of a small convolution, with the state saved and loaded between them as in a training.

    Raises:
        Exception: Whatever goes wrong with an optimizer that does not fit.
    """
    net = torch.nn.Conv2d(2, 2, 3)
    optimizer = kind([{'params': list(net.parameters())}], **options)
    for _ in range(3):
        go_on(optimizer, [])
        optimizer.zero_grad()
        net(torch.ones(1, 2, 4, 4)).square().sum().backward()
        optimizer.step()
        file = io.BytesIO()
        with averaged([optimizer]):
            torch.save(optimizer.state_dict(), file)
        file.seek(0)
        optimizer = kind([{'params': list(net.parameters())}], **options)
        optimizer.load_state_dict(torch.load(file, weights_only=True))
