"""Draws: the order is BasicSR's, the random numbers belong to the draw, and resuming continues both."""
import random

import numpy as np
import pytest
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader, Dataset

from kd_data import draws
from kd_data.draws import DrawSampler, SeededDraws, seed_everything


class Numbers(Dataset):
    """Each item: its index and what the three generators give."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(1).item()], dtype=torch.float64)


def draw(epochs, workers=0, rank=0, replicas=1, resume=None):
    sampler = DrawSampler(Numbers(), replicas, rank, ratio=3)
    if resume:
        sampler.resume(*resume)
    loader = DataLoader(SeededDraws(Numbers(), seed=4), batch_size=2, sampler=sampler, num_workers=workers,
                        drop_last=True)
    rows = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        iter(loader)  # as BasicSR's prefetcher does: an iteration more must not change anything
        rows += list(loader)
    return torch.cat(rows)


@pytest.mark.parametrize('replicas', [1, 2])
def test_order_is_basicsrs(replicas, monkeypatch):
    monkeypatch.setattr(draws, 'CHUNK', 2)
    for rank in range(replicas):
        stock, ours = (cls(Numbers(), replicas, rank, 3) for cls in (EnlargedSampler, DrawSampler))
        for epoch in (0, 5):
            stock.set_epoch(epoch)
            ours.set_epoch(epoch)
            assert [index for index, _ in ours] == list(stock)


def test_draw_numbers_are_unique_over_epochs_and_processes():
    numbers = []
    for rank in range(2):
        sampler = DrawSampler(Numbers(), 2, rank, ratio=3)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            numbers += [number for _, number in sampler]
    assert sorted(numbers) == list(range(3 * sampler.total_size))


def test_same_draws_with_and_without_workers():
    assert torch.equal(draw([0, 1]), draw([0, 1], workers=2))


def test_one_image_is_augmented_anew_at_every_draw():
    rows = draw([0, 1])
    assert len(torch.unique(rows[:, 1])) == len(rows) and len(torch.unique(rows[:, 0])) == 5


@pytest.mark.parametrize('workers', [0, 2])
def test_resume_inside_an_epoch(workers, monkeypatch):
    monkeypatch.setattr(draws, 'CHUNK', 3)
    whole = draw([0, 1, 2], workers)
    assert torch.equal(draw([1, 2], workers, resume=(1, 4)), whole[14 + 4:])


def test_seeds_are_independent_of_each_other():
    values = set()
    for numbers in [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]:
        seed_everything(*numbers)
        values.add((random.random(), np.random.rand(), torch.rand(1).item()))
    assert len(values) == 6
