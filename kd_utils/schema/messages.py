"""What is said of a mistake: the error that the user sees, and the nearest right word."""
from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

Options = dict[str, Any]


class CheckedOptions(dict[str, Any]):
    """Options that have been completed and checked, so that a model built from them does neither again."""


class OptionError(ValueError):
    """Something that the user wrote cannot work; the message says what to write instead."""


_MOST_NAMES = 8


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, or None if none is like it."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    matches = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean ...?` for an error message, empty if no choice is like `word`."""
    choice = closest(word, choices)
    return f' Did you mean `{choice}`?' if choice else ''


def nearest_or_all(word: str, choices: Iterable[str]) -> str:
    """` Did you mean ...?` for an error message, or the choices; of many, those most like `word`."""
    names = sorted(map(str, choices))
    if nearest(word, names) or not names:
        return nearest(word, names)
    if len(names) <= _MOST_NAMES:
        return f' Choose from: {", ".join(names)}.'
    names.sort(key=lambda name: -difflib.SequenceMatcher(None, str(word).lower(), name.lower()).ratio())
    return f' Choose from: {", ".join(names[:_MOST_NAMES])}, ...'
