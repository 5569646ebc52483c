"""Values of options by dotted keys, and what is registered under the names in them."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from basicsr.utils.registry import (
    ARCH_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

from kd_utils.schema.messages import Options

# The top packages of this project, and those of the classes to which the names in ARGUMENTS apply.
OUR_PACKAGES = ('kd_arch', 'kd_data', 'kd_losses', 'kd_metrics', 'kd_models', 'kd_utils')
KNOWN_PACKAGES = ('basicsr', 'torch', *OUR_PACKAGES)


def get(opt: Options, key: str) -> Any:
    """The value under a dotted key such as `teacher.path`, None where there is none."""
    value: Any = opt
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def registered(registry: Registry) -> dict[str, Any]:
    """All objects of a registry by the names that option files use, with and without the suffix `_basicsr`.

    `registry.get` finds the same, but prints a line for each name that BasicSR has stored with its suffix.
    """
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


def model_of(opt: Options) -> Any:
    """The class of the model, None where it is unknown or another project's."""
    name = opt.get('model_type')
    return None if is_foreign(name) else registered(MODEL_REGISTRY).get(str(name))


def losses_of_ours() -> set[str]:
    """The names of the losses of all models of this package and those derived from them."""
    models = registered(MODEL_REGISTRY).values()
    return {name for model in models for name in getattr(model, 'known_terms', ())}


class PlainTerm:
    """What holds for a loss of a model that has `losses` only, and says nothing of them but their classes."""
    side = 'generator'
    reads: frozenset[str] = frozenset()
    reads_features = False
    requires: tuple[str, ...] = ()
    option_keys: Mapping[str, str] = {}


def terms_of(opt: Options) -> dict[str, Any]:
    """The losses that the model knows: name -> a class that says what the loss takes and reads.

    It has `default_type`, `side`, `reads`, `reads_features`, `requires` and `option_keys`, see kd_models/terms.py.
    """
    model = model_of(opt)
    return {**dict.fromkeys(getattr(model, 'losses', ()), PlainTerm), **getattr(model, 'known_terms', {})}


def requirements_of(opt: Options) -> dict[str, tuple[str, ...]]:
    """Loss -> the options without which it cannot be computed, those that the model adds as `requires` among them."""
    of_terms = {name: (*term.requires, *['teacher'] * ('teacher' in term.reads and term.side == 'generator'))
                for name, term in terms_of(opt).items()}
    return {**of_terms, **getattr(model_of(opt), 'requires', {})}


def teacher_sections(opt: Options) -> dict[str, Options]:
    """Key -> section of each teacher: `teacher`, and `teachers.NAME`."""
    sections = {'teacher': opt.get('teacher')}
    named = opt.get('teachers')
    if isinstance(named, dict):
        sections.update((f'teachers.{name}', section) for name, section in named.items())
    return {key: section for key, section in sections.items() if isinstance(section, dict) and section}


def teacher_key(name: str) -> str:
    """Where the teacher stands that a loss or metric names: `teacher`, or one of `teachers`."""
    return name if name == 'teacher' else f'teachers.{name}'


def teacher_name(key: str) -> str:
    """What models and caches call the teacher whose section has that key: `teacher`, or `teacher.NAME`."""
    return key.replace('teachers.', 'teacher.', 1)


def teachers_of_loss(opt: Options, name: str) -> list[str]:
    """The teachers that a configured loss names, `teacher` where it names none."""
    given = get(opt, f'train.{name}_opt.teacher')
    return [str(one) for one in given] if isinstance(given, list) else [str(given or 'teacher')]


def teacher_caches(opt: Options) -> dict[str, Options]:
    """Teacher -> `folder`, `features` and `dtype` of what is stored of it, for those whose images a loss reads.

    Teachers are called as the model calls them: `teacher`, or `teacher.NAME` for those of `teachers`.
    """
    train, found = opt.get('train') or {}, {}
    for name, requirements in requirements_of(opt).items():
        if 'teacher' not in requirements or train.get(f'{name}_opt') is None:
            continue
        for teacher in teachers_of_loss(opt, name):
            key = teacher_key(teacher)
            cache = get(opt, f'{key}.cache')
            if cache is not None:
                section = cache if isinstance(cache, dict) else {'folder': cache}
                found[teacher_name(key)] = {'features': False, 'dtype': 'fp16', **section}
    return found


def crop_size(opt: Options) -> Any:
    """Side of a ground-truth crop in training, in pixels.

    Where neither the dataset nor the file says it, crops of LR images are taken to be 64x64.
    """
    return get(opt, 'datasets.train.gt_size') or opt.get('gt_size') or 64 * opt.get('scale', 1)


def measured_teachers(opt: Options) -> set[str]:
    """The teachers with whose images a metric compares, as it names them."""
    metrics = get(opt, 'val.metrics')
    references = [get(metric, 'reference') for metric in (metrics if isinstance(metrics, dict) else {}).values()]
    return {str(reference) for reference in references if reference not in (None, 'gt')}
