"""Damaged option files: the places of a YAML text where something can go wrong, and what goes wrong there."""
from __future__ import annotations

import contextlib
import copy
import functools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_utils.options import OptionError
from kd_utils.options.text import _Loader, _take_out, merge
from kd_utils.schema import MODEL_REGISTRY, get, measured_teachers, registered, requirements_of

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ('train', 'test') for path in (ROOT / 'options' / folder).rglob('*.yml'))
PATHS = ('dataroot_gt', 'dataroot_lq', 'meta_info', 'meta_info_file', 'pretrain_network_g', 'pretrain_network_d',
         'weights', 'real')
# Numbers that may well be negative.
ANY_SIGN = ('real_label_val', 'fake_label_val', 'mean', 'std', 'rgb_mean', 'resample_kernel')
CODE = ('!!python/object/apply:os.system', '!!python/object/new:os.system', '!!python/name:os.system', '!!python/tuple')


@dataclass(frozen=True)
class Entry:
    """A key and its value.

    Attributes:
        path: The keys that lead to it, numbers for the items of a list.
        key, value: Their nodes.
        siblings: All keys and values of the section.
        index: Which of them it is.
        section: The node of the section.
    """
    path: tuple[str, ...]
    key: yaml.Node
    value: yaml.Node
    section: yaml.MappingNode
    index: int

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def full(self) -> str:
        """As messages write it: `train.stages[0].iters`."""
        return re.sub(r'\.(\d+)(?=\.|$)', r'[\1]', '.'.join(self.path))

    @property
    def is_section(self) -> bool:
        return isinstance(self.value, yaml.MappingNode)

    @property
    def is_block(self) -> bool:
        """Whether it has lines of its own."""
        return not self.section.flow_style

    def data(self) -> Any:
        return _Loader('').construct_object(self.value, deep=True)


@dataclass(frozen=True)
class Damage:
    """A damaged text and what a message about it may mention, one of `names`."""
    file: Path
    kind: str
    where: str
    text: str
    names: tuple[str, ...]

    @property
    def is_train(self) -> bool:
        return self.file.relative_to(ROOT).parts[1] == 'train'


def whole(file: Path) -> dict[str, Any]:
    """The options of a file and its bases, with environment variables as they are written."""
    options = yaml.load(file.read_text(), Loader=_Loader)
    base, without = options.pop('base', None), options.pop('without', [])
    if base is None:
        return options
    of_base = whole(file.parent / base)
    for key in without:
        _take_out(file, file, of_base, key)
    return merge(of_base, options)


class Source:
    """A shipped file, taken apart; a variant as if it stood without its base."""

    def __init__(self, file: Path) -> None:
        self.file, self.text = file, file.read_text()
        if '\nbase: ' in self.text:
            self.text = yaml.safe_dump(whole(file), sort_keys=False)
        node = yaml.compose(self.text, Loader=_Loader)
        assert isinstance(node, yaml.MappingNode)
        self.entries = list(self._walk(node, ()))
        self.options: dict[str, Any] = _Loader('').construct_document(node)
        self.is_train = file.relative_to(ROOT).parts[1] == 'train'

    def _walk(self, node: yaml.Node, path: tuple[str, ...]) -> Iterator[Entry]:
        if isinstance(node, yaml.MappingNode):
            for index, (key, value) in enumerate(node.value):
                yield Entry((*path, key.value), key, value, node, index)
                yield from self._walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield from self._walk(value, (*path, str(index)))

    def written(self, node: yaml.Node) -> str:
        return self.text[node.start_mark.index:node.end_mark.index]

    def with_key(self, entry: Entry, text: str) -> str:
        return self._replaced(entry.key.start_mark.index, entry.key.end_mark.index, text)

    def with_value(self, entry: Entry, text: str) -> str:
        start, end = entry.value.start_mark.index, entry.value.end_mark.index
        if entry.is_block and not isinstance(entry.value, yaml.ScalarNode) and not entry.value.flow_style:
            start, end = entry.key.end_mark.index + 1, self.span(entry)[1]
            return self._replaced(start, end, f' {text}\n')
        return self._replaced(start, end, text)

    def without(self, entry: Entry) -> str:
        return self._replaced(*self.span(entry), '')

    def span(self, entry: Entry) -> tuple[int, int]:
        """From where to where an entry goes: its lines, or its part of `{a: 1, b: 2}`."""
        pairs, i = entry.section.value, entry.index
        last = i == len(pairs) - 1
        if entry.is_block:
            end = entry.section.end_mark.index if last else pairs[i + 1][0].start_mark.index
            return self._line(entry.key.start_mark.index), self._line(end)
        if not last:
            return entry.key.start_mark.index, pairs[i + 1][0].start_mark.index
        return (pairs[i - 1][1].end_mark.index if i else entry.key.start_mark.index), entry.value.end_mark.index

    def _line(self, index: int) -> int:
        return len(self.text) if index >= len(self.text) else self.text.rfind('\n', 0, index) + 1

    def _replaced(self, start: int, end: int, text: str) -> str:
        return self.text[:start] + text + self.text[end:]


@functools.cache
def sources() -> tuple[Source, ...]:
    return tuple(map(Source, FILES))


@functools.cache
def known_words() -> frozenset[str]:
    """Every key and every `type` of the shipped files."""
    entries = [entry for source in sources() for entry in source.entries]
    return frozenset([entry.name for entry in entries]
                     + [entry.value.value for entry in entries if entry.name.endswith('type')])


def misspelt(word: str, rng: random.Random) -> str:
    """With two letters exchanged, one left out or one doubled; never another word of the files."""
    letters = [i for i, letter in enumerate(word) if letter.isalpha()]
    while True:
        i, how = rng.choice(letters), rng.randrange(3)
        before, letter, after = word[:i], word[i], word[i + 1:]
        wrong = before + (after[:1] + letter + after[1:], after, letter + letter + after)[how]
        if wrong and wrong not in known_words() and wrong.lower() != word.lower():
            return wrong


# ------------------------------------------------------------------------------------------------- dropped sections
#
# A section is needed if BasicSR's format or that of `teacher` asks for it, if it is an argument without a default, or
# if something that stays in the file refers to it. Every other section is an option, docs/options.md says what its
# absence means: without it the file is valid and says something else. What the method of the file supplies (its
# `complete`) is an option too, and the log says what is taken instead.

ASKED = ('datasets', 'datasets.train', 'network_g', 'train', 'train.optim_g', 'logger', 'teacher.network_g',
         'teacher.path')
ARGUMENTS = ('io_backend', 'layer_weights')


def sections(source: Source) -> list[Entry]:
    return [entry for entry in source.entries if entry.is_section or entry.name == 'stages']


def referred(source: Source) -> Iterator[str]:
    """The sections that something else refers to."""
    opt = source.options
    if measured_teachers(opt):
        yield 'teacher'
    if not source.is_train:
        return
    train, stages = opt['train'], opt['train'].get('stages') or []
    if 'val' in opt['datasets']:
        yield 'val'
    yield from (f'train.{loss}_opt' for stage in stages for loss in stage['losses'])
    yield from (need for loss, needs in requirements_of(opt).items() if train.get(f'{loss}_opt') is not None
                for need in needs)
    if train.get('gan_opt') is not None:
        yield from ('network_d', 'train.optim_d')
    if train.get('optim_d') is not None:
        yield 'train.gan_opt'
    if get(opt, 'teacher.path.pretrain_network_d') or any(stage.get('discriminator') == 'teacher' for stage in stages):
        yield 'teacher.network_d'


def supplied(source: Source, entry: Entry) -> list[str] | None:
    """What the log says where the file's method supplies the section, None where it does not."""
    opt = copy.deepcopy({**source.options, 'is_train': source.is_train})
    *parents, name = entry.path
    del functools.reduce(lambda section, key: section[key], parents, opt)[name]
    try:
        messages = registered(MODEL_REGISTRY)[opt['model_type']].complete(opt)
    except OptionError:
        return None
    return messages if get(opt, entry.full) is not None else None


def is_needed(source: Source, entry: Entry) -> bool:
    needed = entry.full in ASKED or entry.name in ARGUMENTS or entry.full in referred(source)
    return needed and supplied(source, entry) is None


# ------------------------------------------------------------------------------------------------------------- kinds
#
# A kind takes a file and random numbers, and gives None if the file has no place for it, or
#     where it happened, the damaged text, what a message may mention

Kind = Callable[[Source, random.Random], 'tuple[str, str, tuple[str, ...]] | None']
KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    KINDS[function.__name__.replace('_', ' ')] = function
    return function


class NoPlace(Exception):
    """The file has no place for such a damage."""


def pick(entries: list[Entry], rng: random.Random) -> Entry:
    if not entries:
        raise NoPlace
    return rng.choice(entries)


def is_free(entry: Entry) -> bool:
    """Whether the key is a name that the user chooses."""
    return entry.path[:-1] == ('val', 'metrics') or 'layers' in entry.path[:-1]


def has_type(entry: Entry) -> bool:
    return any(key.value == 'type' for key, _ in entry.section.value)


def is_number(entry: Entry) -> bool:
    return isinstance(entry.value, yaml.ScalarNode) and isinstance(entry.data(), int | float) \
        and not isinstance(entry.data(), bool)


def misspell(source: Source, rng: random.Random, entries: list[Entry]):
    entry = pick([entry for entry in entries if not is_free(entry)], rng)
    wrong = misspelt(entry.name, rng)
    return f'{entry.full} -> {wrong}', source.with_key(entry, wrong), (wrong, f'`{entry.full}`')


@kind
def a_key_misspelt(source, rng):
    return misspell(source, rng, source.entries)


@kind
def an_argument_misspelt(source, rng):
    """Of the constructor of a network, loss, optimizer, scheduler or metric."""
    return misspell(source, rng, [entry for entry in source.entries if entry.path[0] != 'datasets'
                                  and entry.name != 'type' and has_type(entry)])


@kind
def an_unknown_class(source, rng):
    entry = pick([entry for entry in source.entries if entry.name in ('type', 'model_type')], rng)
    wrong = misspelt(entry.value.value, rng)
    return f'{entry.full}: {wrong}', source.with_value(entry, wrong), (f'`{entry.full}`', )


@kind
def a_value_of_another_type(source, rng):
    entry = pick(source.entries, rng)
    data = entry.data()
    others = {bool: ['perhaps', '7', '[true]'], int: ['many', 'true', '{of: 4}'], float: ['many', 'true', '{of: 4}'],
              str: ['7.5', 'true', '{of: 4}', '[a]'], list: ['7', 'many', '{of: 4}'], dict: ['7', 'many', '[4]'],
              type(None): ['[[4]]', '{of: 4}']}
    value = rng.choice(others[type(data)])
    return f'{entry.full}: {value}', source.with_value(entry, value), (entry.full, )


@kind
def a_list_for_a_scalar(source, rng):
    entry = pick([entry for entry in source.entries if isinstance(entry.value, yaml.ScalarNode)], rng)
    written = source.written(entry.value)
    value = f'["{written}"]' if '{' in written else f'[{written}]'
    return f'{entry.full}: {value}', source.with_value(entry, value), (entry.full, )


@kind
def a_number_in_quotes(source, rng):
    entry = pick(list(filter(is_number, source.entries)), rng)
    value = f'"{entry.data()}"'
    return f'{entry.full}: {value}', source.with_value(entry, value), (entry.full, )


@kind
def a_negative_number(source, rng):
    def has_sign(entry):
        data = entry.data()
        first = next(iter(data), None) if isinstance(data, list) else data
        return entry.name not in ANY_SIGN and isinstance(first, int | float) and first > 0 and first is not True
    entry = pick(list(filter(has_sign, source.entries)), rng)
    data = entry.data()
    value = str([-data[0], *data[1:]] if isinstance(data, list) else -data)
    return f'{entry.full}: {value}', source.with_value(entry, value), (entry.full, )


@kind
def a_section_dropped(source, rng):
    entry = pick([entry for entry in sections(source) if is_needed(source, entry)], rng)
    return entry.full, source.without(entry), (entry.full, entry.name)


@kind
def a_section_at_the_wrong_level(source, rng):
    """Indented into the one before, or taken out to the top."""
    def before(entry):
        return entry.section.value[entry.index - 1][1] if entry.index else None
    blocks = [entry for entry in source.entries if entry.is_section and entry.is_block and not entry.value.flow_style]
    entry = pick([entry for entry in blocks if len(entry.path) > 1 or isinstance(before(entry), yaml.MappingNode)],
                 rng)
    start, end = source.span(entry)
    lines = source.text[start:end].splitlines(keepends=True)
    if len(entry.path) == 1:
        text = source.text[:start] + ''.join(f'  {line}' for line in lines) + source.text[end:]
    else:
        depth = entry.key.start_mark.column
        text = source.without(entry) + ''.join(line[depth:] for line in lines if line.startswith(' ' * depth))
    return entry.full, text, (f'{entry.name}`', f'`{entry.name}.')


@kind
def a_path_broken(source, rng):
    def is_asked(entry):
        return entry.path[0] != 'teacher' or source.is_train or measured_teachers(source.options)
    entry = pick([entry for entry in source.entries if entry.name in PATHS and isinstance(entry.data(), str)
                  and is_asked(entry)], rng)
    path = entry.data()
    folder, _, name = path.rpartition('/')
    wrong = [f'{folder}/{misspelt(name, rng)}' if re.search('[a-z]', name) else f'{path}_', f'/nowhere/{name}', "''",
             f'{path}/{name}']
    wrong += [path.replace('KD_DATA', misspelt('KD_DATA', rng))] * ('KD_DATA' in path)
    value = rng.choice(wrong)
    return f'{entry.full}: {value}', source.with_value(entry, value), (f'`{entry.full}`', )


@kind
def a_key_twice(source, rng):
    entry = pick([entry for entry in source.entries if isinstance(entry.value, yaml.ScalarNode)], rng)
    again = f'{source.written(entry.key)}: {source.written(entry.value)}'
    start = entry.key.start_mark.index
    glue = '\n' + ' ' * entry.key.start_mark.column if entry.is_block else ', '
    return entry.full, source.text[:start] + again + glue + source.text[start:], (f'`{entry.name}` is there twice', )


@kind
def a_tab(source, rng):
    """For indentation."""
    entry = pick([entry for entry in source.entries if entry.is_block and entry.key.start_mark.column], rng)
    start = entry.key.start_mark.index
    text = source.text[:start - entry.key.start_mark.column] + '\t' + source.text[start:]
    return entry.full, text, (f'.yml:{entry.key.start_mark.line + 1}: ', )


@kind
def code(source, rng):
    """A tag that makes PyYAML's unsafe loader run something."""
    entry = pick(source.entries, rng)
    tag = rng.choice(CODE)
    return f'{entry.full}: {tag}', source.with_value(entry, f'{tag} ["touch marker"]'), (tag, )


@kind
def a_bracket_left_open(source, rng):
    entry = pick([entry for entry in source.entries if source.written(entry.value).endswith((']', '}'))], rng)
    return entry.full, source.with_value(entry, source.written(entry.value)[:-1]), ('.yml:', )


@kind
def stages_that_do_not_add_up(source, rng):
    entry = pick([entry for entry in source.entries if entry.path[:2] == ('train', 'stages') and entry.name == 'iters'
                  or entry.path == ('train', 'total_iter') and get(source.options, 'train.stages')], rng)
    value = str(int(entry.data()) + rng.randint(1, 9) * 10 ** rng.randrange(5))
    return f'{entry.full}: {value}', source.with_value(entry, value), ('`train.stages` add up to', )


def damaged(count: int, seed: int = 0) -> Iterator[Damage]:
    """`count` damaged files, over all shipped files and all kinds in turn."""
    rng, names = random.Random(seed), list(KINDS)
    shuffled = list(sources())
    rng.shuffle(shuffled)
    for i in range(count):
        source, first = shuffled[i % len(shuffled)], i + i // len(shuffled)
        for j in range(len(names)):
            name = names[(first + j) % len(names)]
            with contextlib.suppress(NoPlace):
                yield Damage(source.file, name, *KINDS[name](source, rng))
                break
