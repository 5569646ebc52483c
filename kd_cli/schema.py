"""The command that writes the JSON Schema of option files, for editors.

    python -m kd_cli.schema [FILE]      by default options/basicsr-kd.schema.json

See docs/options.md for its use.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kd_models  # noqa: F401  fills the registries
from kd_cli.errors import reported
from kd_utils.schema.json_schema import json_schema


@reported
def main(argv: Sequence[str] | None = None) -> None:
    """Writes the schema to the file that the command line names."""
    parser = argparse.ArgumentParser(description='writes the JSON Schema of option files')
    parser.add_argument('file', nargs='?', default='options/basicsr-kd.schema.json', type=Path)
    parser.parse_args(argv).file.write_text(text(), encoding='utf-8')


def text() -> str:
    """The schema as it is written: what fits into a line stands in one, and so do lists of values."""
    return _written(json_schema(), '') + '\n'


def _written(value: Any, indent: str) -> str:
    line, inner = json.dumps(value), indent + ' '
    if len(indent) + len(line) <= 120 or isinstance(value, list) and not isinstance(value[0], dict):
        return line
    if isinstance(value, list):
        return '[\n' + ',\n'.join(inner + _written(item, inner) for item in value) + f'\n{indent}]'
    items = (f'{inner}{json.dumps(key)}: {_written(item, inner)}' for key, item in value.items())
    return '{\n' + ',\n'.join(items) + f'\n{indent}}}'


if __name__ == '__main__':
    main()
