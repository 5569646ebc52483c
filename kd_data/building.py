"""Datasets of any size: pairs found in linear time, and names held in one buffer that loader workers share."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import path as osp
from typing import Any, overload

import basicsr.data as host
import numpy as np
import torch
from basicsr.data import data_util, paired_image_dataset, realesrgan_paired_dataset

from kd_utils.options import OptionError


def build_dataset(opt: dict[str, Any]) -> Any:
    """BasicSR's `build_dataset`, for folders of a million images too.

    Args:
        opt: The section of the YAML file.

    Returns:
        The dataset. Of classes of BasicSR and of this package `paths` is a `PackedTexts` or `PackedRecords`.
    """
    with _linear_pairing():
        dataset = host.build_dataset(opt)
    paths = getattr(dataset, 'paths', None)
    if type(dataset).__module__.partition('.')[0] in ('basicsr', 'kd_data') and isinstance(paths, list) and paths:
        dataset.paths = PackedTexts(paths) if isinstance(paths[0], str) else PackedRecords(paths)
    return dataset


@contextmanager
def _linear_pairing() -> Iterator[None]:
    """BasicSR's datasets pair by `paired_paths`; its own function looks each name up in a list."""
    modules = paired_image_dataset, realesrgan_paired_dataset
    for module in modules:
        module.paired_paths_from_folder = paired_paths
    try:
        yield
    finally:
        for module in modules:
            module.paired_paths_from_folder = data_util.paired_paths_from_folder


def paired_paths(folders: Sequence[str], keys: Sequence[str], filename_tmpl: str) -> list[dict[str, str]]:
    """BasicSR's `paired_paths_from_folder`, in the same order, in linear time.

    Args:
        folders: The folders of LR and of HR images.
        keys: `lq` and `gt`.
        filename_tmpl: The LR image's name, with {} where the HR image's stands.

    Returns:
        The paths of each pair, by key with `_path`.

    Raises:
        OptionError: An image has no partner.
    """
    (lq_folder, gt_folder), (lq_key, gt_key) = folders, keys
    lq_names, gt_names = set(_names(lq_folder)), _names(gt_folder)
    if len(lq_names) != len(gt_names):
        raise OptionError(f'{gt_folder} has {len(gt_names)} images, and {lq_folder} has {len(lq_names)}. '
                          'Each needs its partner in the other folder.')
    pairs = []
    for name in gt_names:
        stem, suffix = osp.splitext(name)
        partner = filename_tmpl.format(stem) + suffix
        if partner not in lq_names:
            raise OptionError(f'{name} in {gt_folder} has no partner {partner} in {lq_folder}. Add it, or write '
                              '`filename_tmpl`.')
        pairs.append({f'{lq_key}_path': osp.join(lq_folder, partner), f'{gt_key}_path': osp.join(gt_folder, name)})
    return pairs


def _names(folder: str) -> list[str]:
    """In the order of the directory, as BasicSR takes them."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.name.startswith('.') and entry.is_file()]


class PackedTexts(Sequence[str]):
    """Texts in one buffer, without a Python object for each.

    A forked worker does not copy it, since reading counts no references; to a spawned one torch hands it through shared
    memory.

    Args:
        texts: The texts, of which none has a null character.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._prefix = osp.commonprefix([min(texts), max(texts)]) if texts else ''
        content = bytearray('\0'.join(text[len(self._prefix):] for text in texts).encode('utf-8', 'surrogateescape'))
        buffer = np.frombuffer(content, np.uint8)
        self._content = torch.from_numpy(buffer)
        self._ends = torch.from_numpy(np.append(np.flatnonzero(buffer == 0), len(buffer))[:len(texts)])

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # counts negative ones from the end, and raises IndexError
        start = int(self._ends[index - 1]) + 1 if index else 0
        content = self._content[start:int(self._ends[index])].numpy().tobytes()
        return self._prefix + content.decode('utf-8', 'surrogateescape')


class PackedRecords(Sequence[Mapping[str, str]]):
    """Dictionaries with the same keys, whose values are `PackedTexts`.

    Args:
        records: At least one.
    """

    def __init__(self, records: Sequence[Mapping[str, str]]) -> None:
        self._columns = {key: PackedTexts([record[key] for record in records]) for key in records[0]}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @overload
    def __getitem__(self, index: int) -> dict[str, str]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, str]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, str] | list[dict[str, str]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {key: texts[index] for key, texts in self._columns.items()}
