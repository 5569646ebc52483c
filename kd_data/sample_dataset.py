"""Latents for unconditional generators, in the place of LR images."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset


@DATASET_REGISTRY.register()
class SampleDataset(Dataset):
    """Fixed standard normal latents: `lq` (num_style_feat, ), `lq_path` sample_00000, sample_00001 ...

    Latent i is a function of (seed, i), so that a larger `n` only adds to a smaller one.

    Args:
        opt: `n`, `seed` (0 by default), `num_style_feat`.
    """
    option_keys = {'n': 'size!', 'seed': 'count', 'num_style_feat': 'size!', 'io_backend': 'dict?'}

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt

    def __len__(self) -> int:
        return self.opt['n']

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        latent = np.random.default_rng((self.opt.get('seed', 0), index)).standard_normal(self.opt['num_style_feat'])
        return {'lq': torch.from_numpy(latent.astype(np.float32)), 'lq_path': f'sample_{index:05}'}
