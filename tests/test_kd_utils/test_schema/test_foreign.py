"""Models and data sets of other projects."""
from __future__ import annotations

import pytest

from kd_utils.options import OptionError, check_options
from tests.test_kd_utils.option_files import LOSSES, SRGAN, change, distillation, read, refusal


def test_a_foreign_model_gets_warnings():
    opt = {**read(SRGAN), 'model_type': 'TestForeignModel', 'tile': {'size': 64}, 'network_extra': {'type': 'EDVR'}}
    opt['train'].update(own_opt={'type': 'Anything'}, l_weight=3, optim_d={'type': 'Lion', 'lr': 1})
    opt['val']['max_minibatch'] = 8
    del opt['scale'], opt['train']['scheduler']
    warnings = check_options(opt, LOSSES)
    for key in ('`tile`', '`train.own_opt`', '`train.l_weight`', '`val.max_minibatch`', '`scale` is missing', '`Lion`',
                '`train.scheduler` is missing'):
        assert any(key in warning for warning in warnings), (key, warnings)
    assert sum('TestForeignModel may know better' in warning for warning in warnings) == 6


def test_a_foreign_models_loop_keys_are_still_checked():
    opt = {**read(SRGAN), 'model_type': 'TestForeignModel'}
    assert 'Unknown key `logger.print_frequency`' in refusal(change(opt, 'logger.print_frequency', 1))
    assert '`train.total_iter` cannot be' in refusal(change(opt, 'train.total_iter', 'x'))
    assert '`network_g.num_feats`' in refusal(change(opt, 'network_g.num_feats', 1))
    assert '`path.cache` cannot be ~' in refusal(change(opt, 'path.cache', None))


@pytest.mark.parametrize('model', ['SRGANModel', 'TestForeignModel'])
def test_metrics_against_the_teacher_need_our_model(model):
    opt = {**read(SRGAN), 'model_type': model}
    message = refusal(change(opt, 'val.metrics.psnr.reference', 'teacher'))
    assert f'`val.metrics.psnr.reference: teacher` is not read by {model}.' in message
    assert 'Set `model_type: DistillationModel`' in message


@pytest.mark.parametrize(('key', 'value'), [
    ('teacher', {'network_g': {'type': 'SRVGGNetCompact'}, 'path': {'pretrain_network_g': 'x.pth'}}),
    ('train.response_kd_opt', {'type': 'L1Loss'}), ('train.feature_kd_opt', {}), ('train.feature_kd_d_opt', {}),
    ('train.contrastive_opt', {}), ('train.own_kd_opt', {'type': 'L1Loss'}), ('train.gan_mode', 'relativistic'),
    ('train.update_order', 'd_first'), ('train.stages', [{'name': 'a', 'iters': 400000, 'losses': ['pixel']}]),
])
def test_basicsrs_own_models_refuse_what_they_do_not_read(key, value):
    losses = {**LOSSES, 'own_kd': None}
    opt = change(read(SRGAN), key, value)
    with pytest.raises(OptionError, match=f'`{key}` is not read by SRGANModel.*`model_type: DistillationModel`'):
        check_options(opt, losses)
    if key != 'train.feature_kd_opt' and key != 'train.feature_kd_d_opt':
        check_options({**opt, 'model_type': 'TestForeignModel'}, {**losses, 'contrastive': 'L1Loss'})


def test_basicsrs_own_models_add_no_argument_to_a_network():
    opt = change(read(SRGAN), 'network_g', {'type': 'GCFSR', 'narrow': 0.25})
    with pytest.raises(OptionError, match='`network_g.out_size` is missing. Write a power of two'):
        check_options(opt, LOSSES)
    assert '`network_g.out_size` is missing' in str(check_options({**opt, 'model_type': 'TestForeignModel'}, LOSSES))


def test_a_models_own_losses_count():
    opt = change(change(distillation(), 'train.own_kd_opt', {'loss_weight': 1.0}), 'model_type', 'TestModelWithLoss')
    assert 'Unknown key `train.own_kd_opt`' in refusal(change(opt, 'model_type', 'TestOurModel'))
    assert '`train.own_kd_opt` is on in no stage.' in check_options(opt, LOSSES)
    assert '`train.own_kd_opt.weight`' in refusal(change(opt, 'train.own_kd_opt.weight', 1))


def test_in_another_projects_loop_unknown_keys_are_warned_of():
    opt = {**distillation(), 'tracker': {'url': 'x'}}
    opt['logger']['images'] = 4
    opt['logger']['wandb'] = {'project': 'p', 'entity': 'us'}
    opt['dist_params']['timeout'] = 60
    opt['datasets']['val']['cache'] = True
    opt['datasets']['extra'] = {**opt['datasets']['val'], 'name': 'Extra'}
    refusal(opt)
    warnings = check_options(opt, LOSSES, strict=False)
    for key in ('tracker', 'logger.images', 'logger.wandb.entity', 'dist_params.timeout', 'datasets.val.cache',
                'datasets.extra'):
        assert sum(f'`{key}`' in warning and 'the loop may know better' in warning for warning in warnings) == 1, key
    for key, value in (('train.pixel_op', {}), ('network_g.num_feats', 4), ('logger.print_freq', -1), ('scale', '4')):
        with pytest.raises(OptionError):
            check_options(change(opt, key, value), LOSSES, strict=False)


def test_a_foreign_dataset_gets_a_warning():
    opt = change(distillation(), 'datasets.train', {
        'name': 'a', 'type': 'TestForeignDataset', 'anything': {'goes': True}, 'gt_size': [1, 2], 'dataroot_lq': 'x',
        'io_backend': {'type': 'disk'}, 'num_worker_per_gpu': 1, 'batch_size_per_gpu': 2})
    assert '`datasets.train.type`: TestForeignDataset is of another project' in check_options(opt, LOSSES)[0]
    assert '`datasets.train.batch_size_per_gpu` cannot be 0' in refusal(
        change(opt, 'datasets.train.batch_size_per_gpu', 0))


def test_our_datasets_bring_their_own_keys():
    opt = change(distillation(), 'datasets.val', {'name': 'a', 'type': 'TestOurDataset', 'dataroot_gt': 'x', 'shot': 3,
                                                  'io_backend': {'type': 'disk'}})
    assert 'Unknown key `datasets.val.shot`. Did you mean `shots`?' in refusal(opt)
