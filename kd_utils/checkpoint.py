"""Checkpoint files: written whole or not at all, read without running code."""
from __future__ import annotations

import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class CheckpointError(RuntimeError):
    """A checkpoint file that cannot be read or written; the text names the file and the remedy."""


def save(data: Any, path: str | os.PathLike) -> None:
    """Writes `data` beside `path`, flushes it to the disk and renames it, so that `path` is never half-written.

    Args:
        data: What `torch.save` takes.
        path: The final name. The temporary one ends in `.tmp`: BasicSR's own resume reads every `*.state`.

    Raises:
        OSError: The disk is full or the folder not writable; the old file, if any, is as it was.
    """
    temporary = Path(f'{path}.tmp')
    try:
        with open(temporary, 'wb') as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(Path(path).parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Reads tensors, numbers and strings; a file that carries code is refused and its code is not run.

    Args:
        path: A `.pth` or `.state` file.
        map_location: Where its tensors go.

    Raises:
        CheckpointError: The file is missing, damaged, or holds Python objects.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f'The checkpoint {path} does not exist. Check the path in the YAML file.') from None
    except Exception as error:  # noqa: BLE001  a damaged file may raise anything
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise CheckpointError(f'{path} holds Python objects besides tensors and was not loaded, since that can '
                                  'run code. Save its state_dict alone and load that file instead.') from None
        raise CheckpointError(f'{path} is damaged or not a PyTorch file ({type(error).__name__}). '
                              'Download or copy it again, or name an older checkpoint.') from None


def network_state(path: str | os.PathLike, key: str | None = 'params') -> dict[str, Tensor]:
    """The weights in a checkpoint file.

    Args:
        path: A file of BasicSR's form `{'params': ..., 'params_ema': ...}`, or a bare state dict.
        key: Which of them; `params` where `params_ema` is absent, the whole file where it is None or bare.

    Raises:
        CheckpointError: The file is unreadable or has no such key.
    """
    content = load(path)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not weights. Name a file of network weights.')
    content = {str(name): value for name, value in content.items()}
    bare = bool(content) and all(torch.is_tensor(value) for value in content.values())
    if key is not None and not bare:
        if key not in content and (key != 'params_ema' or 'params' not in content):
            raise CheckpointError(f'{path} has no `{key}`, only: {", ".join(map(str, content))}. '
                                  'Set its `param_key` to one of these.')
        content = content.get(key, content.get('params'))
    if not isinstance(content, dict) or not all(torch.is_tensor(value) for value in content.values()):
        raise CheckpointError(f'{path} holds no weights under `{key}`. Set its `param_key` to where they are.')
    return {name.removeprefix('module.'): value for name, value in content.items()}


def load_network(net: nn.Module, path: str | os.PathLike, strict: bool = True, key: str | None = 'params') -> int:
    """Loads weights into a network.

    Args:
        net: The network.
        path: The checkpoint.
        strict: Whether every name and shape must match; otherwise what does not is left as it was, as in BasicSR.
        key: See `network_state`.

    Returns:
        int: How many of the network's tensors were left as they were.

    Raises:
        CheckpointError: Names or shapes differ; the text shows the first differences of each kind.
    """
    loaded, own = network_state(path, key), net.state_dict()
    if not strict:
        loaded = {name: value for name, value in loaded.items() if name in own and own[name].shape == value.shape}
        logging.getLogger('basicsr').warning(f'{path}: {len(loaded)} of {len(own)} tensors of {type(net).__name__} '
                                             'have a match and are loaded.')
        if not loaded:
            raise CheckpointError(f'{path} has no tensor that fits {type(net).__name__}, by name and shape. '
                                  'Name another file.')
        net.load_state_dict(loaded, strict=False)
        return len(own) - len(loaded)
    differences = []
    wrong = [f'{name} is {tuple(loaded[name].shape)} in the file, {tuple(own[name].shape)} in the network'
             for name in own if name in loaded and loaded[name].shape != own[name].shape]
    missing = [name for name in own if name not in loaded]
    unknown = [name for name in loaded if name not in own]
    for label, names in (('shapes differ', wrong), ('not in the file', missing), ('only in the file', unknown)):
        if names:
            differences.append(f'{label} ({len(names)}): {", ".join(names[:3])}{" ..." if len(names) > 3 else ""}')
    if differences:
        raise CheckpointError(f'{path} does not fit {type(net).__name__}: {"; ".join(differences)}. '
                              'Change the network section to what the file was trained with, or name another file.')
    net.load_state_dict(loaded)
    return 0
