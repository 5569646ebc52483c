"""A teacher's images of a fixed training set, computed once and read by crop: the folder of `teacher.cache`.

It holds `teacher.json`, which says what made the images, and a `.npy` file for each training image, (sH, sW, C) in half
precision. C is 3, or a multiple of it where the teacher answers with several images, such as a diffusion trajectory.
The file's name is the hash of the LR image's bytes, so that an image that changes is not served from the file of what
it was; the name of the image, its place and its date do not count.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import FileClient, img2tensor
from torch import Tensor
from torch.utils.data import Dataset

from kd_utils.options import OptionError

RECORD = 'teacher.json'


class TeacherCache(Dataset):
    """A training set whose items have the same crop of the teacher's image as `teacher`, flipped and turned alike.

    Args:
        dataset: A `PairedImageDataset` in training, or such a set with another teacher's images already.
        folder: Where the teacher's images are, or will be.
        name: What the items call the teacher's image.

    Attributes:
        source: The `PairedImageDataset`.
    """

    def __init__(self, dataset: Any, folder: str, name: str = 'teacher') -> None:
        self.dataset = dataset
        self.source: Any = dataset.source if isinstance(dataset, TeacherCache) else dataset
        self.name = name
        self.folder = Path(folder)
        self.files = [self.folder / f'{content}.npy' for content in _content_hashes(self.source)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        state = random.getstate()
        item = self.dataset[index]
        random.setstate(state)  # BasicSR does not tell what it drew, so the same is drawn again
        image = np.load(self.files[index], mmap_mode='r')
        opt = self.source.opt
        size, scale = opt['gt_size'], opt['scale']
        crop, _ = paired_random_crop(image, image[::scale, ::scale], size, scale)
        crop = augment(np.array(crop, np.float32), opt['use_hflip'], opt['use_rot'])
        return {**item, self.name: img2tensor(crop, bgr2rgb=False)}

    def claim(self, teacher: dict[str, Any]) -> None:
        """Makes the folder and records what fills it.

        Args:
            teacher: What decides the teacher's images.

        Raises:
            OptionError: The folder's images were made by something else, or there can be no such folder.
        """
        made_by = {**teacher, **{key: self.source.opt.get(key) for key in ('color', 'mean', 'std')}}
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

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """The images that are absent or damaged, by index; of several processes, this one's share."""
        return [index for index in range(rank, len(self), world_size) if not _whole(self.files[index])]

    def fill(self, indices: list[int], generate: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Makes images; to be stopped at any time.

        Args:
            indices: Which ones.
            generate: The teacher, from a whole LR image (1, C, H, W) to (1, C, sH, sW).

        Yields:
            After each image.
        """
        # validation's items are whole images, prepared otherwise as in training
        whole = type(self.source)({**deepcopy(self.source.opt), 'phase': 'val'})
        for index in indices:
            image = generate(whole[index]['lq'][None])[0].permute(1, 2, 0)  # (sH, sW, C)
            file = io.BytesIO()
            np.save(file, np.ascontiguousarray(image.half().cpu().numpy()))
            _write(self.files[index], file.getvalue())
            yield


def _content_hashes(dataset: Any) -> list[str]:
    backend = deepcopy(dataset.io_backend_opt)
    client = FileClient(backend.pop('type'), **backend)
    return [hashlib.blake2b(client.get(pair['lq_path'], 'lq'), digest_size=16).hexdigest() for pair in dataset.paths]


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
