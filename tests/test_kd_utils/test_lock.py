"""The lock of an experiment where there is no fcntl; on this system tests/test_reliability has its promises."""
from __future__ import annotations

import errno
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest

from kd_utils import lock
from kd_utils.options import OptionError


@pytest.fixture
def on_windows(monkeypatch):
    """The module as it is loaded there, whose locks no other open file may take, of this process too."""
    held: dict[tuple, int] = {}

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count, os.lseek(descriptor, 0, os.SEEK_CUR)) == (2, 1, 0)
        for file, owner in list(held.items()):
            try:
                still = os.fstat(owner)
            except OSError:
                del held[file]  # closed, and so let go
                continue
            if (still.st_dev, still.st_ino) != file:
                del held[file]
        place = os.fstat(descriptor)
        if held.setdefault((place.st_dev, place.st_ino), descriptor) != descriptor:
            raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    monkeypatch.setitem(sys.modules, 'msvcrt', types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    spec = importlib.util.spec_from_file_location('lock_on_windows', Path(lock.__file__))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path, on_windows):
    with on_windows.ExperimentLock(tmp_path) as first, on_windows.ExperimentLock(tmp_path) as second:
        first.hold()
        first.hold()
        with pytest.raises(OptionError, match='is being trained by another process'):
            second.hold()
    with on_windows.ExperimentLock(tmp_path) as third:
        third.hold()


def test_the_folder_can_be_renamed_and_the_new_one_held(tmp_path, on_windows):
    folder = tmp_path / 'run'
    folder.mkdir()
    with on_windows.ExperimentLock(folder) as first, on_windows.ExperimentLock(folder) as second:
        first.hold()
        assert open_files(folder)
        first.before_renaming()
        assert not open_files(folder)
        folder.rename(tmp_path / 'archived')
        folder.mkdir()
        first.hold()
        with pytest.raises(OptionError, match='is being trained by another process'):
            second.hold()


def open_files(folder: Path) -> list[str]:
    """Those of this process in the folder."""
    links = Path('/proc/self/fd')
    if not links.exists():
        pytest.skip('needs /proc to see which files are open')
    return [os.readlink(link) for link in links.iterdir() if link.exists() and str(folder) in os.readlink(link)]


def test_a_folder_that_is_not_there_yet_and_one_without_locks(tmp_path, on_windows, monkeypatch, warnings_logged):
    with on_windows.ExperimentLock(tmp_path / 'none') as absent:
        absent.hold()
    assert not (tmp_path / 'none').exists()

    def without(*args):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(on_windows.msvcrt, 'locking', without)
    with on_windows.ExperimentLock(tmp_path) as unlocked:
        unlocked.hold()
    assert any('cannot be locked (No locks available)' in text for text in warnings_logged)


def test_here_the_lock_is_kept_while_the_folder_is_renamed(tmp_path):
    pytest.importorskip('fcntl')
    folder = tmp_path / 'run'
    folder.mkdir()
    with lock.ExperimentLock(folder) as held:
        held.hold()
        held.before_renaming()
        assert open_files(folder)
