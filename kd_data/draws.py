"""Which image is drawn when, and with which random numbers: both are functions of the seed and the draw's number.

BasicSR's EnlargedSampler draws an image `dataset_enlarge_ratio` times in an epoch, so (epoch, image) does not name a
draw. Here each draw carries its number in the whole training; the augmentation of a draw is seeded from it, whichever
process or loader worker makes it. Resuming is then a matter of starting at the right number.
"""
from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import Dataset

CHUNK = 4096  # draws that are Python objects at a time


class DrawSampler(EnlargedSampler):
    """BasicSR's EnlargedSampler, in the same order, whose items are (image index, draw number).

    Args:
        dataset: The training set.
        num_replicas: Number of processes.
        rank: This process.
        ratio: `dataset_enlarge_ratio`.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: int = 1) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self._resumed = (0, 0)  # (epoch, draws of this process to skip in it)

    def resume(self, epoch: int, skip: int) -> None:
        """Lets epoch `epoch` start after its first `skip` draws, however often it is iterated."""
        self._resumed = (epoch, skip)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self.total_size, generator=torch.Generator().manual_seed(self.epoch))
        images = order[self.rank::self.num_replicas] % len(self.dataset)  # type: ignore[arg-type]
        epoch, skip = self._resumed
        first = self.epoch * self.total_size + self.rank
        for start in range(skip if self.epoch == epoch else 0, self.num_samples, CHUNK):
            for number, image in enumerate(images[start:start + CHUNK].tolist(), start):
                yield image, first + number * self.num_replicas


class SeededDraws(Dataset):
    """A dataset whose items are drawn by (index, draw number), with all random numbers seeded from (seed, draw).

    Args:
        dataset: Any BasicSR dataset.
        seed: `manual_seed`.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, draw = item
        seed_everything(self.seed, draw)
        return self.dataset[index]


def seed_everything(*numbers: int) -> None:
    """Seeds Python's, NumPy's and torch's generators from non-negative integers such as (seed, rank, iteration).

    Different tuples give independent streams (NumPy's SeedSequence mixes them).
    """
    words = np.random.SeedSequence((len(numbers), *numbers)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    seed = int(words[2]) << 32 | int(words[3])
    torch.random.default_generator.manual_seed(seed)  # torch.manual_seed: 50 times the cost without CUDA
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
