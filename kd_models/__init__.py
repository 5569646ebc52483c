"""The training methods. `import kd_models`, before any basicsr import, registers everything of this package in BasicSR.

An existing BasicSR project uses the plug-in by adding that one line at the top of its own train.py.
"""
import importlib
import pkgutil

import kd_utils  # noqa: F401  makes basicsr importable

_SUFFIXES = {'kd_arch': '_arch', 'kd_losses': '_loss', 'kd_data': '_dataset', 'kd_metrics': '_metric',
             'kd_models': '_model'}


def _register_all() -> None:
    """Imports every `*_arch.py`, `*_loss.py`, ..., which registers its classes, as BasicSR does in its own folders."""
    for package, suffix in _SUFFIXES.items():
        folder = importlib.import_module(package).__path__
        for module in sorted(info.name for info in pkgutil.iter_modules(folder) if info.name.endswith(suffix)):
            importlib.import_module(f'{package}.{module}')


_register_all()
