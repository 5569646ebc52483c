"""The distances of self-distillation: LPIPS, MS-SSIM, and the augmentation that two images share."""
from urllib.error import URLError

import lpips
import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import structural_similarity
from torch.nn import functional as F
from torchvision.models import _api, alexnet, squeezenet1_1, vgg16

from kd_losses.self_distill_loss import (
    SMALLEST,
    LPIPSLoss,
    MSSSIMLoss,
    WeightsUnavailable,
    augment_alike,
    gaussian_window,
    ssim_terms,
)
from kd_models.distillation_model import DistillationModel
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError
from tests.support import model_options


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Backbone -> a file like torchvision's, with random weights; the convolutions alone."""
    folder, paths = tmp_path_factory.mktemp('backbones'), {}
    torch.manual_seed(0)
    for name, features in (('squeeze', squeezenet1_1(weights=None).features),
                           ('alex', alexnet(weights=None, num_classes=1).features),
                           ('vgg', vgg16(weights=None, num_classes=1, init_weights=False).features)):
        paths[name] = str(folder / f'{name}.pth')
        torch.save({f'features.{key}': value for key, value in features.state_dict().items()}, paths[name])
    return paths


@pytest.fixture(scope='module')
def photo():
    return torch.from_numpy(data.chelsea()[:192, :256].copy()).permute(2, 0, 1)[None] / 255


# -------------------------------------------------------------------------------------------------------------- LPIPS


def test_equals_the_lpips_package(files, photo, monkeypatch):
    net = squeezenet1_1(weights=None)
    net.load_state_dict(torch.load(files['squeeze']), strict=False)
    monkeypatch.setattr(lpips.pn.tv, 'squeezenet1_1', lambda pretrained: net)
    x, y = photo[..., :64, :64], photo[..., 64:128, 64:128]
    expected = lpips.LPIPS(net='squeeze', verbose=False)(2 * x - 1, 2 * y - 1).item()
    assert expected > 0.01
    loss = LPIPSLoss(net='squeeze', weights=files['squeeze'], loss_weight=0.5)
    assert loss(x, y).item() == pytest.approx(expected / 2, rel=1e-5)
    assert loss(torch.cat([x, x]), torch.cat([y, x])).item() == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize('net', SMALLEST)
def test_a_backbone_takes_images_from_its_smallest_size_on(files, net):
    size = SMALLEST[net]
    loss = LPIPSLoss(net=net, weights=files[net])
    x = torch.rand(1, 3, size, size + 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = x.detach().flip(3)
    loss(x, y).backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert loss(x, x).item() == 0
    with pytest.raises(OptionError, match=f'`net: {net}` needs images of at least {size} pixels a side.*gt_size'):
        loss(x[..., :size - 1, :], y[..., :size - 1, :])
    with pytest.raises(RuntimeError):  # the bound is not stricter than need be
        loss.lpips(x[..., :size - 1, :], y[..., :size - 1, :])


def test_lpips_is_frozen_and_stays_in_eval(files):
    loss = LPIPSLoss(net='squeeze', weights=files['squeeze']).train()
    assert not any(p.requires_grad for p in loss.parameters())
    assert not any(module.training for module in loss.modules())


def test_lpips_that_cannot_be_built_is_refused(files, tmp_path):
    with pytest.raises(OptionError, match='no backbone `resnet`. Write one of: vgg, alex, squeeze'):
        LPIPSLoss(net='resnet')
    with pytest.raises(OptionError, match='does not hold the backbone `squeeze`.*squeezenet1_1-b8a52dc0.pth'):
        LPIPSLoss(net='squeeze', weights=files['alex'])
    with pytest.raises(CheckpointError, match='does not exist'):
        LPIPSLoss(net='squeeze', weights=str(tmp_path / 'none.pth'))
    with pytest.raises(OptionError, match='compares RGB images, these have 1 channels'):
        LPIPSLoss(net='squeeze', weights=files['squeeze'])(*torch.zeros(2, 1, 1, 64, 64))


def test_without_a_network_the_remedy_is_named(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise URLError('no route')
    monkeypatch.setattr(_api, 'load_state_dict_from_url', offline)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(WeightsUnavailable, match='could not get its weights .no route.. Download .*'
                       f'squeezenet1_1-b8a52dc0.pth elsewhere and save it as {tmp_path}.*`weights: FILE`'):
        LPIPSLoss(net='squeeze')


def test_lpips_trains_a_generator(files, tmp_path):
    """As the distance of another loss of two images."""
    option = {'type': 'LPIPSLoss', 'net': 'squeeze', 'weights': files['squeeze']}
    model = DistillationModel(model_options(tmp_path, {'pixel_opt': option}))
    before = model.net_g.conv_first.weight.clone()
    model.feed_data({'lq': torch.rand(2, 3, 16, 16), 'gt': torch.rand(2, 3, 32, 32)})
    model.optimize_parameters(1)
    assert model.get_current_log()['l_g_pix'] > 0 and not torch.equal(model.net_g.conv_first.weight, before)


# ------------------------------------------------------------------------------------------------------------ MS-SSIM


def test_one_scale_equals_scikit_image(photo):
    x, y = photo, F.avg_pool2d(photo, 3, 1, 1)
    luminance, contrast = ssim_terms(x.double(), y.double(), gaussian_window(11, x.double()))
    expected = structural_similarity(*(image[0].double().numpy() for image in (x, y)), channel_axis=0, data_range=1,
                                     gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert (luminance * contrast).mean().item() == pytest.approx(expected, abs=1e-9)


def test_known_values(photo):
    """Those of pytorch-msssim 1.0.0; below 161 pixels with a window of 7."""
    wave = 0.1 * torch.sin(torch.arange(photo.numel()).view(photo.shape) * 1.7)
    noisy = (photo + wave).clamp(0, 1)
    assert MSSSIMLoss()(F.avg_pool2d(photo, 3, 1, 1), photo).item() == pytest.approx(0.0172343, abs=1e-6)
    assert MSSSIMLoss(loss_weight=2.)(noisy, photo).item() == pytest.approx(2 * 0.0801072, abs=1e-6)
    small = slice(0, 160)
    assert MSSSIMLoss()(noisy[..., small, small], photo[..., small, small]).item() == pytest.approx(0.0976944, abs=1e-6)


def test_equal_images_are_at_distance_0_with_no_gradient(photo):
    x = photo.clone().requires_grad_()
    loss = MSSSIMLoss()(x, photo)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and x.grad.abs().max() < 1e-5


def test_a_scale_of_opposite_structure_leaves_the_others_a_gradient():
    """Noise of the opposite sign on the same ramp: the finest scale's term is negative."""
    ramp = torch.linspace(0.2, 0.8, 192).expand(1, 3, 192, 192)
    noise = 0.2 * (torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0)) - 0.5)
    x = (ramp + noise).requires_grad_()
    assert ssim_terms(x, ramp - noise, gaussian_window(11, x))[1].mean() < 0
    MSSSIMLoss()(x, ramp - noise).backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_images_too_small_for_five_scales_are_refused(tmp_path):
    assert MSSSIMLoss()(*torch.rand(2, 1, 3, 97, 120)).isfinite()
    with pytest.raises(OptionError, match='MS-SSIM needs images of at least 97 pixels a side, these are 120x96'):
        MSSSIMLoss()(*torch.rand(2, 1, 3, 120, 96))
    with pytest.raises(OptionError, match='these are 32x32.*gt_size'):  # before the first iteration
        DistillationModel(model_options(tmp_path, {'pixel_opt': {'type': 'MSSSIMLoss'}}))


# ------------------------------------------------------------------------------------------------------- augmentation


def ramps(count: int, height: int = 60, width: int = 80) -> torch.Tensor:
    """Images whose two channels are the coordinates of their pixels."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing='ij')
    return torch.stack([x, y]).expand(count, 2, height, width)


def test_both_images_meet_the_same_transform():
    torch.manual_seed(0)
    images = torch.rand(32, 3, 24, 30)
    a, b = augment_alike(images, images.clone())
    assert torch.equal(a, b)
    assert len({tuple(pixel.tolist()) for pixel in (a - images)[:, :, 12, 15]}) > 8  # not one for the batch


def test_the_transforms_are_flips_small_turns_and_small_shifts():
    torch.manual_seed(0)
    source, seen = ramps(64), {'flip': 0, 'turn': 0, 'shift': 0, 'none': 0}
    for _ in range(4):
        moved, _ = augment_alike(source, source)
        for image in moved:
            (cx, cy), inner = image[:, 30, 40], image[:, 20:40, 20:60]
            dx, dy = (inner[:, :, -1] - inner[:, :, 0]).mean(1) / 39  # of (x, y), along a row
            assert abs(abs(torch.atan2(dy, dx.abs()).item())) <= np.radians(5) + 1e-4
            assert torch.hypot(dx, dy).item() == pytest.approx(1, abs=1e-3)  # pixels are square, whatever the image
            seen['flip'] += dx.item() < 0
            seen['turn'] += abs(dy.item()) > 1e-4
            shift = (cx - (39 if dx < 0 else 40), cy - 30)
            if abs(dy) < 1e-4:
                assert abs(shift[0]) <= 0.8 + 1e-3 and abs(shift[1]) <= 0.6 + 1e-3  # 1 % of 80 and 60
                seen['shift'] += max(map(abs, shift)) > 1e-3
            seen['none'] += torch.equal(image, source[0])
    assert all(20 < count < 200 for count in seen.values()), seen


def test_it_draws_from_the_global_generator_alone():
    x = torch.rand(4, 3, 20, 20)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(3)
        outcomes.append(augment_alike(x, x)[0])
    assert torch.equal(*outcomes) and not torch.equal(outcomes[0], augment_alike(x, x)[0])


def test_gradients_flow_through_it():
    torch.manual_seed(1)
    x = torch.rand(8, 3, 20, 20, requires_grad=True)
    a, b = augment_alike(x, torch.rand(8, 3, 20, 20))
    (a - b).square().mean().backward()
    assert (x.grad.abs().sum((1, 2, 3)) > 0).all()


def test_ms_ssim_stays_in_full_precision():
    """Of nearly equal images half precision would see the rounding of their variances."""
    x = torch.rand(1, 3, 100, 100) * 0.02 + 0.9
    y = x + 0.002 * torch.randn_like(x)
    expected = MSSSIMLoss()(x, y)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(MSSSIMLoss()(x, y), expected)
        assert MSSSIMLoss()(x.bfloat16(), y.bfloat16()).dtype is torch.float32
