"""How fast a training runs, and how much memory it takes, in one line of the log."""
from __future__ import annotations

import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def speed_line(images: int, seconds: float, waiting: float, gpu: bool) -> str:
    """The line of one reading of the log.

    Args:
        images: Of one iteration, on all processes.
        seconds: Of one iteration, on average.
        waiting: How many of these went by before the batch was there.
        gpu: Whether a GPU is used; otherwise the memory is that of the process.
    """
    seconds = max(seconds, 1e-9)
    memory = torch.cuda.max_memory_allocated() if gpu else _largest_process()
    return (f'Speed: {images / seconds:.4g} images/s, {100 * min(waiting / seconds, 1):.0f} % of the time waiting for '
            f'data' + (f', peak memory {memory / 2**30:.2f} GiB' if memory else '') + (' of the GPU' if gpu else ''))


def _largest_process() -> int:
    """The most memory that this process has had, in bytes; 0 where the system does not tell."""
    if resource is None:
        return 0
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
