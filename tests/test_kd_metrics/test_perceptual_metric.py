"""LPIPS and VGG distance as metrics of an image."""
import os
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from skimage import data
from torch import nn
from torchvision.models import _api, squeezenet1_1

from kd_losses.self_distill_loss import LPIPSLoss
from kd_metrics import MetricUnavailable, perceptual_metric
from kd_metrics.images import device, rgb

REAL = Path(os.environ.get('KD_DATA', 'datasets')) / 'weights/perceptual/vgg19_normalised_to_conv3_1_fp32.pth'


@pytest.fixture(autouse=True)
def no_network_is_kept():
    perceptual_metric._network.cache_clear()


@pytest.fixture(scope='module')
def squeeze(tmp_path_factory):
    path = tmp_path_factory.mktemp('lpips') / 'squeeze.pth'
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return str(path)


@pytest.fixture(scope='module')
def vgg(tmp_path_factory):
    """A file of VGG19 that ends after its second convolution."""
    path = tmp_path_factory.mktemp('vgg') / 'vgg.pth'
    torch.manual_seed(0)
    convs = {'features.0': nn.Conv2d(3, 64, 3), 'features.2': nn.Conv2d(64, 64, 3)}
    torch.save({f'{name}.{key}': value for name, conv in convs.items() for key, value in conv.state_dict().items()},
               path)
    return str(path)


@pytest.fixture(scope='module')
def pair():
    """A photo and a blurred copy, (96, 80, 3) uint8 BGR."""
    image = np.ascontiguousarray(data.chelsea()[100:196, 120:200, ::-1])
    return cv2.GaussianBlur(image, (0, 0), 1.5), image


def test_images_become_rgb_tensors(pair):
    image = pair[1]
    tensor = rgb(image, crop_border=3).cpu()
    assert tensor.shape == (1, 3, 90, 74) and tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor[0, 0].numpy(), image[3:-3, 3:-3, 2])
    assert torch.equal(tensor, rgb(image.transpose(2, 0, 1), 3, 'CHW').cpu())
    assert rgb(image[:, :, 0]).shape == (1, 3, 96, 80)  # grey


def test_lpips(squeeze, pair):
    option = {'type': 'calculate_lpips', 'net': 'squeeze', 'weights': squeeze, 'crop_border': 4, 'better': 'lower'}
    blurred, image = pair
    value = calculate_metric({'img': blurred, 'img2': image}, option)
    loss = LPIPSLoss(net='squeeze', weights=squeeze).to(device())
    x, y = (torch.from_numpy(i[4:-4, 4:-4, ::-1].copy()).permute(2, 0, 1)[None].to(device()) / 255 for i in pair)
    assert isinstance(value, float) and value == pytest.approx(loss(x, y).item(), rel=1e-5) and value > 1e-4
    assert calculate_metric({'img': image, 'img2': image}, option) == 0


def test_the_network_is_built_once_and_draws_no_random_numbers(squeeze, pair, monkeypatch):
    built = []

    def build(**options):
        built.append(options)
        return LPIPSLoss(**options)
    monkeypatch.setattr(perceptual_metric, 'LPIPSLoss', build)
    state = torch.get_rng_state()
    for border in (0, 2):
        perceptual_metric.calculate_lpips(*pair, crop_border=border, net='squeeze', weights=squeeze)
    assert len(built) == 1 and torch.equal(state, torch.get_rng_state())


def test_lpips_without_weights_is_unavailable(pair, monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise URLError('no route')
    monkeypatch.setattr(_api, 'load_state_dict_from_url', offline)
    with pytest.raises(MetricUnavailable, match='could not get its weights'):
        perceptual_metric.calculate_lpips(*pair, crop_border=0, net='squeeze')
    with pytest.raises(MetricUnavailable, match='does not exist'):
        perceptual_metric.calculate_lpips(*pair, crop_border=0, net='squeeze', weights=str(tmp_path / 'none.pth'))


def test_lpips_of_a_small_image_is_unavailable(pair, squeeze):
    with pytest.raises(MetricUnavailable, match='at least 17 pixels'):
        perceptual_metric.calculate_lpips(*(i[:20, :20] for i in pair), crop_border=2, net='squeeze', weights=squeeze)


def test_vgg_distance_by_hand(vgg, pair):
    state = torch.load(vgg)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = [torch.conv2d((rgb(i).cpu() / 255 - mean) / std, state['features.0.weight'], state['features.0.bias'],
                         padding=1) for i in pair]
    option = {'type': 'calculate_vgg_distance', 'weights': vgg, 'layer_weights': {'conv1_1': 2.}, 'crop_border': 0}
    data = dict(zip(('img', 'img2'), pair, strict=True))
    expected = (maps[0] - maps[1]).square().mean().item()
    assert calculate_metric(data, option) == pytest.approx(2 * expected, rel=1e-4)
    expected = (maps[0] - maps[1]).abs().mean().item()
    assert calculate_metric(data, {**option, 'criterion': 'l1'}) == pytest.approx(2 * expected, rel=1e-4)


def test_vgg_distance_with_too_short_a_file_is_unavailable(vgg, pair):
    with pytest.raises(MetricUnavailable, match='does not hold VGG19 up to conv3_1'):
        perceptual_metric.calculate_vgg_distance(*pair, crop_border=0, weights=vgg)


@pytest.mark.skipif(not REAL.exists(), reason='the real weights are not at hand')
def test_real_weights_prefer_a_similar_image(pair):
    blurred, image = pair
    slightly = cv2.GaussianBlur(image, (0, 0), 0.5)
    near, far = (perceptual_metric.calculate_vgg_distance(i, image, crop_border=4, weights=str(REAL))
                 for i in (slightly, blurred))
    assert 0 < near < far
