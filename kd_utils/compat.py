"""Makes `import basicsr` work with today's torchvision, SciPy, Python and OpenCV, and does nothing else.

BasicSR 1.4.2 (2022) imports three modules that its dependencies have since removed. Each gets a stand-in under its old
name in `sys.modules`; no file of site-packages is touched. `import kd_models`, before any basicsr import, is enough;
in spawned loader workers too, since they import the main script first.
"""
from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import re
import sys
import types
from pathlib import Path

INSTALL_BASICSR = ('kd-install-basicsr (which is `pip install --no-build-isolation basicsr` with current build tools, '
                   'and with what its setup.py lacks on Python 3.13)')


# basicsr imports all of its packages; versions before 1.4 lack the other one.
NEEDED = ('basicsr', 'basicsr.losses.basic_loss')


def install() -> None:
    """Puts the stand-ins in place and says which `basicsr` was found if it is not the installed one.

    Raises:
        ImportError: basicsr is missing or another than 1.4.2, or OpenCV lacks a system library; the message says what
            to do.
    """
    _stand_in('torchvision.transforms.functional_tensor', 'torchvision.transforms.functional', 'rgb_to_grayscale')
    _stand_in('scipy.ndimage.filters', 'scipy.ndimage', 'convolve')
    _stand_in_for_distutils()
    _check_opencv()
    _check_basicsr()


def _exists(module: str) -> bool:
    """Whether `module` can be imported, without importing more than its parents."""
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _stand_in(module: str, source: str, name: str) -> None:
    """Gives the removed `module` back, holding `name` from where it lives today."""
    if _exists(module):
        return
    replacement = types.ModuleType(module, f'Stand-in for a module that {source.partition(".")[0]} removed.')
    setattr(replacement, name, getattr(importlib.import_module(source), name))
    sys.modules[module] = replacement


def _stand_in_for_distutils() -> None:
    """BasicSR compares versions with distutils, which Python 3.12 removed and setuptools may stop to provide."""
    if _exists('distutils.version'):
        return
    from packaging.version import Version
    distutils, version = types.ModuleType('distutils'), types.ModuleType('distutils.version')
    version.LooseVersion = Version  # type: ignore[attr-defined]
    distutils.version = version  # type: ignore[attr-defined]
    sys.modules.update({'distutils': distutils, 'distutils.version': version})


def _check_opencv() -> None:
    """Names the system package when OpenCV cannot find its graphics library, as in slim containers."""
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        if 'libGL' in str(error) or 'libgthread' in str(error):
            raise ImportError(f'OpenCV cannot be imported, a system library is missing ({error}). '
                              'Install it: apt-get install libgl1 libglib2.0-0') from None
        raise


def _check_basicsr() -> None:
    """Refuses a missing basicsr and names the one found where a vendored copy shadows the installed one."""
    spec = importlib.util.find_spec('basicsr') if 'basicsr' not in sys.modules else sys.modules['basicsr'].__spec__
    if spec is None:
        raise ImportError(f'basicsr is not installed. Install it: {INSTALL_BASICSR}')
    found = Path(spec.origin).parent if spec.origin else None
    installed = _installed_basicsr()
    try:
        for module in NEEDED:
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  a changed copy may fail in any way
        raise ImportError(_misfit(error, found, installed)) from None
    if _is_copy(found, installed):
        logging.getLogger('basicsr').warning(
            f'basicsr is imported from {found}, not from the installed package in {installed}. '
            'Remove or rename that folder, or leave it out of PYTHONPATH, to use the installed one.')


def _is_copy(found: Path | None, installed: Path | None) -> bool:
    return found is not None and installed is not None and found.resolve() != installed.resolve()


def _misfit(error: Exception, found: Path | None, installed: Path | None) -> str:
    """Which basicsr was found, what it lacks, and the remedy."""
    text = (found / 'version.py').read_text() if found and (found / 'version.py').is_file() else ''
    version = re.search(r"""__version__ = ['"](.+?)['"]""", text)
    of_version = f', of version {version[1]},' if version else ''
    remedy = f'Install that version: {INSTALL_BASICSR}'
    if installed is None or _is_copy(found, installed):
        remedy = ('Another project has it in its folder. Start this in another folder, rename that one, or leave it '
                  'out of PYTHONPATH' + ('.' if installed else f'. {remedy}'))
    return (f'basicsr cannot be imported ({type(error).__name__}: {error}). The one in {found}{of_version} is older '
            f'than 1.4.2, or a copy that was changed. {remedy}')


def _installed_basicsr() -> Path | None:
    """The folder of the basicsr that pip installed; None where there is none (or an editable one)."""
    try:
        files = importlib.metadata.distribution('basicsr').files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    init = [file for file in files if file.as_posix() == 'basicsr/__init__.py']
    return Path(str(init[0].locate())).parent if init else None
