"""Training faces at a random scale, as GCFSR learns from them."""
from __future__ import annotations

import random
from os import path as osp
from typing import Any

import numpy as np
import torch
from basicsr.data.data_util import paths_from_lmdb
from basicsr.data.transforms import augment
from basicsr.utils import FileClient, imfrombytes, img2tensor, scandir
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from kd_utils.options import OptionError, check_face
from kd_utils.resize import bicubic


@DATASET_REGISTRY.register()
class FaceScaleDataset(Dataset):
    """Faces, reduced by a scale drawn at random and enlarged again to their own size.

    As GCFSR's own set is described: horizontal flip, a scale from the list, MATLAB's bicubic down and up, each rounded
    to 8 bits, normalised to [-1, 1].

    Args:
        opt: The section of the YAML file:
            dataroot_gt: Folder or LMDB of square faces of `gt_size`.
            meta_info: Text file with the names of the faces to take, one per line; all of the folder without it. An
                LMDB has a list of its own.
            io_backend: As for BasicSR's datasets.
            gt_size: Height and width, the network's `out_size`.
            downsample_list: The scales. One that is written k times is drawn k times as often.
            use_hflip: Whether half of the faces are mirrored.

    Raises:
        OptionError: A scale does not divide `gt_size`, an LMDB has a `meta_info`, or it is not a training set.
    """
    option_keys = {'dataroot_gt': 'path!', 'meta_info': 'path?', 'gt_size': 'size!', 'downsample_list': 'scales!',
                   'use_hflip': 'bool!'}

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.size, self.scales = opt['gt_size'], opt['downsample_list']
        unfit = [scale for scale in self.scales if self.size % scale]
        if unfit:
            raise OptionError(f'`datasets.train.downsample_list`: {unfit[0]} does not divide `gt_size`, {self.size}. '
                              'Write powers of two.')
        if opt['phase'] != 'train':
            raise OptionError(f'`datasets.{opt["phase"]}`: FaceScaleDataset draws scales at random and is for training '
                              'only. Use PairedImageDataset with LR faces.')
        if opt['io_backend']['type'] == 'lmdb' and opt.get('meta_info') is not None:
            raise OptionError('`datasets.train.meta_info` chooses from a folder, and an LMDB is read as a whole. Take '
                              'it out, or make an LMDB of these faces alone.')
        self.client: FileClient | None = None  # opened in the loader's worker
        self.paths = self._paths(opt['dataroot_gt'])

    def _paths(self, root: str) -> list[str]:
        """Names of files, or keys of the LMDB."""
        if self.opt['io_backend']['type'] == 'lmdb':
            return paths_from_lmdb(root)
        if self.opt.get('meta_info') is None:
            return sorted(scandir(root, full_path=True))
        with open(self.opt['meta_info'], encoding='utf-8') as file:
            return [osp.join(root, line.strip().split(' ')[0]) for line in file]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A face at a scale.

        Returns:
            dict: `lq` and `gt`, (3, gt_size, gt_size) in [-1, 1], RGB; `scale`, (1); `lq_path` and `gt_path`.

        Raises:
            OptionError: The face is of another size.
        """
        path = self.paths[index]
        face = augment(self._read(path), self.opt['use_hflip'], rotation=False)
        gt, scale = img2tensor(face, bgr2rgb=True, float32=True), random.choice(self.scales)
        lq = _in_8_bits(bicubic(_in_8_bits(bicubic(gt[None], self.size // scale)), self.size))[0]
        return {'lq': lq * 2 - 1, 'gt': gt * 2 - 1, 'scale': torch.tensor([float(scale)]), 'lq_path': path,
                'gt_path': path}

    def _read(self, path: str) -> np.ndarray:
        """(gt_size, gt_size, 3) in [0, 1], BGR."""
        if self.client is None:
            backend = dict(self.opt['io_backend'])
            if backend['type'] == 'lmdb':
                backend['db_paths'] = self.opt['dataroot_gt']
            self.client = FileClient(backend.pop('type'), **backend)
        face = imfrombytes(self.client.get(path), float32=True)
        check_face('datasets.train', path, face.shape[1::-1], self.size)
        return face


def _in_8_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] as if they were written to a file and read again."""
    return (images.clamp(0, 1) * 255).round() / 255
