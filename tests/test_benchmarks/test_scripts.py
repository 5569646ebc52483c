"""Programs beside the package: basicsr 1.4.2 can only be imported after it on today's torchvision."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [path for folder in ('benchmarks', 'docs/results') for path in sorted((ROOT / folder).rglob('*.py'))
           if re.search(r'^(from|import) kd_', path.read_text(), re.M)]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_is_imported_before_basicsr(script):
    imported = re.findall(r'^(?:from|import) (kd_|basicsr)', script.read_text(), re.M)
    assert imported[0] == 'kd_'
