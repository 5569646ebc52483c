"""The kinds of values that an option may have, by the words of the key tables.

A word is one of `KINDS`, or the allowed texts joined by `|`, or several words joined by ` or `. It may end in

    ?         the value may also be `~`
    !         the key must be there
    !train    the key must be there for training
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kd_utils.schema.messages import OptionError, nearest

Table = Mapping[str, str]


def is_number(value: Any) -> bool:
    # comparing leaves out inf and nan, and does not overflow on an int of 400 digits as math.isfinite does
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def is_whole(value: Any) -> bool:
    return is_number(value) and value == int(value)


def _is_int(value: Any) -> bool:
    return is_number(value) and isinstance(value, int)


def _is_decay(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_name(value: Any) -> bool:
    # a folder or file is called so, and must not be another one's
    return _is_text(value) and not set('/\\') & set(value) and value.strip() not in ('.', '..')


def _is_template(value: Any) -> bool:
    return _is_text(value) and value.count('{}') == 1 and not set('{}') & set(value.replace('{}', ''))


def is_list(value: Any, item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(item, value))


# Of basicsr.data.degradations.random_mixed_kernels.
BLUR_KERNELS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')

KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'any': (lambda v: True, 'a value'),
    'bool': (lambda v: isinstance(v, bool), 'true or false'),
    'str': (_is_text, 'text, in quotes where it looks like a number'),
    'text': (lambda v: isinstance(v, str), 'text, in quotes where it looks like a number'),
    'name': (_is_name, 'text, in quotes where it looks like a number, without / and \\'),
    'path': (_is_text, 'a path'),
    'y': (lambda v: v == 'y', '`y`'),
    'template': (_is_template, 'a name with {} where the GT name stands, as in {}x4'),
    'int': (_is_int, 'a whole number'),
    'count': (lambda v: _is_int(v) and v >= 0, 'a whole number, 0 or above'),
    'size': (lambda v: _is_int(v) and v > 0, 'a whole number above 0'),
    'iters': (lambda v: is_whole(v) and v > 0, 'a whole number above 0, such as 5000 or 5e3'),
    'warmup': (lambda v: is_whole(v) and v >= -1, 'a number of iterations, or -1 for no warm-up'),
    'gpus': (lambda v: v == 'auto' or _is_int(v) and v >= 0, '`auto` or a number of GPUs'),
    'number': (is_number, 'a number, such as 0.1 or 1.0e-4'),
    'weight': (lambda v: is_number(v) and v >= 0, 'a number, 0 or above, such as 0.1 or 1.0e-4'),
    'ratio': (lambda v: is_number(v) and v > 0, 'a number above 0'),
    'prob': (lambda v: is_number(v) and 0 <= v <= 1, 'a number from 0 to 1'),
    'decay': (_is_decay, 'a number from 0 up to, but not including, 1, such as 0.999'),
    'power': (lambda v: _is_int(v) and v in (32, 64, 128, 256, 512, 1024), 'a power of two from 32 to 1024'),
    'side': (lambda v: _is_int(v) and v in (4, 8, 16, 32, 64, 128, 256, 512, 1024), 'a power of two from 4 to 1024'),
    'largest': (lambda v: is_number(v) and v >= 1, 'a number, 1 or above, such as 32'),
    'list': (lambda v: isinstance(v, list | tuple), 'a list, such as [1, 2]'),
    'numbers': (lambda v: is_list(v, is_number), 'a list of numbers, such as [1, 2]'),
    'scales': (lambda v: is_list(v, lambda scale: _is_int(scale) and scale > 0) and len(v) > 0,
               'a list of whole numbers above 0, such as [32, 16, 8, 4]'),
    'channels': (lambda v: is_list(v, is_number) and len(v) in (1, 3), 'a list of three numbers, or of one'),
    'betas': (lambda v: is_list(v, _is_decay) and len(v) == 2,
              'a list of two numbers from 0 up to, but not including, 1, such as [0.9, 0.99]'),
    'range': (lambda v: is_list(v, is_number) and len(v) == 2 and 0 <= v[0] <= v[1],
              'a list [lowest, highest] of numbers, 0 or above'),
    'odds': (lambda v: is_list(v, is_number) and len(v) == 3 and min(v) >= 0 < sum(v),
             'a list of three odds, not all 0: up, down, keep'),
    'shares': (lambda v: is_list(v, is_number) and len(v) > 0 and min(v) >= 0 < sum(v),
               'a list of numbers, 0 or above and not all 0'),
    'weights': (lambda v: is_list(v, lambda item: is_number(item) and item >= 0),
                'a list of numbers, 0 or above, such as [1, 2]'),
    'sides': (lambda v: KINDS['scales'][0](v) and len(v) == 2,
              'a list of two whole numbers above 0, height and width'),
    'kernels': (lambda v: is_list(v, lambda name: name in BLUR_KERNELS) and len(v) > 0,
                f'a list of: {", ".join(BLUR_KERNELS)}'),
    'quality': (lambda v: KINDS['range'][0](v) and v[0] >= 1 and v[1] <= 100,
                'a list [lowest, highest] within 1 to 100'),
    'words': (lambda v: is_list(v, _is_text), 'a list of names, such as [a, b]'),
    'dict': (lambda v: isinstance(v, dict), 'a section, keys with values under it'),
    'factors': (lambda v: isinstance(v, dict), 'a section of numbers, such as {conv5_4: 1}'),
    'pairs': (lambda v: isinstance(v, dict) and all(map(_is_text, (*v, *v.values()))),
              'names in pairs, in quotes where they look like numbers, such as {body.16: body.4}'),
    'dicts': (lambda v: is_list(v, lambda item: isinstance(item, dict)), 'a list of sections, one `- {...}` each'),
}


def fits(kind: str, value: Any) -> bool:
    if kind.endswith('?'):
        return value is None or fits(kind[:-1], value)
    if '|' in kind:
        return isinstance(value, str) and value in kind.split('|')
    return any(KINDS[part][0](value) for part in kind.split(' or '))


def words(kind: str) -> str:
    kind, null = kind.removesuffix('?'), ', or ~' if kind.endswith('?') else ''
    if '|' in kind:
        return 'one of ' + ', '.join(f'`{word}`' for word in kind.split('|')) + null
    return ', or '.join(KINDS[part][1] for part in kind.split(' or ')) + null


def require(key: str, kind: str, value: Any) -> None:
    """Refuses a value of another kind.

    Raises:
        OptionError: With what to write instead.
    """
    kind = kind.partition('!')[0]
    if not fits(kind, value):
        hint = nearest(value, kind.rstrip('?').split('|')) if '|' in kind and isinstance(value, str) else ''
        raise OptionError(f'`{key}` cannot be {_short(value)}. Write {words(kind)}.{hint}')
    if kind.rstrip('?') == 'factors':
        for name, item in (value or {}).items():
            require(f'{key}.{name}', 'weight', item)


def _short(value: Any) -> str:
    text = '~' if value is None else 'a section' if isinstance(value, dict) and value else repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
