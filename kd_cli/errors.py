"""Mistakes of the person who typed the YAML end in one message and an exit code, not in a traceback."""
from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Prints an OptionError or CheckpointError of the command and exits with code 2."""
    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (OptionError, CheckpointError) as error:
            print(f'error: {error}', file=sys.stderr, flush=True)
            sys.exit(2)
    return run
