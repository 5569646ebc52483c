"""The shipped files: recipes that stand alone, and variants that say only what differs."""
from __future__ import annotations

from pathlib import Path

import pytest

from kd_utils.options import load_yaml, parse_yaml

OPTIONS = Path(__file__).parents[3] / 'options'
WRITTEN = {file: parse_yaml(file.read_text(), str(file)) for file in sorted(OPTIONS.rglob('*.yml'))}
VARIANTS = [file for file, opt in WRITTEN.items() if 'base' in opt]


def repeated(opt, base, without, prefix=''):
    """The keys of a variant that say what its base says."""
    for key, value in opt.items():
        full = f'{prefix}{key}'
        if not isinstance(base, dict) or key not in base or full in without:
            continue
        same_class = isinstance(value, dict) and isinstance(base[key], dict) \
            and value.get('type', base[key].get('type')) == base[key].get('type')
        if value == base[key]:
            yield full
        elif same_class:
            yield from repeated(value, base[key], without, f'{full}.')


def test_a_repetition_is_found():
    base = {'a': 1, 'b': {'type': 'X', 'c': 2, 'd': 3}, 'e': {'type': 'X', 'f': 1}}
    opt = {'a': 1, 'b': {'c': 2, 'd': 4}, 'e': {'type': 'Y', 'f': 1}}
    assert list(repeated(opt, base, [])) == ['a', 'b.c']
    assert list(repeated(opt, base, ['a', 'b'])) == []


def test_most_shipped_files_are_variants():
    assert len(VARIANTS) > len(WRITTEN) / 2 > 0


@pytest.mark.parametrize('file', VARIANTS, ids=lambda file: str(file.relative_to(OPTIONS)))
def test_a_variant_says_nothing_that_its_base_says(file):
    opt = WRITTEN[file]
    base = load_yaml(file.parent / opt['base'])
    assert not list(repeated(opt, base, opt.get('without', [])))
