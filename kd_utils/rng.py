"""Python's and torch's random numbers: where they are, and the same ones once more."""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RandomState:
    """Where the generators that networks draw from are: Python's, torch's, and that of the GPU in use."""
    python: Any
    cpu: bytes
    gpu: bytes | None

    @classmethod
    def now(cls) -> RandomState:
        """The present state; nobody waits for a GPU, whose generator's state is kept by the CPU."""
        gpu = torch.cuda.get_rng_state().numpy().tobytes() if torch.cuda.is_initialized() else None
        return cls(random.getstate(), torch.get_rng_state().numpy().tobytes(), gpu)

    def set(self) -> None:
        """Goes back, or on, to this state."""
        random.setstate(self.python)
        torch.set_rng_state(_tensor(self.cpu))
        if self.gpu is not None:
            torch.cuda.set_rng_state(_tensor(self.gpu))

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Draws the numbers that were drawn from this state on; what comes after does not notice."""
        after = RandomState.now()
        self.set()
        try:
            yield
        finally:
            after.set()


def own_random_numbers(device: torch.device) -> Any:
    """A context in which what torch draws, on `device` too, is not noticed by what comes after."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == 'cuda' else [])


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
