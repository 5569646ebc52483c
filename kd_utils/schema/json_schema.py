"""The key tables as a JSON Schema (draft 7), by which editors complete and underline while an option file is written.

It says of a file alone what the check says: keys, kinds of values, names of classes and their arguments. What depends
on several keys, on files or on built networks only the check knows. A file with a `base` need not be complete; what a
whole file must have stands apart, in the definitions called `whole ...`.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

from kd_utils.schema.arguments import ARGUMENTS, arguments_of
from kd_utils.schema.kinds import BLUR_KERNELS, Table, words
from kd_utils.schema.lookups import KNOWN_PACKAGES, is_from, registered
from kd_utils.schema.tables import (
    DATASETS,
    DIST_PARAMS,
    IO_BACKEND,
    LOADER,
    LOGGER,
    METRIC,
    OPTIMIZERS,
    PATH,
    REAL_ESRGAN,
    SCHEDULERS,
    STAGE,
    TEACHER,
    TOP,
    TRAIN,
    UPCYCLING,
    VAL,
    WANDB,
    path_keys,
)
from kd_utils.schema.training import TrainingChecks

Schema = dict[str, Any]


def _number(least: float | None = None, most: float | None = None, **limits: float) -> Schema:
    given = {'minimum': least, 'maximum': most, **limits}
    return {'type': 'number', **{name: value for name, value in given.items() if value is not None}}


def _list(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    sizes = {'minItems': least or None, 'maxItems': most}
    return {'type': 'array', 'items': items, **{name: value for name, value in sizes.items() if value is not None}}


_TEXT: Schema = {'type': 'string', 'pattern': r'\S'}
_SIZE: Schema = {'type': 'integer', 'minimum': 1}
_WEIGHT = _number(0)
_DECAY = _number(0, exclusiveMaximum=1)

# Kind -> the values that it allows. Some allow a little more than `KINDS`: no schema can compare numbers of a list, and
# to it 4.0 is a whole number.
SHAPES: dict[str, Schema] = {
    'any': {}, 'bool': {'type': 'boolean'}, 'str': _TEXT, 'text': {'type': 'string'}, 'path': _TEXT,
    'name': {'type': 'string', 'pattern': r'^(?!\s*\.{1,2}\s*$)[^/\\]*[^\s/\\][^/\\]*$'}, 'y': {'enum': ['y']},
    'template': {'type': 'string', 'pattern': r'^[^{}]*\{\}[^{}]*$'},
    'int': {'type': 'integer'}, 'count': {'type': 'integer', 'minimum': 0}, 'size': _SIZE, 'iters': _SIZE,
    'warmup': {'type': 'integer', 'minimum': -1},
    'gpus': {'anyOf': [{'enum': ['auto']}, {'type': 'integer', 'minimum': 0}]},
    'number': _number(), 'weight': _WEIGHT, 'ratio': _number(exclusiveMinimum=0), 'prob': _number(0, 1),
    'decay': _DECAY, 'largest': _number(1), 'power': {'enum': [32, 64, 128, 256, 512, 1024]},
    'side': {'enum': [4, 8, 16, 32, 64, 128, 256, 512, 1024]},
    'list': {'type': 'array'}, 'numbers': _list(_number()), 'scales': _list(_SIZE, 1), 'betas': _list(_DECAY, 2, 2),
    'channels': {'anyOf': [_list(_number(), 1, 1), _list(_number(), 3, 3)]}, 'range': _list(_WEIGHT, 2, 2),
    'odds': _list(_WEIGHT, 3, 3), 'shares': _list(_WEIGHT, 1), 'weights': _list(_WEIGHT), 'sides': _list(_SIZE, 2, 2),
    'kernels': _list({'enum': list(BLUR_KERNELS)}, 1), 'quality': _list(_number(1, 100), 2, 2), 'words': _list(_TEXT),
    'dict': {'type': 'object'}, 'factors': {'type': 'object', 'additionalProperties': _WEIGHT},
    'pairs': {'type': 'object', 'additionalProperties': _TEXT}, 'dicts': _list({'type': 'object'}),
}

# What a whole file may lack although the tables demand it: reading it adds it, or the method that it names does. It is
# known by its last key only, so that `optim_g` and `scale` are demanded of no method.
ADDED = ('num_gpu', 'optim_g', 'scale', 'sizes', 'num_style_feat')


def json_schema() -> Schema:
    """The schema of an option file for a model of this package. The registries must be filled."""
    choices = _choices()
    sections = {what: _choice(tables, set().union(*_terms().values()) if what == 'loss' else ())
                for what, tables in choices.items()}
    sections['dataset']['properties']['io_backend'] = _section(IO_BACKEND)
    del sections['loss']['additionalProperties']  # each loss says which it has
    # an optimizer of another package goes by its full name, and its arguments are not known
    of_torch = sections['optimizer']['properties']['type']
    sections['optimizer']['properties']['type'] = {'anyOf': [of_torch, {'type': 'string', 'pattern': r'\.'}]}
    del sections['optimizer']['additionalProperties']
    return {
        '$schema': 'http://json-schema.org/draft-07/schema#',
        'title': 'An option file of basicsr-kd',
        '$comment': 'Made by `python -m kd_cli.schema`',
        **_file(sections['loss']['properties']),
        'if': {'required': ['base']}, 'then': {}, 'else': _ref('whole file'),
        'definitions': {
            **{kind: {**shape, 'description': words(kind)} for kind, shape in SHAPES.items()},
            **sections,
            'teacher': _teacher(),
            **{f'whole {what}': _whole_choice(tables) for what, tables in choices.items()},
            'whole training set': _whole_choice(choices['dataset'], training=True),
            'whole teacher': _whole(TEACHER, network_g=_ref('whole network'), network_d=_ref('whole network')),
            'whole file': {'if': {'properties': {'datasets': {'required': ['train']}}, 'required': ['datasets']},
                           'then': _whole_file(training=True), 'else': _whole_file(training=False)},
        },
    }


# -------------------------------------------------------------------------------------------------------- the tables


def _known(registry: Registry) -> dict[str, Any]:
    """What BasicSR and this package have registered, by the names that option files use."""
    return {name: value for name, value in sorted(registered(registry).items())
            if not name.endswith('_basicsr') and is_from(KNOWN_PACKAGES, value)}


def _models() -> list[Any]:
    return [model for model in _known(MODEL_REGISTRY).values() if hasattr(model, 'known_terms')]


def _keys_of_models(prefix: str) -> dict[str, str]:
    """The keys that methods add to a section."""
    return {key.rpartition('.')[2]: kind for model in _models()
            for key, kind in getattr(model, 'option_keys', {}).items() if key.rpartition('.')[0] == prefix}


def _terms() -> dict[str, dict[str, str]]:
    """Loss -> the keys of its section that the loss itself reads, not its class."""
    terms: dict[str, dict[str, str]] = {}
    for model in _models():
        for name, term in model.known_terms.items():
            terms.setdefault(name, {}).update(TrainingChecks.term_keys(term))
    return terms


def _choices() -> dict[str, dict[str, Table]]:
    """What can be chosen by `type` -> class or function -> its keys."""
    tools = {'optimizer': (OPTIMIZERS, {'lr': 'weight!'}), 'scheduler': (SCHEDULERS, {})}
    return {
        'network': {name: arguments_of(arch) for name, arch in _known(ARCH_REGISTRY).items()},
        'dataset': _dataset_tables(),
        'metric': {name: {**arguments_of(metric, skip=('img', 'img2')), **METRIC}
                   for name, metric in _known(METRIC_REGISTRY).items()},
        'loss': _loss_tables(),
        **{what: {name: {**arguments_of(tool, skip=('params', 'optimizer', 'last_epoch')), **extra}
                  for name, tool in classes.items()} for what, (classes, extra) in tools.items()},
    }


def _loss_tables() -> dict[str, Table]:
    """Loss class -> its arguments."""
    return {name: {**arguments_of(loss, skip=getattr(loss, 'supplied', ())),
                   **{key: ARGUMENTS.get(key, 'any') for key in getattr(loss, 'options', ())}}
            for name, loss in _known(LOSS_REGISTRY).items()}


def _dataset_tables() -> dict[str, Table]:
    classes = _known(DATASET_REGISTRY)
    tables = {name: DATASETS.get(name, getattr(cls, 'option_keys', None)) for name, cls in classes.items()}
    return {name: {**LOADER, **table} for name, table in tables.items() if table is not None}


# ------------------------------------------------------------------------------------------------- what may be there


def _ref(name: str) -> Schema:
    return {'$ref': f'#/definitions/{name}'}


def of_kind(kind: str) -> Schema:
    """The values that a word of the key tables allows."""
    kind, null = kind.partition('!')[0].removesuffix('?'), kind.partition('!')[0].endswith('?')
    if '|' in kind:
        return {'enum': [*kind.split('|'), *[None] * null]}
    shapes = [_ref(part) for part in kind.split(' or ')] + [{'type': 'null'}] * null
    return shapes[0] if len(shapes) == 1 else {'anyOf': shapes}


def _section(table: Table, **known: Schema) -> Schema:
    """A section with the keys of a table; `known` are those that are sections themselves."""
    return {'type': ['object', 'null'], 'additionalProperties': False,
            'properties': {**{key: of_kind(kind) for key, kind in table.items()}, **known}}


def _is_of(name: str) -> Schema:
    return {'properties': {'type': {'const': name}}, 'required': ['type']}


def _choice(tables: Mapping[str, Table], others: Iterable[str]) -> Schema:
    """A section whose `type` decides which keys it may have besides `others`; without one, its base may have it."""
    kinds: dict[str, set[str]] = {}
    for table in tables.values():
        for key, kind in table.items():
            kinds.setdefault(key, set()).add(kind.partition('!')[0])
    common = {key: next(iter(known)) if len(known) == 1 else 'any' for key, known in sorted(kinds.items())}
    branches = [{'if': _is_of(name), 'then': {
        'propertyNames': {'enum': sorted({'type', *table, *others})},
        'properties': {key: of_kind(kind) for key, kind in table.items() if common[key] != kind.partition('!')[0]}}}
        for name, table in tables.items()]
    return {**_section(common, type={'enum': list(tables)}), 'allOf': branches}


def _loss(arguments: Iterable[str], keys: Table) -> Schema:
    """A loss with the keys that it reads itself."""
    return {'allOf': [_ref('loss')], 'propertyNames': {'enum': sorted({*arguments, *keys})},
            'properties': {key: of_kind(kind) for key, kind in keys.items()}}


def _teacher() -> Schema:
    return _section({**TEACHER, **_keys_of_models('teacher')}, network_g=_ref('network'), network_d=_ref('network'),
                    path=_section(path_keys('gd')))


def _file(arguments: Iterable[str]) -> Schema:
    """The keys of a file and of its sections; `arguments` are those of all loss classes."""
    model_type = {'enum': [model.__name__ for model in _models()]}
    base = {**of_kind('path'), 'description': 'The option file whose options this one changes'}
    without = {**of_kind('words'), 'description': 'Keys of its base that this file takes out'}
    datasets = {'type': ['object', 'null'], 'additionalProperties': False,
                'patternProperties': {'^(train|val|val_.*|test|test_.*)$': _ref('dataset')}}
    metrics = {'type': ['object', 'null'], 'additionalProperties': _ref('metric')}
    teachers = {'type': ['object', 'null'], 'additionalProperties': False,
                'patternProperties': {r'^(?!(teacher|gt)$)[A-Za-z]\w*$': _ref('teacher')}}
    return _section(
        {**TOP, **REAL_ESRGAN, **_keys_of_models('')}, base=base, without=without, model_type=model_type,
        datasets=datasets, network_g=_ref('network'), network_d=_ref('network'), teacher=_ref('teacher'),
        teachers=teachers, train=_train(arguments),
        path=_section({**PATH, **_keys_of_models('path'), **path_keys('gd')}),
        val=_section({**VAL, **_keys_of_models('val')}, metrics=metrics),
        logger=_section({**LOGGER, **_keys_of_models('logger')}, wandb=_section(WANDB)),
        dist_params=_section(DIST_PARAMS))


def _train(arguments: Iterable[str]) -> Schema:
    stages = {'type': ['array', 'null'], 'items': _section({**STAGE, **_keys_of_models('train.stages')})}
    losses = {f'{name}_opt': _loss(arguments, keys) for name, keys in _terms().items()}
    return _section({**TRAIN, **_keys_of_models('train')}, stages=stages, optim_g=_ref('optimizer'),
                    optim_d=_ref('optimizer'), scheduler=_ref('scheduler'), upcycling=_section(UPCYCLING), **losses)


# ------------------------------------------------------------------------------------------------ what must be there


def _required(table: Table, training: bool) -> list[str]:
    ends = ('!', '!train') if training else ('!', )
    return [key for key, kind in table.items() if kind.endswith(ends) and key not in ADDED]


def _whole(table: Table, training: bool = False, **known: Schema) -> Schema:
    return {'required': _required(table, training), 'properties': known}


def _whole_choice(tables: Mapping[str, Table], training: bool = False) -> Schema:
    needed = {name: _required(table, training) for name, table in tables.items()}
    return {'allOf': [{'if': _is_of(name), 'then': {'required': keys}} for name, keys in needed.items() if keys]}


def _typed(whole: Schema) -> Schema:
    return {'allOf': [whole], 'if': {'type': 'object'}, 'then': {'required': ['type']}}


def _whole_file(training: bool) -> Schema:
    """What a file must have that has no base."""
    sets = {'^train$': _typed(_ref('whole training set')), '^(val|test)': _typed(_ref('whole dataset'))}
    losses = {f'{name}_opt': _ref('whole loss') for name in _terms()}
    train = _whole(TRAIN, training, stages={'items': _whole(STAGE)}, optim_g=_typed(_ref('whole optimizer')),
                   optim_d=_typed(_ref('whole optimizer')), scheduler=_typed(_ref('whole scheduler')), **losses)
    val = _whole(VAL, training, metrics={'additionalProperties': _typed(_ref('whole metric'))})
    return _whole(TOP, training, network_g=_typed(_ref('whole network')), network_d=_typed(_ref('whole network')),
                  teacher=_ref('whole teacher'), teachers={'additionalProperties': _ref('whole teacher')},
                  datasets={'patternProperties': sets}, train=train, val=val, logger=_whole(LOGGER, training))
