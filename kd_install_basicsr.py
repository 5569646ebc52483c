"""`kd-install-basicsr`: installs BasicSR, on Python 3.13 too. From a checkout: `python kd_install_basicsr.py`.

The setup.py of basicsr 1.4.2 executes its version file inside of a function and then reads `locals()['__version__']`.
Since Python 3.13 (PEP 667) what `exec` defines is no local of the function, and the build ends with a KeyError. While
it runs, `exec` writes there again. Build isolation is off: it would download torch once more, to build pure Python.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# A module of this name is imported by every interpreter at its start, that of the build too.
SHIM = """import builtins
import sys

plain_exec = builtins.exec


def exec_in_caller(code, *places, **named):
    if not places and not named:
        frame = sys._getframe(1)
        places = frame.f_globals, frame.f_locals
    plain_exec(code, *places, **named)


builtins.exec = exec_in_caller
"""


def main() -> None:
    """Installs or updates basicsr and what its build needs, into the interpreter that runs this."""
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q', 'install']
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if sys.version_info >= (3, 13):
            Path(folder, 'sitecustomize.py').write_text(SHIM, encoding='utf-8')
            environment['PYTHONPATH'] = os.pathsep.join(filter(None, [folder, environment.get('PYTHONPATH')]))
        for command in ([*pip, '-U', 'setuptools', 'wheel'], [*pip, '--no-build-isolation', 'basicsr>=1.4.2']):
            code = subprocess.run(command, env=environment).returncode
            if code:
                sys.exit(code)


if __name__ == '__main__':
    main()
