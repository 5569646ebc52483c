"""What an option file may say: tables of keys, and the check against them.

Constructors (networks, losses, optimizers, schedulers, metrics) have no table: their signatures are turned into one. A
class says what its signature does not: a model by `known_terms`, `option_keys`, full key -> kind, such as
`{'train.queue': 'size'}`, and `requires`, loss -> options; a loss of a model (kd_models/terms.py) by what `terms_of`
lists; a dataset by `option_keys`, key -> kind; a loss class by `supplied`, the constructor's arguments that come from
the model, and `options`, the keys that the model reads; any class of this package by `argument_kinds`. A model whose
`latent_size` is not None makes images from noise. What a model of this package does not know is refused; what a model
of another project may know becomes a warning.
"""
from __future__ import annotations

from collections.abc import Mapping

from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)

from kd_utils.schema.arguments import arguments_of
from kd_utils.schema.checker import Checker
from kd_utils.schema.kinds import require
from kd_utils.schema.lookups import (
    OUR_PACKAGES,
    arch_of,
    crop_size,
    get,
    is_another,
    is_foreign,
    is_from,
    measured_teachers,
    registered,
    requirements_of,
    teacher_caches,
    teacher_key,
    teacher_name,
    teacher_sections,
)
from kd_utils.schema.messages import CheckedOptions, OptionError, Options, closest, nearest
from kd_utils.schema.tables import DATASETS, OPTIMIZERS

__all__ = [
    'ARCH_REGISTRY', 'CheckedOptions', 'DATASETS', 'DATASET_REGISTRY', 'LOSS_REGISTRY', 'METRIC_REGISTRY',
    'MODEL_REGISTRY', 'OPTIMIZERS', 'OUR_PACKAGES', 'OptionError', 'Options', 'arch_of', 'check_arguments',
    'check_options', 'closest', 'crop_size', 'get', 'is_another', 'is_foreign', 'is_from', 'measured_teachers',
    'nearest', 'registered', 'require', 'requirements_of', 'teacher_caches', 'teacher_key', 'teacher_name',
    'teacher_sections',
]


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
    return Checker(opt, losses, strict).check()


def check_arguments(opt: Options, *keys: str) -> None:
    """Refuses networks with arguments that their classes do not take, before anything is derived from the others."""
    checker = Checker(opt, {}, strict=True)
    for key in keys:
        network, arch = get(opt, key), arch_of(opt, key)
        if isinstance(network, dict) and arch is not None and set(network) - {'type'} - set(arguments_of(arch)):
            checker.check_network(key, network)
