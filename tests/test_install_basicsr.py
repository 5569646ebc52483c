"""The build of basicsr on Pythons where its setup.py cannot be run as it is."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kd_install_basicsr

# The lines of such a setup.py that Python 3.13 has changed the meaning of.
SETUP = """
def get_version():
    exec(compile("__version__ = '1.4.2'", 'version.py', 'exec'))
    return locals()['__version__']


print(get_version())
"""


def interpreters() -> dict[str, str]:
    """This interpreter, and newer ones that are installed, by version."""
    found = {'.'.join(map(str, sys.version_info[:2])): sys.executable}
    folders = [*os.get_exec_path(), *map(str, Path.home().glob('.pyenv/versions/*/bin'))]
    for minor in range(13, 20):
        paths = [Path(folder, f'python3.{minor}') for folder in folders]
        works = [str(path) for path in paths if path.exists()
                 and not subprocess.run([str(path), '-c', ''], capture_output=True).returncode]
        found.update({f'3.{minor}': works[0]} if works else {})
    return found


@pytest.mark.parametrize('version', interpreters())
def test_what_setup_executes_is_there_again(version, tmp_path):
    (tmp_path / 'setup.py').write_text(SETUP)
    (tmp_path / 'sitecustomize.py').write_text(kd_install_basicsr.SHIM)
    plain, shimmed = (subprocess.run([interpreters()[version], 'setup.py'], cwd=tmp_path, capture_output=True,
                                     text=True, env={**os.environ, 'PYTHONPATH': path}) for path in ('', str(tmp_path)))
    assert shimmed.stdout == '1.4.2\n', shimmed.stderr
    assert (plain.returncode == 0) == (int(version.partition('.')[2]) < 13)  # else the shim can go


@pytest.mark.parametrize('version, shimmed', [((3, 12), False), ((3, 13), True), ((3, 14), True)])
def test_what_is_run(monkeypatch, version, shimmed):
    commands = []

    def run(command, env):
        paths = env.get('PYTHONPATH', '').split(os.pathsep)
        commands.append((command[command.index('install') + 1:], any(
            path and Path(path, 'sitecustomize.py').read_text() == kd_install_basicsr.SHIM for path in paths[:1]
            if Path(path, 'sitecustomize.py').exists())))
        return subprocess.CompletedProcess(command, 0)
    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(sys, 'version_info', version)
    kd_install_basicsr.main()
    assert commands == [(['-U', 'setuptools', 'wheel'], shimmed), (['--no-build-isolation', 'basicsr>=1.4.2'], shimmed)]


def test_a_failure_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(subprocess, 'run', lambda command, env: subprocess.CompletedProcess(command, 7))
    with pytest.raises(SystemExit) as stop:
        kd_install_basicsr.main()
    assert stop.value.code == 7
