"""Batched bicubic resizing against BasicSR's, which is MATLAB's."""
import pytest
import torch
from basicsr.utils.matlab_functions import imresize

from kd_utils import resize


@pytest.mark.parametrize('length, size', [(8, 64), (5, 30), (2, 16), (24, 24), (64, 8), (64, 2), (32, 24)])
def test_as_basicsr(length, size):
    images = torch.rand(2, 3, length, length, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([imresize(image, size / length) for image in images])
    torch.testing.assert_close(resize.bicubic(images, size), expected, atol=2e-6, rtol=0)


def test_a_single_pixel_and_double_precision():
    images = torch.rand(1, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(resize.bicubic(images, 4), images.expand(1, 3, 4, 4), atol=1e-6, rtol=0)


def test_each_side_has_its_own_size():
    images = torch.rand(1, 3, 12, 7, generator=torch.Generator().manual_seed(0))
    expected = imresize(images[0], 3)[None]
    torch.testing.assert_close(resize.bicubic(images, (36, 21)), expected, atol=2e-6, rtol=0)


def test_in_training_after_inference():
    """What is kept for a size is of use to a graph, whoever asked for it first."""
    images = torch.rand(1, 3, 11, 13)
    with torch.inference_mode():
        first = resize.bicubic(images, 17)
    images.requires_grad_(True)
    second = resize.bicubic(images, 17)
    second.sum().backward()
    assert torch.equal(first, second) and images.grad.shape == images.shape


@pytest.mark.parametrize('size, padded', [((8, 4), (8, 4)), ((5, 7), (8, 8)), ((1, 9), (4, 12))])
def test_padding(size, padded):
    images = torch.rand(1, 3, *size)
    result = resize.pad_to_multiple(images, 4)
    assert result.shape[-2:] == padded and torch.equal(result[..., :size[0], :size[1]], images)
