"""Ctrl-C and SIGTERM: the iteration is finished, the state saved, and the process exits with a code of its own."""
from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from basicsr.utils import get_root_logger

STOPPED = 75  # the exit code; `EX_TEMPFAIL` of sysexits.h: try again later, with --auto_resume
FAILED = 3    # that of a TrainingError
_PATIENCE = 3.  # seconds; torchrun and a terminal send the same signal twice


class Stopped(Exception):
    """The training was asked to stop and has saved its state."""


class StopRequest:
    """While it is open, the first SIGINT or SIGTERM is a request, and one more than 3 s later ends the process."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._since = 0.
        self._replaced: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._replaced = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE:
            os._exit(128 + number)


def announce(request: StopRequest) -> None:
    """Says so in the log; not in the handler, which may have interrupted the log itself."""
    get_root_logger().warning(f'{request.signal or "A signal to another process"}: this iteration is finished and its '
                              'state saved. A second signal ends the run at once.')


class IgnoringSignals:
    """What a loader's worker runs first: it must not end before the training has saved.

    Args:
        then: What else it runs.
    """

    def __init__(self, then: Any) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if self.then is not None:
            self.then(worker)
