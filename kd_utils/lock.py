"""One training per experiment: a lock that ends with its process, however that ends."""
from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from kd_utils.schema import OptionError

try:
    import fcntl
except ImportError:
    import msvcrt  # Windows

    def _lock(file: IO[str]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

    RENAMES_LOCKED_FOLDERS = False
else:
    def _lock(file: IO[str]) -> None:
        # of lockf and flock the one that forked loader workers, which may outlive a killed run, do not inherit
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    RENAMES_LOCKED_FOLDERS = True


class ExperimentLock:
    """The lock of an experiment's folder, held until it is closed.

    It is the kernel's (POSIX `fcntl.lockf`, `msvcrt.locking` on Windows), on the file `.lock` in the folder: loader
    workers do not inherit it, and of a killed process it is free at once. The file itself means nothing, and goes with
    the folder when that is archived.

    Args:
        experiment: The folder.
    """

    def __init__(self, experiment: str | os.PathLike) -> None:
        self.folder = Path(experiment)
        self._files = ExitStack()

    def __enter__(self) -> ExperimentLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def hold(self) -> None:
        """Takes the lock, if there is such a folder.

        Raises:
            OptionError: Another process holds it, or the file cannot be made.
        """
        if not self.folder.is_dir():
            return
        if not RENAMES_LOCKED_FOLDERS:
            self._files.close()  # there a second lock of one process is refused like that of another
        path = self.folder / '.lock'
        try:
            file = self._files.enter_context(path.open('a'))
        except OSError as error:
            raise OptionError(f'{path} cannot be written ({error.strerror}). Give this user the right to write there, '
                              'or this run another `name`.') from None
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise OptionError(f'{self.folder} is being trained by another process, which is still running. Wait for '
                              'it, stop it, or give this run another `name`.') from None
        except OSError as error:
            logging.getLogger('basicsr').warning(f'{path} cannot be locked ({error.strerror}): a second start of this '
                                                 'experiment would not be refused.')

    def before_renaming(self) -> None:
        """Where a folder with an open file in it cannot be renamed, the lock is let go until `hold` takes it again."""
        if not RENAMES_LOCKED_FOLDERS:
            self._files.close()
