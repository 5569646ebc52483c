"""Small real-looking data and networks for all tests; nothing is downloaded and no GPU is needed."""
from __future__ import annotations

# ruff: noqa: I001
import kd_models  # noqa: F401  first: it makes basicsr importable

import logging

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import vgg_arch
from basicsr.utils import get_root_logger
from basicsr.utils.matlab_functions import imresize

from tests.support import random_vgg

# made now, else its stream is the captured stderr of the first test that logs, which is closed with that test
get_root_logger().setLevel(logging.ERROR)


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder with hr/ (six 64x64 photographs-like images) and lr/ (their bicubic x2 versions)."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for folder in ('hr', 'lr'):
        (root / folder).mkdir()
    for i in range(6):
        image = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3)).astype(np.float32), (0, 0), 1 + i / 2)
        image = np.clip((image - image.mean()) * 4 + 128, 0, 255).round()
        lr = np.clip(imresize(image / 255, 0.5) * 255, 0, 255).round()
        cv2.imwrite(str(root / 'hr' / f'{i}.png'), image.astype(np.uint8))
        cv2.imwrite(str(root / 'lr' / f'{i}.png'), lr.astype(np.uint8))
    return root


@pytest.fixture
def vgg_without_download(monkeypatch):
    """PerceptualLoss with random weights."""
    for name in ('vgg16', 'vgg19'):
        monkeypatch.setattr(vgg_arch.vgg, name, lambda pretrained, name=name: random_vgg(name))


@pytest.fixture
def warnings_logged():
    """The texts of warnings that BasicSR's logger was given."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = get_root_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)
    logger.setLevel(level)
