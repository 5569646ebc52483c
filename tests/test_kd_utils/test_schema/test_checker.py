"""What is valid."""
from __future__ import annotations

import copy

import pytest

from kd_utils.options import OptionError, check_options
from tests.test_kd_utils.option_files import (
    LOSSES,
    REAL_ESRGAN,
    REMOVE,
    SRGAN,
    TEST,
    TestOurModel,
    change,
    distillation,
    parse,
    read,
    refusal,
)


def test_the_designs_sample_is_accepted():
    assert check_options(distillation(), LOSSES) == ['`train.ldl_opt` is on in no stage.',
                                                     '`train.response_kd_opt` is on in no stage.']


def test_stock_srgan_is_accepted_by_both_kinds_of_model(capsys):
    opt = {**read(SRGAN), 'is_train': True}
    before = copy.deepcopy(opt)
    assert check_options(opt, LOSSES) == []
    assert check_options({**opt, 'model_type': 'TestOurModel'}, LOSSES) == []
    assert opt == before, 'checking changes nothing'
    assert capsys.readouterr().out == '', 'the registry prints at a fallback, the check must not'


@pytest.mark.parametrize('model', ['RealESRGANModel', 'TestOurModel'])
def test_real_esrgan_is_accepted(capsys, model):
    degradation = read(REAL_ESRGAN)
    opt = {**read(SRGAN), 'model_type': model, 'datasets': {'train': degradation.pop('train_set')}, **degradation}
    opt['network_g'] = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 23}
    opt['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}
    assert check_options(opt, LOSSES) == ['`val` has no dataset `datasets.val`: nothing will be validated.']
    assert capsys.readouterr().out == ''


def test_a_test_needs_no_training_section(write):
    opt, _ = parse(write(TEST), is_train=False)
    assert check_options(opt, LOSSES) == []
    assert check_options({**opt, 'model_type': 'TestOurModel'}, LOSSES) == []


def test_without_stages_every_loss_is_on():
    opt = change(distillation(), 'train.stages', REMOVE)
    assert check_options(opt, LOSSES) == []


@pytest.mark.parametrize(('key', 'value'), [
    ('network_g', {'type': 'SwinIR', 'img_size': 48, 'img_range': 1., 'depths': [6, 6], 'mlp_ratio': 2,
                   'upsampler': 'pixelshuffle', 'resi_connection': '1conv', 'embed_dim': 60, 'num_heads': [6, 6]}),
    ('network_g', {'type': 'SwinIR', 'img_size': [16, 16]}),
    ('train.optim_g', {'type': 'Adam', 'lr': 0, 'betas': [0, 0.9], 'eps': 0}),
    ('train.pixel_opt', {'type': 'TestForeignWeightsLoss', 'weights': [1, 2]}),
    ('train.net_d_iters', 399999),
    ('datasets.train.color', 'y'),
    ('network_g', {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'res_scale': 0.1, 'rgb_mean': [0.4, 0.4, 0.4]}),
    ('network_g', {'type': 'SRVGGNetCompact', 'num_conv': 16, 'act_type': 'prelu'}),
    ('network_g', {'type': 'SRVGGNetCompact_basicsr'}),
    ('network_g', {'type': 'TestForeignArch', 'width': 4, 'anything': 'goes'}),
    ('train.optim_g', {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'nesterov': True}),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [2e5, 3e5], 'restart_weights': [1, 0.5],
                         'eta_min': 1e-7}),
    ('train.scheduler', {'type': 'MultiStepRestartLR', 'milestones': [1], 'restarts': [0, 9],
                         'restart_weights': [1, 1]}),
    ('train.scheduler', REMOVE),
    ('train.perceptual_opt', None),
    ('train.queue', 8),
    ('teacher.cache', 'folder'),
    ('sampler_steps', 4),
    ('train.stages.0.grow', True),
    ('train.stages.0.phase', 2),
    ('train.stages.1.train_d', False),
    ('path.ignore_resume_networks', ['network_d']),
    ('datasets.val.type', 'TestForeignDataset'),
    ('datasets.val', {'name': 'a', 'type': 'TestOurDataset', 'dataroot_gt': 'x', 'io_backend': {'type': 'disk'}}),
    ('datasets.val.io_backend', {'type': 'lmdb'}),
    ('datasets.train.prefetch_mode', 'cpu'),
    ('datasets.train.num_worker_per_gpu', 0),
    ('path.pretrain_network_d', 'd.pth'),
    ('val.metrics.psnr', {'type': 'test_foreign_metric', 'window': 3, 'anything': 1}),
    ('val.metrics', None),
])
def test_valid_variants(key, value):
    opt = distillation()
    if key == 'train.perceptual_opt':
        opt['train']['stages'] = REMOVE
        opt = change(opt, 'train.stages', REMOVE)
    check_options(change(opt, key, value), LOSSES)


def test_the_teachers_discriminator_can_be_the_critic():
    opt = change(distillation(), 'train.stages.2.discriminator', 'teacher')
    check_options(opt, LOSSES)
    for key in ('teacher.network_d', 'teacher.path.pretrain_network_d'):
        opt = change(opt, key, REMOVE)
    assert '`train.feature_kd_d_opt` needs `teacher.network_d`, which is missing.' in refusal(opt)
    message = refusal(change(opt, 'train.feature_kd_d_opt', REMOVE))
    assert '`train.stages[2].discriminator: teacher` needs `teacher.network_d`' in message


def test_real_esrgan_data_needs_a_model_that_degrades(monkeypatch):
    monkeypatch.setattr(TestOurModel, 'degrades', False)
    with pytest.raises(OptionError, match='RealESRGANDataset gives no LR images, and TestOurModel makes none'):
        test_real_esrgan_is_accepted(None, 'TestOurModel')
