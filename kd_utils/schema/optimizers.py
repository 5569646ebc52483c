"""Optimizers by the name in the option file: a class of `torch.optim`, or any other by its full dotted name."""
from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from kd_utils.schema.messages import OptionError


def optimizer_class(key: str, name: str) -> type[torch.optim.Optimizer]:
    """The class of that name.

    Args:
        key: Where the name stands, such as `train.optim_g.type`, for messages.
        name: `Adam`, or the full name of a class elsewhere, such as `schedulefree.AdamWScheduleFree`.

    Raises:
        OptionError: There is no such class, or it is not an optimizer as `torch.optim` has them.
    """
    module, _, attribute = name.rpartition('.')
    found = getattr(_module(key, name, module), attribute, None) if module else getattr(torch.optim, name)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise OptionError(f'`{key}`: {name} is not a class that derives from torch.optim.Optimizer. '
                          'Write the full name of one that does, such as schedulefree.AdamWScheduleFree.')
    closure = inspect.signature(found.step).parameters.get('closure')
    if closure is not None and closure.default is closure.empty:
        raise OptionError(f'`{key}`: {name} computes the loss by itself, by a closure, as often as it likes; the '
                          'iteration here computes it once. Take an optimizer whose step() needs no closure.')
    return found


def _module(key: str, name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition('.')[0]
        why = f'there is no module {module}' if isinstance(error, ModuleNotFoundError) else f'{module}: {error}'
        raise OptionError(f'`{key}`: {name} cannot be imported, {why}. Install what it is part of, perhaps by '
                          f'`pip install {package}`, or write the name of another optimizer.') from None
