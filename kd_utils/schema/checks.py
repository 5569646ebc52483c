"""What all checks of an option file are made of: ways to refuse, and tables of keys."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from kd_utils.schema.kinds import Table, require, words
from kd_utils.schema.lookups import get
from kd_utils.schema.messages import OptionError, Options, nearest_or_all
from kd_utils.schema.tables import FOLDERS, LOGGER, PATH, REAL_ESRGAN, RUN, TOP, TRAIN, VAL, path_keys


class Checks:
    """One pass over the options; each method checks one section.

    Args:
        opt: All options.
        losses: Loss -> its class where `<name>_opt` gives no `type`.
        strict: Whether the loop is this package's.
    """

    def __init__(self, opt: Options, losses: Mapping[str, str | None], strict: bool) -> None:
        self.opt = opt
        self.losses = dict(losses)
        self.strict = strict
        self.training = bool(opt.get('is_train', True))
        self.warnings: list[str] = []
        self.model: Any = None
        self.terms: dict[str, Any] = {}
        self.ours = True

    def refuse(self, message: str) -> NoReturn:
        raise OptionError(message)

    def refuse_in_ours(self, message: str) -> None:
        """Refuses what our models cannot work with; the model of another project may know better."""
        if self.ours:
            self.refuse(message)
        self.warnings.append(f'{message} (A warning only, {self.opt["model_type"]} may know better.)')

    def refuse_in_our_loop(self, message: str) -> None:
        """Refuses what our loop does not read; another project's loop may know better."""
        if self.strict:
            self.refuse(message)
        self.warnings.append(f'{message} (A warning only, the loop may know better.)')

    def table(self, prefix: str, section: Options, table: Table, training: bool,
              unknown: Callable[[str], None] | None = None, missing: Callable[[str], None] | None = None) -> None:
        """Checks keys and kinds of a section.

        `unknown` is told of keys outside the table, `missing` of those that must be there; `doubt` by default.
        """
        for key, value in section.items():
            full = join(prefix, key)
            if key in table:
                require(full, table[key], value)
            else:
                known = table.keys() - RUN.keys() - FOLDERS.keys()
                (unknown or self.refuse_in_ours)(f'Unknown key '
                                                 f'`{full}`.{self.place(key) or nearest_or_all(key, known)}')
        for key, kind in table.items():
            kind, _, when = kind.partition('!') if '!' in kind else (kind, '', 'never')
            if key not in section and (when == '' or when == 'train' and training):
                (missing or self.refuse_in_ours)(f'`{join(prefix, key)}` is missing. Write {words(kind)}.')

    def place(self, key: Any) -> str:
        """` Move it ...` for a key that another section knows, empty if none does."""
        losses = {f'{name}_opt': 'dict?' for name in self.losses}
        sections = {'to the top of the file': {**TOP, **REAL_ESRGAN}, 'into `train`': {**TRAIN, **losses},
                    'into `val`': VAL, 'into `logger`': LOGGER, 'into `path`': {**PATH, **path_keys('gd')},
                    'into each of the `datasets`': {'io_backend': 'dict'}}
        if re.fullmatch(r'(val|test)_\d+', str(key)):
            return ' Move it into `datasets`.'
        return next((f' Move it {place}.' for place, table in sections.items() if key in table), '')

    def extended(self, prefix: str, table: Table) -> dict[str, str]:
        """The table with the keys that the model's class adds to this section."""
        own = getattr(self.model, 'option_keys', {})
        return {**table, **{key.rpartition('.')[2]: kind for key, kind in own.items()
                            if key.rpartition('.')[0] == prefix}}

    def lookup(self, key: str, what: str, name: Any, choices: Mapping[str, Any]) -> Any:
        """The object that is registered under the name written at `key`."""
        if name is None:
            self.refuse(f'`{key}` is missing. Name the {what}.')
        require(key, 'str', name)
        if name not in choices:
            hint = nearest_or_all(name, {choice.removesuffix('_basicsr') for choice in choices})
            self.refuse(f'`{key}`: no {what} is called `{name}`.{hint} One of your own must be imported to be known.')
        return choices[name]

    def constructor(self, prefix: str, section: Options, table: Table, swallows: bool,
                    unknown: Callable[[str], None], missing: Callable[[str], None] | None = None) -> None:
        """Checks a section whose keys are the arguments of a class."""
        self.table(prefix, section, {'type': 'str', **table}, self.training, ignore if swallows else unknown, missing)

    def check_simple(self, key: str, table: Table) -> None:
        """Checks a section that the loop reads, so that no model can know better."""
        section = get(self.opt, key)
        if section:
            self.table(key, section, self.extended(key, table), self.training, self.refuse_in_our_loop)


def ignore(message: str) -> None:
    """For keys that only the class itself knows."""


def join(prefix: str, key: Any) -> str:
    """The dotted key of an entry of a section."""
    return f'{prefix}.{key}' if prefix else str(key)
