"""The schema that is shipped is the one that the tables make, and every shipped file names it."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / 'options' / 'basicsr-kd.schema.json'


def without_optimizers(path):
    """Their arguments are those of the torch that is installed."""
    schema = json.loads(path.read_text())
    for name in ('optimizer', 'whole optimizer'):
        assert schema['definitions'].pop(name)
    return schema


def test_the_shipped_schema_is_up_to_date(tmp_path):
    """Made in a process of its own: tests register classes too."""
    subprocess.run([sys.executable, '-m', 'kd_cli.schema', tmp_path / 'new.json'], cwd=ROOT, check=True, timeout=300)
    assert without_optimizers(tmp_path / 'new.json') == without_optimizers(SHIPPED), \
        'Write it anew: python -m kd_cli.schema'
    assert max(map(len, SHIPPED.read_text().splitlines())) < 600  # so that a change of it can be read


def test_every_shipped_file_names_it():
    files = sorted((ROOT / 'options').rglob('*.yml'))
    assert files
    for file in files:
        mark, _, path = file.read_text().partition('\n')[0].partition('=')
        assert mark == '# yaml-language-server: $schema' and (file.parent / path).samefile(SHIPPED), file
