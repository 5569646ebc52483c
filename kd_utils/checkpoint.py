"""Checkpoint files: written whole or not at all, read without running code, checked before they are resumed from.

A checkpoint is committed by its training state, which is written last. It knows size and hash of every other file that
belongs to it (`Record`), and a fingerprint of its own content.
"""
from __future__ import annotations

import hashlib
import logging
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Record = dict[str, Any]  # {'size': bytes, 'sha256': hex digits}


class CheckpointError(RuntimeError):
    """A checkpoint file that cannot be read or written; the text names the file and the remedy."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint that cannot be written; what was there before is as it was."""


def save(data: Any, path: str | os.PathLike) -> Record:
    """Writes `data` beside `path`, flushes it to the disk and renames it, so that `path` is never half-written.

    Args:
        data: What `torch.save` takes.
        path: The final name. The temporary one ends in `.tmp`: BasicSR's own resume reads every `*.state`.

    Returns:
        Size and hash of the file.

    Raises:
        CheckpointWriteError: The disk is full or the folder not writable; the old file, if any, is as it was.
    """
    temporary = Path(f'{path}.tmp')
    try:
        with open(temporary, 'wb') as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        record = record_of(temporary)
        os.replace(temporary, path)
        _sync_folder(Path(path).parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):
            raise CheckpointWriteError(f'{path} could not be written ({_reason(error)}). Make room or set the '
                                       'permissions, then go on with --auto_resume; older checkpoints are as they '
                                       'were.') from error
        raise
    return record


def _reason(error: BaseException) -> str:
    """The operating system's reason for a failed write, which PyTorch's writer hides behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return str(getattr(cause, 'strerror', error))


def record_of(path: str | os.PathLike) -> Record:
    """Size and hash of a file, as a training state keeps them."""
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256') if hasattr(hashlib, 'file_digest') else _digest(file)
    return {'size': os.path.getsize(path), 'sha256': digest.hexdigest()}


def _digest(file: Any) -> Any:
    """`hashlib.file_digest` of Python 3.11."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def check(path: str | os.PathLike, record: Record) -> None:
    """Compares a file with its record.

    Raises:
        CheckpointError: The file is missing, or another one than was recorded.
    """
    if not os.path.exists(path):
        raise CheckpointError(f'{path} is missing. Copy it back, or name an older state.')
    if os.path.getsize(path) != record['size'] or record_of(path)['sha256'] != record['sha256']:
        raise CheckpointError(f'{path} is not the file that belongs to this state: it was damaged or replaced. '
                              'Copy it again, or name an older state.')


def save_state(state: dict[str, Any], path: str | os.PathLike) -> Record:
    """`save` of a training state with its fingerprint in it."""
    return save({**state, 'fingerprint': fingerprint(state)}, path)


def load_state(path: str | os.PathLike) -> dict[str, Any]:
    """A training state; one by BasicSR has no fingerprint and is taken as it is.

    Raises:
        CheckpointError: The file is missing or damaged, or is no training state.
    """
    state = load(path)
    if not isinstance(state, dict) or not {'iter', 'epoch', 'optimizers', 'schedulers'} <= set(state):
        raise CheckpointError(f'{path} is no training state. Name a file of the folder training_states.')
    expected = state.pop('fingerprint', None)
    if expected is not None and expected != fingerprint(state):
        raise CheckpointError(f'{path} is damaged: its content is not what was written. Copy it again, or name an '
                              'older state.')
    return state


def load_complete(path: str | os.PathLike, models: str | os.PathLike, ignored: Iterable[str] = ()) -> dict[str, Any]:
    """A training state, if all the files that belong to it are there and intact.

    Args:
        path: The state.
        models: The folder of its networks; what else belongs to it lies beside it.
        ignored: Networks that will not be loaded, such as `network_d`.

    Raises:
        CheckpointError: One of the files is missing or damaged; the text names it.
    """
    state = load_state(path)
    unread = tuple(f'models/{name.replace("network", "net")}_' for name in ignored)
    for name, record in state.get('files', {}).items():
        folder = models if name.startswith('models/') else Path(path).parent
        if not name.startswith(unread):
            check(Path(folder, Path(name).name), record)
    return state


def fingerprint(content: Any) -> str:
    """A hash of tensors, numbers and texts in dicts and lists, down to the last bit."""
    digest = hashlib.sha256()
    for part in _parts(content):
        digest.update(part)
    return digest.hexdigest()


def _parts(content: Any) -> Iterator[bytes]:
    if torch.is_tensor(content):
        tensor = content.detach().cpu().contiguous()
        yield f'{tensor.dtype}{tuple(tensor.shape)}'.encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(content, Mapping):
        yield f'dict{len(content)}'.encode()
        for key, value in content.items():
            yield f'{key!r}'.encode()
            yield from _parts(value)
    elif isinstance(content, list | tuple):
        yield f'list{len(content)}'.encode()
        for value in content:
            yield from _parts(value)
    else:
        yield f'{content!r};'.encode()


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable; Windows opens no folders, and has no need of it."""
    if os.name == 'nt':
        return
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
