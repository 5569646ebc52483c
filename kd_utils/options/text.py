"""Option files as texts: safe YAML, with environment variables, found by path or by the name of a shipped one."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kd_utils.schema import OptionError, Options, closest, nearest


class _Loader(yaml.SafeLoader):
    """The safe loader, reading `1e-4` as a number and refusing a key that is written twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == '<<':
                continue
            name = key.tag, key.value
            if name in lines:
                raise yaml.composer.ComposerError(None, None, f'the key `{key.value}` is there twice, first in line '
                                                  f'{lines[name]}', key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # such as `!!float abc`
            raise yaml.constructor.ConstructorError(None, None, f'cannot be read ({error})', node.start_mark) from None

    def refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace('tag:yaml.org,2002:', '!!')
        raise yaml.constructor.ConstructorError(None, None, f'the tag `{tag}` is not allowed, option files hold values '
                                                'and no code', node.start_mark)


_Loader.add_constructor(None, _Loader.refuse_tag)  # type: ignore[type-var]
# YAML 1.1 takes a number in scientific notation for text where it has no point or its exponent no sign.
_Loader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
                              list('-+.0123456789'))

_VARIABLE = re.compile(r'\$\{(\w+)\}')
_DEFAULTS = {'KD_DATA': 'datasets'}
_MOST_VALUES = 100_000


def load_yaml(path: str | Path) -> Options:
    """Reads an option file.

    Args:
        path: The file, or the name of a shipped one, see `find_option_file`. `${NAME}` in its texts becomes the
            environment variable, `${KD_DATA}` `datasets` where that is not set.

    Returns:
        dict: The options, with those of its `base` where it names one; no two of its sections are the same object, even
            where the file repeats one by `*name`.

    Raises:
        OptionError: The file or its base is missing, or is no YAML mapping of plain values, or it is its own base; the
            message has its name and line.
    """
    return _load(find_option_file(path), ())


def _load(path: Path, variants: tuple[Path, ...]) -> Options:
    """The options of a file that stands at the end of a chain of variants."""
    opt = _read(path)
    name = opt.pop('base', None)
    if name is None and 'without' in opt:
        raise OptionError(f'{path}: `without` takes keys out of a base, and there is no `base`. Add it, or take the '
                          'keys themselves out of the file.')
    if name is None:
        return opt
    if not isinstance(name, str) or not name.strip():
        raise OptionError(f'{path}: `base` cannot be {name!r}. Write the name of an option file, or take it out.')
    chain = (*variants, path.resolve())
    base = _base_of(path, name)
    if base.resolve() in chain:
        raise OptionError(f'{path}: its `base`, {base}, is in the end based on the file itself. Let one of the two '
                          'stand without `base`.')
    options = _load(base, chain)
    for key in _listed(path, opt.pop('without', [])):
        _take_out(path, base, options, key)
    return merge(options, opt)


def _listed(path: Path, keys: Any) -> list[str]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise OptionError(f'{path}: `without` cannot be {keys!r}. Write a list of keys of its base, such as '
                          '[network_d, train.gan_opt].')
    return keys


def _take_out(path: Path, base: Path, options: Options, key: str) -> None:
    """Removes what a base has under a dotted key."""
    *parents, last = key.split('.')
    section: Any = options
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    if not isinstance(section, dict) or last not in section:
        hint = nearest(last, section) if isinstance(section, dict) else ''
        raise OptionError(f'{path}: `without` names `{key}`, which its `base`, {base}, does not have.{hint} Correct '
                          'the key, or take it out of the list.')
    del section[last]


def _base_of(path: Path, name: str) -> Path:
    """The file of that name beside a variant, else the shipped one."""
    beside = [path.parent / f'{name}{suffix}' for suffix in ('', '.yml')]
    found = next((file for file in beside if file.is_file()), None)
    try:
        return found or find_option_file(name)
    except OptionError as error:
        raise OptionError(f'{path}: its `base` cannot be found. {error}') from None


def merge(base: Options, changes: Options) -> Options:
    """The options of a base with those of a variant: sections are merged, everything else is replaced.

    A section of another `type` than the base's replaces it whole, since the keys of one class are not those of another.
    """
    merged = dict(base)
    for key, value in changes.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, dict) and not _of_other_types(known, value):
            merged[key] = merge(known, value)
        else:
            merged[key] = value
    return merged


def _of_other_types(one: Options, other: Options) -> bool:
    return None not in (one.get('type'), other.get('type')) and one['type'] != other['type']


def _read(path: Path) -> Options:
    try:
        text = path.read_text(encoding='utf-8')
    except OSError as error:
        raise OptionError(f'{path} cannot be read ({error.strerror}). Name a YAML file.') from None
    except UnicodeDecodeError:
        raise OptionError(f'{path} is not a text in UTF-8. Name a YAML file.') from None
    opt = parse_yaml(text, str(path))
    if not isinstance(opt, dict):
        raise OptionError(f'{path} holds no options. Write keys and values, such as `name: my_experiment`.')
    return opt


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text; `origin` names it in error messages. See `load_yaml`."""
    try:
        return _finish(yaml.load(text, Loader=_Loader), '', iter(range(_MOST_VALUES)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f':{mark.line + 1}' if mark else ''
        raise OptionError(f'{origin}{line}: {error.problem or error.context}. Correct the YAML there.') from None
    except yaml.YAMLError as error:
        raise OptionError(f'{origin}: {" ".join(str(error).split())}. Correct the YAML.') from None
    except (RecursionError, StopIteration):
        raise OptionError(f'{origin} refers to itself or has more than {_MOST_VALUES} values. '
                          'Write it plainly.') from None


def _finish(value: Any, key: str, budget: Iterator[int]) -> Any:
    """A copy with the environment variables filled in and nothing shared: BasicSR changes sections in place."""
    next(budget)
    if isinstance(value, dict):
        return {name: _finish(item, f'{key}.{name}' if key else str(name), budget) for name, item in value.items()}
    if isinstance(value, list):
        return [_finish(item, f'{key}[{i}]', budget) for i, item in enumerate(value)]
    return _VARIABLE.sub(lambda match: _variable(match[1], key), value) if isinstance(value, str) else value


def _variable(name: str, key: str) -> str:
    value = os.environ.get(name) or _DEFAULTS.get(name)
    if value is None:
        raise OptionError(f'`{key}` uses ${{{name}}}, an environment variable that is not set. '
                          f'Set it, or write its value into the file.{nearest(name, _DEFAULTS)}')
    return value


def find_option_file(name: str | Path) -> Path:
    """The option file of that path, or else the shipped one of that name; `.yml` may be left out.

    Raises:
        OptionError: There is none; the message names the nearest.
    """
    shipped = _shipped_folder()
    candidates = [folder / f'{name}{suffix}' for folder in (Path(), shipped) for suffix in ('', '.yml')]
    found = next((path for path in candidates if path.is_file()), None)
    if found:
        return found
    names = [str(path.relative_to(shipped)) for path in sorted(shipped.rglob('*.yml'))]
    names += [str(path) for path in sorted(Path(name).parent.glob('*.yml'))]
    by_stem = {Path(path).stem: path for path in names}
    match = closest(str(name), names) or by_stem.get(closest(Path(name).stem, by_stem) or '')
    hint = f' Did you mean `{match}`?' if match else ' Name a YAML file.'
    raise OptionError(f'There is no option file `{name}`, here or among the shipped ones.{hint}')


def _shipped_folder() -> Path:
    """`options/` in a checkout; inside the package once it is installed."""
    root = Path(__file__).resolve().parents[2]
    installed = root / 'kd_cli' / 'options'
    return installed if installed.is_dir() else root / 'options'
