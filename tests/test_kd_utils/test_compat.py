"""BasicSR imports on today's libraries; nothing is touched where nothing is broken."""
import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from kd_utils import compat

ROOT = Path(__file__).resolve().parents[2]


def test_a_removed_module_gets_a_stand_in(monkeypatch):
    name = 'torchvision.transforms.removed_by_a_release'
    monkeypatch.delitem(sys.modules, name, raising=False)
    compat._stand_in(name, 'torchvision.transforms.functional', 'rgb_to_grayscale')
    stand_in = importlib.import_module(name)
    assert stand_in.rgb_to_grayscale is importlib.import_module('torchvision.transforms.functional').rgb_to_grayscale
    del sys.modules[name]


def test_an_existing_module_is_left_alone():
    before = importlib.import_module('torchvision.transforms.functional')
    compat._stand_in('torchvision.transforms.functional', 'torchvision.transforms', 'Compose')
    assert importlib.import_module('torchvision.transforms.functional') is before
    modules = set(sys.modules)
    compat.install()
    assert set(sys.modules) == modules


def test_distutils_has_a_stand_in(monkeypatch):
    monkeypatch.setattr(compat, '_exists', lambda name: False)
    for name in ('distutils', 'distutils.version'):
        monkeypatch.setitem(sys.modules, name, None)
    compat._stand_in_for_distutils()
    from distutils.version import LooseVersion
    assert LooseVersion('0.10.0') > LooseVersion('0.9.1')


def test_missing_basicsr_and_libgl_are_named(monkeypatch):
    monkeypatch.delitem(sys.modules, 'basicsr')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install --no-build-isolation basicsr'):
        compat._check_basicsr()

    def fail(name):
        raise ImportError('libGL.so.1: cannot open shared object file')
    monkeypatch.setattr(importlib, 'import_module', fail)
    with pytest.raises(ImportError, match='apt-get install libgl1'):
        compat._check_opencv()


def test_a_vendored_copy_is_named(monkeypatch, tmp_path):
    copy = types.ModuleType('basicsr')
    copy.__spec__ = importlib.machinery.ModuleSpec('basicsr', None, origin=str(tmp_path / 'basicsr' / '__init__.py'))
    monkeypatch.setitem(sys.modules, 'basicsr', copy)
    monkeypatch.setattr(compat, '_installed_basicsr', lambda: tmp_path / 'site-packages' / 'basicsr')
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger('basicsr')
    monkeypatch.setattr(logger, 'level', logging.WARNING)
    logger._cache.clear()
    logger.addHandler(handler)
    try:
        compat._check_basicsr()
    finally:
        logger.removeHandler(handler)
        logger._cache.clear()
    assert str(tmp_path / 'basicsr') in records[0].getMessage() and records[0].levelname == 'WARNING'


def test_the_installed_basicsr_is_found():
    assert compat._installed_basicsr() == compat.Path(sys.modules['basicsr'].__file__).parent


def test_import_in_a_fresh_interpreter():
    """As in any script: one import line, then basicsr."""
    code = 'import kd_models, basicsr.archs, basicsr.data, basicsr.models; print("Model" in str(kd_models))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0


@pytest.mark.parametrize('lacking, version, module', [
    ('losses/basic_loss.py', '1.3.4.9', 'basicsr.losses.basic_loss'),
    ('ops/dcn', '1.4.2', 'basicsr.ops.dcn'),
    ('data', None, 'basicsr.data'),
])
def test_an_old_or_changed_basicsr_ends_in_one_line(tmp_path, lacking, version, module):
    """As in a checkout of a project that brings its own."""
    copy = tmp_path / 'basicsr'
    shutil.copytree(Path(sys.modules['basicsr'].__file__).parent, copy, ignore=shutil.ignore_patterns('__pycache__'))
    part = copy / lacking
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    if version:
        (copy / 'version.py').write_text(f"__version__ = '{version}'\n__gitsha__ = ''\n")
    else:
        (copy / 'version.py').unlink()
    done = subprocess.run([sys.executable, '-m', 'kd_cli.train', '--help'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])})
    assert done.returncode == 2
    assert re.fullmatch(rf'error: basicsr cannot be imported \(.*{module}.*\)\. The one in {copy}'
                        + (f', of version {version},' if version else '')
                        + r' is older than 1\.4\.2, or a copy that was changed\. Another project .* PYTHONPATH.*\n',
                        done.stderr)


def test_the_installed_one_is_to_be_updated_if_it_is_too_old():
    here = Path('/site-packages/basicsr')
    text = compat._misfit(ModuleNotFoundError('none'), here, here)
    assert 'kd-install-basicsr' in text and 'Another project' not in text
    assert 'Another project' in compat._misfit(ModuleNotFoundError('none'), here, None)
