"""How commands end: mistakes of the person who typed the YAML in one message and an exit code, not in a traceback."""
from __future__ import annotations

import errno
import functools
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from kd_cli.processes import ProcessLost
from kd_cli.stopping import FAILED, STOPPED, Stopped
from kd_models.guard import TrainingError
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError

_OF_THE_PATH = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Prints what an expected error says and exits with its code; docs/reliability.md lists them."""
    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except Stopped as message:
            _end(str(message), STOPPED)
        except TrainingError as error:
            _end(f'error: {error}', FAILED)
        except ProcessLost as error:
            _end(f'error: {error}', 1)
        except (OptionError, CheckpointError) as error:
            _end(f'error: {error}', 2)
        except KeyboardInterrupt:
            _end('Interrupted.', 128 + signal.SIGINT)
        except OSError as error:
            if error.filename and error.errno in _OF_THE_PATH:
                _end(f'error: {error.filename}: {error.strerror}. Look for a link without a target or a file in place '
                     'of a folder there, or write another `name`.', 2)
            if error.errno not in _OF_THE_DISK:
                raise
            _end(f'error: {error.filename or "a file of this run"}: {error.strerror}. Make room or set the '
                 'permissions, then go on; a training goes on with --auto_resume.', 2)
    return run


def _end(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
