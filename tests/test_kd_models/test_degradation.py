"""Real-ESRGAN's training: its LR images, pool and sharpened targets, and promise 8 for RealESRGANModel."""
import random
import re

import numpy as np
import pytest
import torch
from basicsr.archs import vgg_arch
from basicsr.models import build_model, realesrgan_model
from basicsr.utils import USMSharp
from basicsr.utils.img_process_util import filter2D
from torchvision.models import vgg19

from kd_data.draws import seed_everything
from kd_utils.options import OptionError, check_options
from tests.support import EDSR, assert_equal_weights, batches, gan_options, model_options, weights

DEGRADATION = {
    'high_order_degradation': True, 'queue_size': 4, 'gt_size': 32,
    'resize_prob': [0.2, 0.7, 0.1], 'resize_range': [0.15, 1.5], 'gaussian_noise_prob': 0.5, 'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3], 'gray_noise_prob': 0.4, 'jpeg_range': [30, 95], 'second_blur_prob': 0.8,
    'resize_prob2': [0.3, 0.4, 0.3], 'resize_range2': [0.3, 1.2], 'gaussian_noise_prob2': 0.5,
    'noise_range2': [1, 25], 'poisson_scale_range2': [0.05, 2.5], 'gray_noise_prob2': 0.4, 'jpeg_range2': [30, 95],
}
FAST = {'degradation': 'fast', 'resize_range': [0.3, 1.5]}  # 0.15 leaves 7 pixels of 48, which no kernel fits
USM = {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False}
LDL = {'ldl_opt': {'type': 'L1Loss', 'loss_weight': 0.5}, 'ema_decay': 0.9}
PERCEPTUAL = {'perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 0.1, 'conv2_2': 1.0},
                                 'perceptual_weight': 1.0, 'style_weight': 0.5}}


@pytest.fixture
def stock_without_gpu(monkeypatch):
    """BasicSR's RealESRGANModel calls `.cuda()`, and its blur needs contiguous images on a CPU."""
    monkeypatch.setattr(torch.nn.Module, 'cuda', lambda self, *_: self)
    monkeypatch.setattr(torch.Tensor, 'cuda', lambda self, *_: self)
    monkeypatch.setattr(realesrgan_model, 'filter2D', lambda img, kernel: filter2D(img.contiguous(), kernel))
    monkeypatch.setattr(vgg_arch.vgg, 'vgg19', lambda pretrained=False: vgg19(weights=None))


def synthetic(count, size=48, batch=2):
    """Batches as RealESRGANDataset gives them, of 8-bit images."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        kernels = torch.rand(3, batch, 21, 21, generator=generator)
        kernels /= kernels.sum((2, 3), keepdim=True)
        gt = torch.randint(0, 256, (batch, 3, size, size), generator=generator).float() / 255
        yield {'gt': gt, 'kernel1': kernels[0], 'kernel2': kernels[1], 'sinc_kernel': kernels[2]}


def degrading(folder, train_opt=None, **top):
    options = gan_options(folder, train_opt, **{**DEGRADATION, **top})
    options['datasets']['train'] = {
        'name': 'R', 'type': 'RealESRGANDataset', 'dataroot_gt': 'gt', 'meta_info': 'list.txt',
        'io_backend': {'type': 'disk'}, 'use_hflip': True, 'use_rot': False, 'num_worker_per_gpu': 0,
        'batch_size_per_gpu': 2, 'blur_kernel_size': 21, 'kernel_list': ['iso'], 'kernel_prob': [1.0],
        'sinc_prob': 0.1, 'blur_sigma': [0.2, 3], 'betag_range': [0.5, 4], 'betap_range': [1, 2],
        'blur_kernel_size2': 21, 'kernel_list2': ['iso'], 'kernel_prob2': [1.0], 'sinc_prob2': 0.1,
        'blur_sigma2': [0.2, 1.5], 'betag_range2': [0.5, 4], 'betap_range2': [1, 2], 'final_sinc_prob': 0.8}
    return options


def run(options, data, first=1):
    """Trains as the loop does, seeding every iteration."""
    seed_everything(3)
    model = build_model(options)
    return model, train_on(model, data, first)


def train_on(model, data, first=1):
    logs = []
    for iteration, item in enumerate(data, first):
        seed_everything(0, iteration)
        model.feed_data({name: value.clone() for name, value in item.items()})
        model.optimize_parameters(iteration)
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(1)))
        logs.append((dict(model.get_current_log()), model.lq.clone(), model.gt.clone(), drawn))
    return logs


@pytest.mark.parametrize('train_opt, top', [
    ({}, {**USM}), ({**LDL, **PERCEPTUAL}, {**USM}),
    ({'ema_decay': 0.9}, {'l1_gt_usm': False, 'percep_gt_usm': False, 'gan_gt_usm': True}),
], ids=['plain', 'ldl-perceptual', 'usm-gan'])
def test_equals_the_stock_model(tmp_path, stock_without_gpu, train_opt, top):
    """Networks, losses, degraded images, the pool and the random numbers, bit for bit, beyond the pool's filling."""
    data = list(synthetic(5))
    ours, our_logs = run(degrading(tmp_path, train_opt, **top, degradation='exact'), data)
    stock, stock_logs = run(degrading(tmp_path, train_opt, **top, model_type='RealESRGANModel'), data)
    for (log, lq, gt, drawn), (stock_log, stock_lq, stock_gt, stock_drawn) in zip(our_logs, stock_logs, strict=True):
        assert log == stock_log and drawn == stock_drawn
        assert torch.equal(lq, stock_lq) and torch.equal(gt, stock_gt)
    assert_equal_weights(weights(ours.net_g), weights(stock.net_g))
    assert_equal_weights(weights(ours.net_d), weights(stock.net_d))
    assert torch.equal(ours.degradation.queue_lr, stock.queue_lr)
    assert ours.degradation.queue_ptr == stock.queue_ptr == 4
    if 'ema_decay' in train_opt:
        assert_equal_weights(weights(ours.net_g_ema), weights(stock.net_g_ema))


def test_exact_is_the_default(tmp_path):
    data = list(synthetic(3))
    _, default = run(degrading(tmp_path), data)
    for how, same in (({'degradation': 'exact'}, True), (FAST, False)):
        _, logs = run(degrading(tmp_path, **how), data)
        assert [torch.equal(log[1], other[1]) for log, other in zip(logs, default, strict=True)] == [same] * 3


def test_fast_targets_are_sharpened(tmp_path):
    """Only where a loss compares with them, and as BasicSR sharpens them."""
    model, _ = run(degrading(tmp_path, **USM, **FAST), list(synthetic(1)))
    target = model.targets()['pixel']
    assert torch.allclose(target, USMSharp()(model.gt), atol=1e-4) and not torch.allclose(target, model.gt, atol=1e-2)
    plain, _ = run(degrading(tmp_path, **FAST), list(synthetic(1)))
    assert plain.gt_usm is None and plain.targets() == {}


def test_self_distillation_at_weight_0_equals_the_stock_model(tmp_path, stock_without_gpu):
    data = list(synthetic(4))
    weightless = {'self_distill_opt': {'type': 'MSELoss', 'loss_weight': 0, 'augment': True}, 'ema_decay': 0.9}
    ours, our_logs = run(degrading(tmp_path, weightless, **USM, model_type='SDGANModel', degradation='exact'), data)
    stock, stock_logs = run(degrading(tmp_path, {'ema_decay': 0.9}, **USM, model_type='RealESRGANModel'), data)
    for (log, *images, drawn), (stock_log, *stock_images, stock_drawn) in zip(our_logs, stock_logs, strict=True):
        assert log.pop('self_distill_distance') >= 0
        assert log == stock_log and drawn == stock_drawn
        assert all(map(torch.equal, images, stock_images))
    for name in ('net_g', 'net_d', 'net_g_ema'):
        assert_equal_weights(weights(getattr(ours, name)), weights(getattr(stock, name)))


def test_paired_data_with_sharpened_targets_equals_the_stock_model(tmp_path, stock_without_gpu):
    data = batches(3)
    ours, our_logs = run(gan_options(tmp_path, high_order_degradation=False, **USM), data)
    stock, stock_logs = run(gan_options(tmp_path, high_order_degradation=False, **USM, model_type='RealESRGANModel'),
                            data)
    assert [log[0] for log in our_logs] == [log[0] for log in stock_logs]
    assert_equal_weights(weights(ours.net_g), weights(stock.net_g))


@pytest.mark.parametrize('how', [{'degradation': 'exact'}, FAST], ids=['exact', 'fast'])
def test_realesrnet_sharpens_before_it_degrades(tmp_path, how):
    """Its key `gt_usm`: the ground truth itself is the sharpened one."""
    item = next(synthetic(1))
    sharp, _ = run(degrading(tmp_path, gt_usm=True, **how), [item])
    plain, _ = run(degrading(tmp_path, gt_usm=False, **how), [item])
    assert not torch.equal(sharp.gt, plain.gt)
    assert torch.equal(torch.unique(plain.gt * 255).round(), torch.unique(plain.gt * 255))


@pytest.mark.parametrize('how', [{'degradation': 'exact'}, FAST], ids=['exact', 'fast'])
@pytest.mark.parametrize('stop', [1, 2, 3])
def test_the_pool_is_resumed(tmp_path, stop, how):
    """Before it is full, when it has just become full, and after."""
    data = list(synthetic(5))
    whole, _ = run(degrading(tmp_path, {'ema_decay': 0.9}, **how), data)
    part, _ = run(degrading(tmp_path, {'ema_decay': 0.9}, **how), data[:stop])
    part.save(0, stop)
    pool = torch.load(tmp_path / 'training_states' / f'{stop}_pool_0.pth')
    assert pool['queue_gt'].dtype is torch.uint8, 'an 8-bit image takes 8 bits'
    options = degrading(tmp_path, {'ema_decay': 0.9}, **how)
    options['path'].update(pretrain_network_g=str(tmp_path / f'models/net_g_{stop}.pth'), strict_load_g=True,
                           pretrain_network_d=str(tmp_path / f'models/net_d_{stop}.pth'),
                           resume_state=str(tmp_path / f'training_states/{stop}.state'))
    resumed = build_model(options)
    resumed.resume_training(torch.load(options['path']['resume_state']))
    train_on(resumed, data[stop:], stop + 1)
    assert_equal_weights(weights(resumed.net_g), weights(whole.net_g))
    assert_equal_weights(weights(resumed.net_d), weights(whole.net_d))
    assert torch.equal(resumed.degradation.queue_gt, whole.degradation.queue_gt)


def test_a_missing_pool_is_said(tmp_path, warnings_logged):
    model, _ = run(degrading(tmp_path), list(synthetic(1)))
    model.save(0, 1)
    (tmp_path / 'training_states/1_pool_0.pth').unlink()
    model.opt['path']['resume_state'] = str(tmp_path / 'training_states/1.state')
    model.resume_training(torch.load(tmp_path / 'training_states/1.state'))
    assert 'The training pair pool starts empty' in warnings_logged[-1]


def test_a_pool_filled_by_batches_of_another_size_is_said(tmp_path, warnings_logged):
    model, _ = run(degrading(tmp_path), list(synthetic(1)))
    model.save(0, 1)
    model.opt['path']['resume_state'] = str(tmp_path / 'training_states/1.state')
    model.opt['datasets']['train']['batch_size_per_gpu'] = 4
    model.resume_training(torch.load(tmp_path / 'training_states/1.state'))
    assert 'starts empty' in warnings_logged[-1]
    assert f'up to 2 of {model.degradation.queue_size}, which batches of 4 do not complete' in warnings_logged[-1]


def test_sharpened_images_keep_their_precision_in_the_pool(tmp_path):
    model, _ = run(degrading(tmp_path, gt_usm=True), list(synthetic(1)))
    state = model.degradation.state()
    assert state['queue_gt'].dtype is torch.float32 and torch.equal(state['queue_gt'], model.degradation.queue_gt)
    assert state['queue_lr'].dtype is torch.uint8


@pytest.mark.parametrize('change, message', [
    ({'queue_size': 5}, '`queue_size` is 5, which batches of 2 do not fill exactly. Write a multiple of '
                        '`datasets.train.batch_size_per_gpu`, such as 6.'),
    ({'gt_size': 512}, '`gt_size` is 512, but RealESRGANDataset gives crops of 400.'),
    ({'gt_size': 33}, '`gt_size` is 33, which the scale 2 does not divide. Write 32.'),
    ({'high_order_degradation': False}, '`high_order_degradation: false` makes none. Write true'),
    ({'gt_usm': True, 'l1_gt_usm': True}, "`gt_usm` is RealESRNet's and `l1_gt_usm` Real-ESRGAN's"),
    ({'resize_prob': [0, 0, 0]}, 'Write a list of three odds, not all 0'),
    ({'jpeg_range2': [0, 95]}, '`jpeg_range2` cannot be [0, 95]. Write a list [lowest, highest] within 1 to 100'),
    ({'datasets__kernel_prob': [0] * 6}, 'Write a list of numbers, 0 or above and not all 0'),
    ({'datasets__kernel_list2': ['isoo']}, 'Write a list of: iso, aniso, '),
    ({'network_g': {**EDSR, 'num_in_ch': 1}}, 'RealESRGANDataset gives images of three channels'),
    ({'degradation': 'quick'}, "`degradation` cannot be 'quick'. Write one of `exact`, `fast`."),
    ({'model_type': 'RealESRGANModel', 'num_gpu': 1, 'degradation': 'fast'}, '`degradation` is not read by'),
    ({'model_type': 'RealESRGANModel'}, 'RealESRGANModel of BasicSR needs a GPU. Set `model_type: DistillationModel`'),
])
def test_refusals(tmp_path, change, message):
    of_dataset = {key.removeprefix('datasets__'): change.pop(key) for key in list(change) if '__' in key}
    options = degrading(tmp_path, **change)
    options['datasets']['train'].update(of_dataset)
    with pytest.raises(OptionError, match=re.escape(message)):
        check_options(options, {})


def test_it_is_for_training_only(tmp_path):
    options = degrading(tmp_path, val={'val_freq': 1})
    options['datasets']['val'] = {**options['datasets']['train'], 'name': 'Val', 'phase': 'val'}
    with pytest.raises(OptionError, match='`datasets.val.type`: RealESRGANDataset is for training'):
        check_options(options, {})


def test_degrading_keys_with_paired_data_are_refused(tmp_path):
    options = model_options(tmp_path, resize_prob=[0.2, 0.7, 0.1])
    with pytest.raises(OptionError, match='Write `high_order_degradation: false`, or take these keys out'):
        check_options(options, {})
    check_options({**options, 'high_order_degradation': False}, {})
