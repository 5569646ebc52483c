"""Imports run one way, from the commands down to the utilities, and never in a circle."""
from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the roof to the ground; a package may import those of the rows below it.
FLOORS = (('kd_cli', ), ('kd_models', ), ('kd_losses', 'kd_arch', 'kd_data', 'kd_metrics'), ('kd_utils', ))
# From the roof to the ground of kd_models; a file may import those of the rows below it, and of its own.
STORIES = (
    ('*_model', 'unconditional'),
    ('advkd_options', 'sdstylegan2_options'),
    ('build', 'update', 'checkpoints', 'validation'),
    ('upcycling', ),
    ('forwards', 'terms', 'report', 'alarm', 'phases'),
    ('training', 'phase_adversary'),
    ('adversary', ),
    ('features', 'stages', 'runtime', 'teacher', 'step', 'pairing', 'probe', 'taps', 'adapters', 'degradation',
     'synthesis', 'guard', 'retention', 'ema', 'averaging'),
)


def imports() -> dict[str, set[str]]:
    """Module -> the modules of this project that it imports, for types and inside functions too."""
    files = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path for floor in FLOORS for package in floor
             for path in (ROOT / package).rglob('*.py')}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        of_module = found[name.removesuffix('.__init__')] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f'{node.module}.{alias.name}' for alias in node.names] + [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            known = [imported for imported in names if imported in files or f'{imported}.__init__' in files]
            # `from package import module` is of the module, not of the package that it lies in
            longest = [one for one in known if not any(other.startswith(f'{one}.') for other in known)]
            of_module.update(one for one in longest if one != name)
    return found


IMPORTS = imports()


def floor_of(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if module.split('.')[0] in floor)


def story_of(module: str) -> int | None:
    name = module.removeprefix('kd_models.')
    name = '*_model' if name.endswith('_model') else name
    return next((i for i, story in enumerate(STORIES) if name in story), None)


def test_no_circle_of_files():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f'a circle: {error.args[1]}')


@pytest.mark.parametrize('module', sorted(IMPORTS))
def test_nothing_imports_upwards(module):
    for imported in IMPORTS[module]:
        assert floor_of(imported) >= floor_of(module), f'{module} imports {imported}'


@pytest.mark.parametrize('module', sorted(name for name in IMPORTS if name.startswith('kd_models.')))
def test_nothing_in_the_models_imports_upwards(module):
    assert story_of(module) is not None, f'say in STORIES where {module} belongs'
    for imported in IMPORTS[module]:
        if imported.startswith('kd_models.'):
            assert story_of(imported) >= story_of(module), f'{module} imports {imported}'


# What the interpreter of Windows lacks.
NOT_ON_WINDOWS = ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'syslog', 'pty')
UNIX_SIGNALS = ('SIGHUP', 'SIGKILL', 'SIGUSR1', 'SIGUSR2', 'SIGALRM', 'SIGCHLD', 'SIGQUIT', 'SIGTSTP', 'SIGSTOP')
UNIX_CALLS = ('fork', 'geteuid', 'getuid', 'getppid', 'killpg', 'getpgid', 'setsid', 'statvfs', 'sched_getaffinity',
              'register_at_fork', 'mkfifo', 'getloadavg')
IMPORTING = """
import importlib, os, signal, sys, types
from kd_utils import compat
compat.install()
import basicsr, diffusers, lpips, matplotlib.pyplot, skimage, tqdm, yaml  # these have their own way there
for name in [name for name in sys.modules if name.startswith('kd_')]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys({modules}), msvcrt=types.ModuleType('msvcrt'))
for place, names in ((signal, {signals}), (os, {calls})):
    for name in names:
        if hasattr(place, name):
            delattr(place, name)
for name in {ours}:
    importlib.import_module(name)
"""


def test_every_module_is_imported_without_what_windows_lacks():
    ours = [name.removesuffix('.__init__') for name in sorted(IMPORTS)]
    code = IMPORTING.format(modules=NOT_ON_WINDOWS, signals=UNIX_SIGNALS, calls=UNIX_CALLS, ours=ours)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
