"""Counts what torch is asked to do."""
from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Parts of the names of operations that make the CPU wait for a device: values, and shapes that depend on values.
READS = ('_local_scalar_dense', 'unique', 'nonzero', 'masked_select')


class Operations(TorchDispatchMode):
    """Counts the operations inside the context, those of a backward included.

    Attributes:
        count: Operations.
        reads: Names of those that make the CPU wait for a device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.reads: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += 1
        if any(part in str(operation) for part in READS):
            self.reads.append(str(operation))
        return operation(*arguments, **(keywords or {}))
