"""A teacher's images and feature maps of a fixed training set, computed once and read by crop: `teacher.cache`.

The folder holds `teacher.json`, which says what made the files, and for each training image

    HASH.npy                the teacher's image, (sH, sW, C)
    HASH_TURN_LAYER.npy     its maps of a layer, (rH, rW, C), for each way in which the training set may turn an image

HASH is that of the LR image's bytes, so that an image that changes is not served from the files of what it was; the
name of the image, its place and its date do not count. C of the image is 3, or a multiple of it where the teacher
answers with several images, such as a diffusion trajectory.

A flipped image is the image of the flipped input, nearly, and is stored once. Feature maps are not: those of the
flipped input are others, and each flip and turn has its own.
"""
from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import FileClient, get_root_logger
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from kd_utils.options import OptionError

RECORD = 'teacher.json'
HASHES = '.hashes.npz'
IMAGE = 'image'  # among the names of layers
# `dtype` -> of images, of feature maps
DTYPES = {'uint8': (np.uint8, np.float16), 'fp16': (np.float16, np.float16), 'fp32': (np.float32, np.float32)}
TURNS = 'hvt'  # horizontal flip, vertical flip, transposition, in the order in which BasicSR applies them


def item_key(name: str, layer: str) -> str:
    """What items of a training set call a teacher's image or its maps of a layer."""
    return name if layer == IMAGE else f'{name}:{layer}'


class TeacherCache(Dataset):
    """A training set whose items have the same crop of what the teacher made of the image, flipped and turned alike.

    Args:
        dataset: A `PairedImageDataset` in training, or such a set with another teacher's images already.
        folder: Where the teacher's files are, or will be.
        name: What the items call the teacher's image; maps of a layer are called as `item_key` says.
        layers: The layers whose maps are kept besides the image.
        dtype: `uint8` for images in [0, 1], rounded and clipped to 8 bits, with feature maps in half precision; `fp16`
            or `fp32` for both.

    Attributes:
        source: The `PairedImageDataset`.
        files: The file of each training image's image.

    Raises:
        OptionError: 8 bits for images that are not in [0, 1].
    """
    layers: tuple[str, ...] = ()

    def __init__(self, dataset: Any, folder: str | Path, name: str = 'teacher', layers: Sequence[str] = (),
                 dtype: str = 'fp16') -> None:
        self.dataset = dataset
        self.source: Any = dataset.source if isinstance(dataset, TeacherCache) else dataset
        self.name, self.layers, self.dtype = name, tuple(layers), dtype
        if dtype == 'uint8' and self.source.opt.get('mean') is not None:
            raise OptionError('`teacher.cache.dtype: uint8` is for images in [0, 1], and `datasets.train.mean` changes '
                              'their range. Write `fp16`.')
        self.folder = Path(folder)
        self._hashes = ContentHashes(self.source, self.folder / HASHES)
        self.files = _ImageFiles(self.folder, self._hashes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        state = random.getstate()
        item = self.dataset[index]
        random.setstate(state)  # BasicSR does not tell what it drew, so the same is drawn again
        whole = np.load(self.files[index], mmap_mode='r')
        place = self._place(whole.shape)
        item[self.name] = _as_tensor(place.turned(place.crop(whole)))
        for layer in self.layers:
            maps = np.load(self._path(index, layer, place.turn), mmap_mode='r')
            item[item_key(self.name, layer)] = _as_tensor(place.in_turned_image().crop(maps))
        return item

    def _place(self, shape: tuple[int, ...]) -> _Place:
        """The crop and turn that the item has been given, from BasicSR's functions in the same state."""
        opt = self.source.opt
        size, scale = opt['gt_size'], opt['scale']
        height, width = shape[0] // scale, shape[1] // scale
        pixels = np.arange(height * width).reshape(height, width)
        _, crop = paired_random_crop(np.broadcast_to(pixels[:1, :1], (height * scale, width * scale)), pixels, size,
                                     scale)
        _, turned = augment(np.zeros((1, 1, 1)), opt['use_hflip'], opt['use_rot'], return_status=True)
        top, left = divmod(int(crop[0, 0]), width)
        turn = ''.join(letter for letter, on in zip(TURNS, turned, strict=True) if on)
        return _Place(top, left, size // scale, height, width, turn)

    def _path(self, index: int, layer: str, turn: str) -> Path:
        return self.folder / f'{self._hashes[index]}_{turn}_{layer}.npy'

    def _turns(self) -> list[str]:
        """The ways in which an image may be turned."""
        opt = self.source.opt
        choices = [['', letter] if opt[key] else ['']
                   for letter, key in zip(TURNS, ('use_hflip', 'use_rot', 'use_rot'), strict=True)]
        return [''.join(letters) for letters in itertools.product(*choices)]

    def claim(self, teacher: dict[str, Any]) -> None:
        """Makes the folder and records what fills it.

        Args:
            teacher: What decides the teacher's images and feature maps.

        Raises:
            OptionError: The folder's files were made by something else, or there can be no such folder.
        """
        made_by = {**teacher, **{key: self.source.opt.get(key) for key in ('color', 'mean', 'std')}}
        if self.dtype != 'fp16':
            made_by['dtype'] = self.dtype
        made_by = json.loads(json.dumps(made_by, default=str))
        record = self.folder / RECORD
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = [name for name in os.listdir(self.folder) if not name.startswith('.')]
            if not names:
                _write(record, json.dumps(made_by, indent=1).encode())
        except OSError as error:
            raise OptionError(f'`teacher.cache`: `{self.folder}` cannot be made or written ({error.strerror}). '
                              'Name another folder.') from None
        if names and RECORD not in names:
            raise OptionError(f'`teacher.cache`: `{self.folder}` has files, but no {RECORD} that says which teacher '
                              'made them. Name an empty folder, or one that is not there.')
        try:
            found = json.loads(record.read_text())
        except ValueError:
            raise OptionError(f'`teacher.cache`: `{record}` is damaged. Remove `{self.folder}` to have the images made '
                              'anew, or name another folder.') from None
        other = ', '.join(key for key in {**made_by, **found} if found.get(key) != made_by.get(key))
        if other:
            raise OptionError(f'`teacher.cache`: the images in `{self.folder}` were made with other {other}. '
                              'Name another folder, or remove this one to have them made anew.')
        self._hashes.save()

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """The images of which a file is absent or damaged, by index; of several processes, this one's share."""
        return [index for index in range(rank, len(self), world_size) if not all(map(_whole, self._paths(index)))]

    def _paths(self, index: int) -> Iterator[Path]:
        yield self.files[index]
        for turn, layer in itertools.product(self._turns() if self.layers else (), self.layers):
            yield self._path(index, layer, turn)

    def fill(self, indices: list[int], generate: Callable[[Tensor], Tensor | Mapping[str, Tensor]]) -> Iterator[None]:
        """Makes images and feature maps; to be stopped at any time. Says at first how much space they will take.

        Args:
            indices: Of which training images.
            generate: The teacher, from a whole LR image (1, C, H, W) to (1, C, sH, sW), or to a dictionary with that as
                `IMAGE` and the maps of the layers, (1, C, rH, rW) each.

        Yields:
            After each image.

        Raises:
            OptionError: There is not enough space, or a layer has no place for each of an image's pixels.
        """
        # validation's items are whole images, prepared otherwise as in training
        whole = copy(self.source)
        whole.opt = {**self.source.opt, 'phase': 'val'}
        whole.io_backend_opt, whole.file_client = deepcopy(self._hashes.backend), None
        for number, index in enumerate(indices):
            lq = whole[index]['lq'][None]
            arrays = self._arrays(index, lq, generate)
            if number == 0:
                self._announce(indices, lq.shape[-2] * lq.shape[-1], sum(array.nbytes for array in arrays.values()))
            for path, array in arrays.items():
                file = io.BytesIO()
                np.save(file, array)
                self._write(path, file.getvalue())
            yield

    def _arrays(self, index: int, lq: Tensor,
                generate: Callable[[Tensor], Tensor | Mapping[str, Tensor]]) -> dict[Path, np.ndarray]:
        arrays = {}
        for turn in self._turns() if self.layers else ('', ):
            made = generate(_turned(lq, turn))
            made = {IMAGE: made} if isinstance(made, Tensor) else made
            if not turn:
                arrays[self.files[index]] = self._as_array(IMAGE, made[IMAGE], lq)
            for layer in self.layers:
                arrays[self._path(index, layer, turn)] = self._as_array(layer, made[layer], _turned(lq, turn))
        return arrays

    def _as_array(self, layer: str, maps: Tensor, lq: Tensor) -> np.ndarray:
        """(rH, rW, C) in the precision of the cache."""
        height, width = lq.shape[-2:]
        if maps.shape[-2] % height or maps.shape[-1] % width or maps.shape[-2] * width != maps.shape[-1] * height:
            raise OptionError(f'`teacher.cache`: maps of `{layer}` are {maps.shape[-2]}x{maps.shape[-1]} for an image '
                              f'of {height}x{width}, so that a crop of it has no maps of its own there. Compare '
                              'another layer, or leave `features` out.')
        dtype = DTYPES[self.dtype][layer != IMAGE]
        maps = maps[0].permute(1, 2, 0).float().cpu()
        if dtype is np.uint8:
            if maps.shape[-1] != lq.shape[1]:
                raise OptionError('`teacher.cache.dtype: uint8` is for one image in [0, 1], and this teacher answers '
                                  'with several. Write `fp16`.')
            maps = (maps.clamp(0, 1) * 255).round()
        return np.ascontiguousarray(maps.numpy().astype(dtype))

    def _announce(self, indices: list[int], pixels: int, size: int) -> None:
        """The space that the images will take, judged by the first one, and whether it is there."""
        needed = int(self._hashes.pixels(indices) * (size / pixels))
        free = shutil.disk_usage(self.folder).free
        get_root_logger().info(f'Teacher cache {self.folder}: {len(indices)} images will take about '
                               f'{_gigabytes(needed)}.')
        if needed > free:
            raise OptionError(f'`teacher.cache`: {len(indices)} images take about {_gigabytes(needed)}, and '
                              f'`{self.folder}` has {_gigabytes(free)} left. Name another folder, or write a smaller '
                              '`dtype`, `features: false` or less augmentation.')

    def _write(self, path: Path, content: bytes) -> None:
        try:
            _write(path, content)
        except OSError as error:
            raise OptionError(f'`teacher.cache`: `{path}` cannot be written ({error.strerror}). What is there is kept: '
                              'make room, or name another folder, and start again.') from None


class _Place:
    """Where a crop is in an LR image, and how it is turned afterwards.

    Args:
        top: First row.
        left: First column.
        size: Rows and columns.
        height: Of the image.
        width: Of the image.
        turn: Letters of `TURNS`.
    """

    def __init__(self, top: int, left: int, size: int, height: int, width: int, turn: str) -> None:
        self.top, self.left, self.size, self.height, self.width, self.turn = top, left, size, height, width, turn

    def in_turned_image(self) -> _Place:
        """The same crop in the image that has been turned as a whole."""
        left = self.width - self.left - self.size if 'h' in self.turn else self.left
        top = self.height - self.top - self.size if 'v' in self.turn else self.top
        if 't' in self.turn:
            return _Place(left, top, self.size, self.width, self.height, '')
        return _Place(top, left, self.size, self.height, self.width, '')

    def crop(self, array: np.ndarray) -> np.ndarray:
        """The crop of an array (rH, rW, C)."""
        ratio = len(array) // self.height
        top, left, size = ratio * self.top, ratio * self.left, ratio * self.size
        return array[top:top + size, left:left + size]

    def turned(self, array: np.ndarray) -> np.ndarray:
        """An array (H, W, C), turned."""
        array = array[:, ::-1] if 'h' in self.turn else array
        array = array[::-1] if 'v' in self.turn else array
        return array.transpose(1, 0, 2) if 't' in self.turn else array


def _turned(images: Tensor, turn: str) -> Tensor:
    """Images (N, C, H, W), turned."""
    images = images.flip(3) if 'h' in turn else images
    images = images.flip(2) if 'v' in turn else images
    return images.transpose(2, 3) if 't' in turn else images


def _as_tensor(array: np.ndarray) -> Tensor:
    """(H, W, C) as (C, H, W) in fp32; 8 bits become [0, 1]."""
    maps = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), np.float32))
    return maps / 255 if array.dtype == np.uint8 else maps


def _gigabytes(size: int) -> str:
    return f'{size / 2**30:.2f} GiB'


class ContentHashes(Sequence[str]):
    """The hash of each LR image's bytes, which are not read again where a file is as it was.

    A file is as it was if its size, the times of its last changes of content and of anything, and its inode are. Of an
    LMDB it is the database.

    Args:
        dataset: A `PairedImageDataset`.
        file: What knows the hashes of former starts, if it is there.
    """

    def __init__(self, dataset: Any, file: Path) -> None:
        self.file = file
        self.backend = deepcopy(dataset.io_backend_opt)
        self._paths = [pair['lq_path'] for pair in dataset.paths]
        database = _state(os.path.join(dataset.lq_folder, 'data.mdb')) if self.backend['type'] == 'lmdb' else None
        known, client = _known_hashes(file), None
        self._changed = False
        rows = []
        for path in self._paths:
            state = database or _state(path)
            row = known.get(path)
            if row is None or row[0] != state:
                client = client or self._open()
                row = state, *_measured(path, client.get(path, 'lq'))
                self._changed = True
            rows.append(row)
        self._states = np.array([row[0] for row in rows], np.int64)
        self._digests = np.array([row[1] for row in rows], np.uint8)
        self._sizes = np.array([row[2] for row in rows], np.int64)

    def _open(self) -> FileClient:
        options = deepcopy(self.backend)
        return FileClient(options.pop('type'), **options)

    def __len__(self) -> int:
        return len(self._digests)

    def __getitem__(self, index: Any) -> Any:
        return self._digests[index].tobytes().hex()

    def pixels(self, rows: list[int]) -> int:
        """Of these LR images together."""
        return int(self._sizes[rows].prod(1).sum())

    def save(self) -> None:
        """Writes the file, unless it is there as it should be."""
        if self._changed:
            content = io.BytesIO()
            paths = '\0'.join(self._paths).encode('utf-8', 'surrogateescape')
            np.savez(content, paths=np.frombuffer(paths, np.uint8), states=self._states, digests=self._digests,
                     sizes=self._sizes)
            _write(self.file, content.getvalue())
        self._changed, self._paths = False, []


# of an image: the state of its file, its hash, and its width and height
_Row = tuple[tuple[int, ...], np.ndarray, Sequence[int]]


def _known_hashes(file: Path) -> dict[str, _Row]:
    """By path; nothing where there is no such file, or a damaged one."""
    try:
        with np.load(file) as stored:
            paths = stored['paths'].tobytes().decode('utf-8', 'surrogateescape').split('\0')
            rows = zip(map(tuple, stored['states'].tolist()), stored['digests'], stored['sizes'], strict=True)
            return dict(zip(paths, rows, strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return {}


def _state(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _measured(path: str, content: bytes) -> tuple[np.ndarray, Sequence[int]]:
    """The hash of an image file, and its width and height."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.frombuffer(digest, np.uint8), image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise OptionError(f'`datasets.train`: `{path}` cannot be read as an image. Write it anew, or take it and its '
                          'partner out of the set.') from None


class _ImageFiles(Sequence[Path]):
    """The files of the images, without a Python object for each."""

    def __init__(self, folder: Path, hashes: ContentHashes) -> None:
        self.folder, self.hashes = folder, hashes

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, index: Any) -> Any:
        return self.folder / f'{self.hashes[index]}.npy'


def _whole(path: Path) -> bool:
    try:
        np.load(path, mmap_mode='r')
        return True
    except (OSError, ValueError, EOFError):  # absent, empty or cut off
        return False


def _write(path: Path, content: bytes) -> None:
    """Under a hidden name first, so that `path` is never half a file, even for processes that write the same one."""
    partial_path = path.with_name(f'.{os.getpid()}_{path.name}')
    with open(partial_path, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial_path, path)
