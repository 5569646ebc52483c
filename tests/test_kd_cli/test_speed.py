"""What the log says of speed and memory."""
from __future__ import annotations

import re

import torch

from kd_cli import speed
from kd_cli.speed import speed_line


def test_images_waiting_and_the_memory_of_this_process(monkeypatch):
    ballast = torch.ones(30 * 2**20)  # 120 MiB
    line = speed_line(16, 0.5, 0.1, gpu=False)
    found = re.fullmatch(r'Speed: 32 images/s, 20 % of the time waiting for data, peak memory (.*) GiB', line)
    assert len(ballast) / 2**28 < float(found[1]) < 64
    monkeypatch.setattr(speed, 'resource', None)  # on Windows
    assert speed_line(16, 0.5, 0.9, gpu=False) == 'Speed: 32 images/s, 100 % of the time waiting for data'
    assert speed_line(1, 0., 0., gpu=False).startswith('Speed: 1e+09 images/s, 0 %')


def test_the_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: 3 * 2**29)
    assert speed_line(8, 2., 0.02, gpu=True) == ('Speed: 4 images/s, 1 % of the time waiting for data, '
                                                 'peak memory 1.50 GiB of the GPU')
