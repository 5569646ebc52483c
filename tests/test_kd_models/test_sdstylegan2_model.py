"""Unconditional StyleGAN2 with self-distillation: BasicSR's iteration, shared noise, resume, the loop."""
import json
import re

import cv2
import numpy as np
import pytest
import torch
from basicsr.models import build_model

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_cli.prepare import main as prepare
from kd_models.distillation_model import DistillationModel
from kd_models.sdstylegan2_model import SDStyleGAN2Model
from kd_models.step import Step
from kd_utils.options import OptionError, apply_aliases, check_options
from kd_utils.rng import RandomState
from tests.support import assert_equal_weights, model_options, train_seeded, weights, write_yaml

SIZE = 8
NETWORK_G = {'type': 'StyleGAN2Generator', 'out_size': SIZE, 'num_style_feat': 16, 'num_mlp': 2, 'narrow': 1 / 64}
NETWORK_D = {'type': 'StyleGAN2Discriminator', 'out_size': SIZE, 'narrow': 1 / 64}
OPTIM = {'type': 'Adam', 'lr': 2e-3}
TRAIN = {'pixel_opt': None, 'optim_g': OPTIM, 'optim_d': dict(OPTIM), 'net_g_reg_every': 2, 'net_d_reg_every': 2,
         'r1_reg_weight': 10, 'path_reg_weight': 2, 'path_batch_shrink': 2, 'mixing_prob': 0.5}
MSE = {'type': 'MSELoss', 'loss_weight': 1.0}
FFHQ = {'name': 'tiny', 'type': 'FFHQDataset', 'dataroot_gt': 'real.lmdb', 'io_backend': {'type': 'lmdb'},
        'use_hflip': True, 'mean': [0.5] * 3, 'std': [0.5] * 3, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 4}
SAMPLES = {'name': 'samples', 'type': 'SampleDataset', 'n': 3}


def options(folder, train_opt=None, **top):
    networks = {'network_g': dict(NETWORK_G), 'network_d': dict(NETWORK_D)}
    val = {'val_freq': 4, 'save_img': False, 'num_val_samples': 4, **top.pop('val', {})}
    return model_options(folder, {'self_distill_opt': dict(MSE), **TRAIN, **(train_opt or {})},
                         **{'model_type': 'SDStyleGAN2Model', 'val': val, 'datasets': {'train': FFHQ}, **networks,
                            **top})


def images(count, batch=4):
    generator = torch.Generator().manual_seed(5)
    return [{'gt': torch.rand(batch, 3, SIZE, SIZE, generator=generator) * 2 - 1} for _ in range(count)]


def with_noise(model):
    """Noise that shows: its strength begins at 0."""
    for net in (model.net_g, model.net_g_ema):
        for name, p in net.named_parameters():
            if name.endswith('conv1.weight') or '.weight' in name and p.numel() == 1:
                p.data.fill_(0.5)
    return model


@pytest.mark.parametrize('distill', [None, {'type': 'MSELoss', 'loss_weight': 0, 'augment': True}], ids=['off', 'zero'])
def test_equals_the_stock_model(tmp_path, distill):
    """Networks, EMA, losses and path length, bit for bit, through R1 and path length regularisation."""
    ours = with_noise(build_model(options(tmp_path, {'self_distill_opt': distill})))
    train_opt = {key: value for key, value in options(tmp_path)['train'].items() if key != 'self_distill_opt'}
    gan = {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 1.0}
    stock = build_model({**options(tmp_path), 'model_type': 'StyleGAN2Model', 'train': {**train_opt, 'gan_opt': gan}})
    for name in ('net_g', 'net_d', 'net_g_ema'):
        getattr(stock, name).load_state_dict(getattr(ours, name).state_dict())
    our_logs, stock_logs = train_seeded(ours, images(5)), train_seeded(stock, images(5))
    for name in ('net_g', 'net_d', 'net_g_ema'):
        assert_equal_weights(weights(getattr(ours, name)), weights(getattr(stock, name)))
    assert torch.equal(ours.mean_path_length, stock.mean_path_length)
    for ours_, stock_ in zip(our_logs, stock_logs, strict=True):
        assert ours_.pop('l_d_r1', 0) * 10 == pytest.approx(stock_.pop('l_d_r1', 0))  # ours is before its weight
        assert ('self_distill_distance' in ours_) == (distill is not None)
        ours_.pop('self_distill_distance', None)
        assert ours_ == stock_


def test_filters_are_where_the_networks_are(tmp_path):
    """BasicSR's are plain tensors, which each call would send to a GPU; no checkpoint has them."""
    model = build_model(options(tmp_path))
    for net in (model.net_g, model.net_d, model.net_g_ema):
        filters = [name for name, _ in net.named_buffers() if name.endswith('.kernel')]
        assert filters and not set(filters) & set(net.state_dict())


def test_the_ema_gets_the_same_latents_mixing_and_noise(tmp_path):
    """While the networks are equal the distance is 0, although noise and mixing are drawn inside them."""
    model = with_noise(build_model(options(tmp_path, {'mixing_prob': 1.0})))
    first, second = train_seeded(model, images(2))
    assert first['l_g_self_distill'] == 0 < second['l_g_self_distill']
    with torch.no_grad():
        a, b = (model.net_g([torch.ones(1, 16)])[0] for _ in range(2))
    assert not torch.equal(a, b)  # noise is on


def test_the_value_is_of_images_between_0_and_1(tmp_path):
    model = build_model(options(tmp_path))
    train_seeded(model, images(1))
    fake = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    styles = [torch.randn(2, 16)]
    before = RandomState.now()
    with torch.no_grad(), before.replay():
        ema = model.net_g_ema(styles)[0]
    value = model._self_distill(styles, fake, before, Step(1, model.stage, styles[0], {}))
    assert float(value) == pytest.approx(float(((fake - ema) / 2).square().mean()), rel=1e-5)


@pytest.mark.parametrize('stop', [1, 2, 3])
def test_resume(tmp_path, stop):
    whole = build_model(options(tmp_path))
    torch.manual_seed(9)
    start = weights(whole.net_g)
    data = images(5)
    part = build_model(options(tmp_path))
    for model in (whole, part):
        model.net_g.load_state_dict(start)
        model.net_g_ema.load_state_dict(start)
    part.net_d.load_state_dict(whole.net_d.state_dict())
    train_seeded(whole, data)
    train_seeded(part, data[:stop])
    part.save(0, stop)
    again = options(tmp_path)
    again['path'].update(pretrain_network_g=str(tmp_path / f'models/net_g_{stop}.pth'), strict_load_g=True,
                         pretrain_network_d=str(tmp_path / f'models/net_d_{stop}.pth'))
    resumed = build_model(again)
    resumed.resume_training(torch.load(tmp_path / f'training_states/{stop}.state', weights_only=True))
    train_seeded(resumed, data[stop:], stop + 1)
    for name in ('net_g', 'net_d', 'net_g_ema'):
        assert_equal_weights(weights(getattr(resumed, name)), weights(getattr(whole, name)))
    assert torch.equal(torch.as_tensor(resumed.mean_path_length), torch.as_tensor(whole.mean_path_length))


@pytest.mark.parametrize('train_opt, top, message', [
    ({'pixel_opt': {'type': 'L1Loss'}}, {}, '`train.pixel_opt` is not read by SDStyleGAN2Model'),
    ({'gan_mode': 'relativistic'}, {}, '`train.gan_mode` is not read'),
    ({'update_order': 'g_first'}, {}, 'Write `d_first`'),
    ({}, {'val': {'self_ensemble': True}}, '`val.self_ensemble`'),
    ({'mixing_prob': 2}, {}, '`train.mixing_prob` cannot be 2'),
    ({'ema_decay': 0}, {}, '`train.self_distill_opt` needs `train.ema_decay`'),
    ({'net_d_iters': 2}, {}, '`train.net_d_iters` is not read'),
    ({}, {'l1_gt_usm': True}, '`l1_gt_usm` is not read'),
    ({}, {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}}, 'EDSR is not what SDStyleGAN2Model trains'),
    ({}, {'network_g': {**NETWORK_G, 'out_size': 12}}, '`network_g.out_size` cannot be 12. Write a power of two'),
    ({}, {'network_d': {**NETWORK_D, 'out_size': 12}}, '`network_d.out_size` cannot be 12. Write a power of two'),
    ({}, {'datasets': {'train': {**FFHQ, 'mean': [0., 0., 0.]}}}, 'learns from images in [-1, 1]. Write `mean: [0.5'),
    ({}, {'datasets': {'train': {**SAMPLES, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}}},
     '`datasets.train.type`: SampleDataset gives latents, and SDStyleGAN2Model learns from images. Use FFHQDataset'),
    ({}, {'datasets': {'train': FFHQ, 'val': SAMPLES}}, '`val.num_val_samples` is the size of a validation set that'),
    ({}, {'val': {'num_val_samples': 0}}, '`val.num_val_samples` cannot be 0'),
])
def test_refusals(tmp_path, train_opt, top, message):
    opt = options(tmp_path, train_opt, **top)
    with pytest.raises(OptionError, match=re.escape(message)):
        SDStyleGAN2Model.complete(opt)
        check_options(opt, DistillationModel.losses)


@pytest.mark.parametrize('val_set, message', [
    ({**SAMPLES, 'num_style_feat': 8}, '`datasets.val.num_style_feat` is 8, and `network_g` takes latents of 16'),
    ({'name': 'photos', 'type': 'SingleImageDataset', 'dataroot_lq': 'lr', 'io_backend': {'type': 'disk'}},
     '`datasets.val.type`: SingleImageDataset gives images, and SDStyleGAN2Model makes its own'),
])
def test_other_validation_sets_are_refused(tmp_path, val_set, message):
    opt = options(tmp_path, datasets={'train': FFHQ, 'val': val_set})
    del opt['val']['num_val_samples']
    with pytest.raises(OptionError, match=re.escape(message)):
        SDStyleGAN2Model.complete(opt)
        check_options(opt, DistillationModel.losses)


def test_the_keys_of_basicsrs_file_are_taken(tmp_path):
    """Its `model_type` alone has to be changed."""
    opt = options(tmp_path, {'net_d_iters': 1, 'net_d_init_iters': 0})
    opt['path'].update(pretrain_model_g=None, strict_load=True)
    apply_aliases(opt)
    SDStyleGAN2Model.complete(opt)
    assert check_options(opt, DistillationModel.losses) == []
    assert opt['datasets']['val'] == {**SAMPLES, 'n': 4, 'phase': 'val', 'scale': 1, 'num_style_feat': 16}


def test_an_optimizer_without_betas(tmp_path):
    opt = options(tmp_path, {'optim_g': {'type': 'SGD', 'lr': 1e-3}})
    SDStyleGAN2Model.complete(opt)
    assert check_options(opt, DistillationModel.losses) == []


def test_without_an_ema(tmp_path):
    model = build_model(options(tmp_path, {'ema_decay': 0, 'self_distill_opt': None}))
    assert train_seeded(model, images(1))[0]['l_g'] > 0


def test_images_of_another_size_are_refused(tmp_path):
    model = build_model(options(tmp_path))
    with pytest.raises(OptionError, match='are 16x16, and `network_g.out_size` is 8'):
        model.feed_data({'gt': torch.zeros(2, 3, 16, 16)})


@pytest.fixture
def lmdb(tmp_path):
    """Eight images in a folder and in an LMDB."""
    folder = tmp_path / 'real'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    prepare(['lmdb', str(folder), str(tmp_path / 'real.lmdb')])
    return tmp_path


def test_through_the_loop(lmdb, monkeypatch):
    """train.py and test.py: samples, a grid, and a set-level metric, the same twice."""
    metrics = {'rfid': {'type': 'RandomFID', 'real': str(lmdb / 'real'), 'better': 'lower'}}
    yml = {'name': 'sd', 'model_type': 'SDStyleGAN2Model', 'num_gpu': 0, 'manual_seed': 0,
           'datasets': {'train': {**FFHQ, 'dataroot_gt': str(lmdb / 'real.lmdb'), 'dataset_enlarge_ratio': 4,
                                  'prefetch_mode': None}},
           'network_g': NETWORK_G, 'network_d': NETWORK_D,
           'train': {**TRAIN, 'self_distill_opt': MSE, 'total_iter': 4, 'warmup_iter': -1,
                     'scheduler': {'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5}},
           'val': {'val_freq': 4, 'save_img': False, 'num_val_samples': 5, 'metrics': metrics},
           'logger': {'print_freq': 1, 'save_checkpoint_freq': 4, 'use_tb_logger': False}}
    monkeypatch.chdir(lmdb)
    train_pipeline(str(lmdb), ['-opt', str(write_yaml(lmdb / 'sd.yml', yml))])
    root = lmdb / 'experiments/sd'
    grid = cv2.imread(str(root / 'visualization/samples_4.png'))
    assert grid.shape[0] >= 2 * SIZE
    line = json.loads((root / 'validation.jsonl').read_text().splitlines()[-1])
    assert line['metrics']['rfid'] > 0
    test = {key: yml[key] for key in ('name', 'model_type', 'num_gpu', 'manual_seed', 'network_g')}
    test['datasets'] = {'test_1': {'name': 'samples', 'type': 'SampleDataset', 'n': 5, 'seed': 0}}
    test['path'] = {'pretrain_network_g': str(root / 'models/net_g_latest.pth'), 'param_key_g': 'params_ema'}
    test['val'] = {'save_img': True, 'metrics': metrics}
    run_test(str(lmdb), ['-opt', str(write_yaml(lmdb / 'test.yml', test))])
    result = json.loads((lmdb / 'results/sd/metrics_samples.json').read_text())
    assert result['mean']['rfid'] == pytest.approx(line['metrics']['rfid'], rel=1e-6)
    assert len(list((lmdb / 'results/sd/visualization/samples').glob('*.png'))) == 5
