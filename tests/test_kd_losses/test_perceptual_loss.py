"""VGGPerceptualLoss from files, against torchvision's network, NumPy, and the real weights where they are at hand."""
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import vgg_arch
from basicsr.losses.basic_loss import PerceptualLoss
from torch import nn
from torch.nn import functional as F
from torchvision.models import vgg19

from kd_losses.perceptual_loss import VGGPerceptualLoss
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError

REAL = Path(os.environ.get('KD_DATA', 'datasets')) / 'weights/perceptual/vgg19_normalised_to_conv3_1_fp32.pth'
WEIGHTS = {'conv1_2': 0.1, 'relu2_1': 1.0}


@pytest.fixture(scope='module')
def x_y():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 20, 24, generator=generator), torch.rand(1, 3, 20, 24, generator=generator)


@pytest.fixture(scope='module')
def torchvision_file(tmp_path_factory):
    """The first convolutions of a randomly initialised torchvision VGG19, as in its published file."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(features=vgg19(weights=None).features[:8]))
    path = tmp_path_factory.mktemp('vgg') / 'vgg19.pth'
    torch.save(net.state_dict(), path)
    return path, net.features


@pytest.mark.parametrize('criterion', ['l1', 'fro'])
def test_equals_basicsrs_loss(torchvision_file, x_y, monkeypatch, criterion):
    path, features = torchvision_file
    monkeypatch.setattr(vgg_arch.vgg, 'vgg19', lambda pretrained=False: nn.Sequential(OrderedDict(features=features)))
    options = dict(layer_weights=WEIGHTS, perceptual_weight=0.5, style_weight=2.0, criterion=criterion)
    expected = PerceptualLoss(**options)(*x_y)
    for ours, stock in zip(VGGPerceptualLoss(weights=str(path), **options)(*x_y), expected, strict=True):
        torch.testing.assert_close(ours, stock)


def test_l2_and_range_norm(torchvision_file, x_y):
    path, features = torchvision_file
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    loss = VGGPerceptualLoss(weights=str(path), layer_weights={'conv1_2': 2.0}, criterion='l2', range_norm=True)
    a, b = (features[:3]((x - mean) / std).detach().numpy() for x in x_y)
    value, style = loss(*(x * 2 - 1 for x in x_y))
    assert style is None and value.item() == pytest.approx(2 * np.mean((a - b)**2), rel=1e-4)


def test_normalised_vgg_against_hand_made_layers(tmp_path, x_y):
    generator = torch.Generator().manual_seed(1)
    shapes = {'conv0': (3, 3, 1, 1), 'conv1_1': (4, 3, 3, 3), 'conv1_2': (4, 4, 3, 3), 'conv2_1': (6, 4, 3, 3)}
    state = {}
    for name, shape in shapes.items():
        state[f'{name}.weight'] = torch.randn(shape, generator=generator)
        state[f'{name}.bias'] = torch.randn(shape[0], generator=generator)
    torch.save(state, tmp_path / 'vgg.pth')
    loss = VGGPerceptualLoss(weights=str(tmp_path / 'vgg.pth'), layer_weights={'relu2_1': 1.0})

    def conv(x, name):
        x = F.pad(x, (1, 1, 1, 1), 'reflect') if name != 'conv0' else x
        return F.conv2d(x, state[f'{name}.weight'], state[f'{name}.bias'])

    def features(x):
        x = conv(conv(x, 'conv0'), 'conv1_1').relu()
        x = F.max_pool2d(conv(x, 'conv1_2').relu(), 2, ceil_mode=True)
        return conv(x, 'conv2_1').relu()

    expected = (features(x_y[0]) - features(x_y[1])).abs().mean()
    torch.testing.assert_close(loss(*x_y)[0], expected)


def test_stays_frozen_and_in_eval(torchvision_file):
    loss = VGGPerceptualLoss(weights=str(torchvision_file[0]), layer_weights=WEIGHTS).train()
    assert not any(p.requires_grad for p in loss.parameters()) and not loss.vgg.net.training


def test_what_cannot_work_is_refused(torchvision_file, tmp_path):
    path = str(torchvision_file[0])
    with pytest.raises(OptionError, match='no layer `conv6_1`. Did you mean'):
        VGGPerceptualLoss(weights=path, layer_weights={'conv6_1': 1.0})
    with pytest.raises(OptionError, match='does not hold VGG19 up to conv5_4'):
        VGGPerceptualLoss(weights=path, layer_weights={'conv5_4': 1.0})
    with pytest.raises(OptionError, match='criterion is `l3`'):
        VGGPerceptualLoss(weights=path, layer_weights=WEIGHTS, criterion='l3')
    with pytest.raises(CheckpointError, match='does not exist'):
        VGGPerceptualLoss(weights=str(tmp_path / 'none.pth'), layer_weights=WEIGHTS)


def test_without_a_network_the_stock_loss_is_explained(tmp_path, monkeypatch):
    from urllib.error import URLError

    from kd_models.distillation_model import DistillationModel
    from tests.support import model_options

    def offline(pretrained=False):
        raise URLError('no route')
    monkeypatch.setattr(vgg_arch.vgg, 'vgg19', offline)
    options = model_options(tmp_path, {'perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': WEIGHTS}})
    with pytest.raises(OptionError, match='could not download its weights.*VGGPerceptualLoss'):
        DistillationModel(options)


@pytest.mark.skipif(not REAL.exists(), reason='the real weights are not at hand')
def test_real_weights_prefer_a_similar_image():
    from skimage import data
    image = torch.from_numpy(data.chelsea()[:128, :128].copy()).permute(2, 0, 1)[None] / 255
    loss = VGGPerceptualLoss(weights=str(REAL), layer_weights={'conv3_1': 1.0})
    blurred = F.interpolate(F.interpolate(image, scale_factor=0.25, mode='area'), scale_factor=4, mode='bicubic')
    slightly = image + 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert 0 < loss(slightly, image)[0] < loss(blurred, image)[0]


def test_gram_matrices_stay_in_full_precision(torchvision_file, x_y):
    loss = VGGPerceptualLoss(weights=str(torchvision_file[0]), layer_weights=WEIGHTS, style_weight=1.0)
    maps = x_y[0].repeat(1, 4, 1, 1)
    with torch.autocast('cpu', torch.bfloat16):
        gram = loss._gram_mat(maps)
    assert torch.equal(gram, loss._gram_mat(maps)) and gram.dtype is torch.float32
