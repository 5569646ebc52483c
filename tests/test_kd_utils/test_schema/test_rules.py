"""What is refused, and with which words."""
from __future__ import annotations

from pathlib import Path

import pytest

from kd_utils.options import OptionError, check_files, check_options, teacher_caches
from kd_utils.schema import training
from kd_utils.schema.arguments import arguments_of
from tests.test_kd_utils.option_files import (
    DISTILLATION,
    LOSSES,
    PERCEPTUAL,
    REAL_ESRGAN,
    REMOVE,
    SRGAN,
    TEST,
    adversarial_files,
    change,
    distillation,
    keys_of,
    parse,
    read,
    refusal,
)


@pytest.mark.parametrize(('key', 'value', 'fragments'), [
    # unknown keys, in every section
    ('scael', 4, ['Unknown key `scael`. Did you mean `scale`?']),
    ('zzzzzz', 4, ['Unknown key `zzzzzz`. Choose from: ', ', ...']),
    ('network_x', {'type': 'EDSR'}, ['Unknown key `network_x`.']),
    ('datasets.train.use_flip', True, ['`datasets.train.use_flip`', 'Did you mean `use_hflip`?']),
    ('datasets.val.io_backend.tpye', 'disk', ['`datasets.val.io_backend.tpye`', '`type`']),
    ('path.resume', 'x', ['Unknown key `path.resume`. Did you mean `resume_state`?']),
    ('teacher.optim', {}, ['Unknown key `teacher.optim`.', 'cache, network_d, network_g, path']),
    ('teacher.path.strict_load', True, ['`teacher.path.strict_load`', '`strict_load_']),
    ('train.stage', [], ['Unknown key `train.stage`. Did you mean `stages`?']),
    ('train.pixel_op', {}, ['Did you mean `pixel_opt`?']),
    ('train.stages.1.loses', [], ['Unknown key `train.stages[1].loses`. Did you mean `losses`?']),
    ('val.sufix', 'a', ['Unknown key `val.sufix`. Did you mean `suffix`?']),
    ('val.metrics.psnr.test_y_chanel', True, ['`val.metrics.psnr.test_y_chanel`', '`test_y_channel`']),
    ('logger.print_frequency', 1, ['`logger.print_frequency`', '`print_freq`']),
    ('logger.wandb.projekt', 'a', ['`logger.wandb.projekt`', '`project`']),
    ('dist_params.prot', 1, ['`dist_params.prot`', '`port`']),
    ('network_g.num_feats', 4, ['Unknown key `network_g.num_feats`. Did you mean `num_feat`?']),
    ('teacher.network_g.num_blok', 4, ['`teacher.network_g.num_blok`', '`num_block`']),
    ('network_g', {'type': 'SwinIR', 'embed_dimm': 60}, ['`network_g.embed_dimm`', '`embed_dim`']),
    ('train.pixel_opt.loss_wieght', 1, ['`train.pixel_opt.loss_wieght`', '`loss_weight`']),
    ('train.feature_kd_opt.channels', {}, ['Unknown key `train.feature_kd_opt.channels`.']),
    ('train.optim_g.beta', [0.9, 0.99], ['`train.optim_g.beta`', '`betas`']),
    ('train.scheduler.gama', 0.5, ['`train.scheduler.gama`', '`gamma`']),
    # names
    ('model_type', 'TestOurModle', ['`model_type`: no model is called `TestOurModle`. Did you mean `TestOurModel`?']),
    ('model_type', REMOVE, ['`model_type` is missing.']),
    ('network_g.type', 'RDBNet', ['`network_g.type`: no network is called `RDBNet`. Did you mean `RRDBNet`?']),
    ('network_d.type', 'UNetDiscriminator', ['Did you mean `UNetDiscriminatorSN`?']),
    ('network_g.type', REMOVE, ['`network_g.type` is missing.']),
    ('network_g.type', 7, ['`network_g.type` cannot be 7.']),
    ('teacher.network_d.type', 'zzzz', ['`teacher.network_d.type`', ', ... One of', 'must be imported']),
    ('datasets.train.type', 'PairedImagesDataset', ['no dataset is called', '`PairedImageDataset`']),
    ('val.metrics.psnr.type', 'psnr', ['`val.metrics.psnr.type`: no metric is called `psnr`.', 'calculate_psnr']),
    ('train.pixel_opt.type', 'L2Loss', ['`train.pixel_opt.type`: no loss is called `L2Loss`. Did you mean `L1Loss`?']),
    ('train.contrastive_opt', {'loss_weight': 1.0}, ['`train.contrastive_opt.type` is missing.']),
    ('train.optim_g.type', 'Adamm', ['no optimizer is called `Adamm`. Did you mean `Adam`?']),
    ('train.scheduler.type', 'MultiStep', ['no scheduler is called `MultiStep`.', 'MultiStep']),
    # missing keys
    ('scale', REMOVE, ['`scale` is missing. Write a whole number above 0.']),
    ('network_g', REMOVE, ['`network_g` is missing.']),
    ('train', REMOVE, ['`train` is missing.']),
    ('logger', REMOVE, ['`logger` is missing.']),
    ('logger.print_freq', REMOVE, ['`logger.print_freq` is missing. Write a whole number above 0']),
    ('datasets.train', REMOVE, ['`datasets.train` is missing.']),
    ('datasets.train.dataroot_gt', REMOVE, ['`datasets.train.dataroot_gt` is missing. Write a path.']),
    ('datasets.train.use_rot', REMOVE, ['`datasets.train.use_rot` is missing. Write true or false.']),
    ('datasets.train.batch_size_per_gpu', REMOVE, ['`datasets.train.batch_size_per_gpu` is missing.']),
    ('datasets.val.io_backend', REMOVE, ['`datasets.val.io_backend` is missing.']),
    ('datasets.val.io_backend.type', REMOVE, ['`datasets.val.io_backend.type` is missing.', '`disk`']),
    ('network_g.num_in_ch', REMOVE, ['`network_g.num_in_ch` is missing.']),
    ('teacher.network_g', REMOVE, ['`teacher.network_g` is missing.']),
    ('teacher.path', REMOVE, ['`teacher.path` is missing.']),
    ('teacher.path.pretrain_network_g', REMOVE, ['`teacher.path.pretrain_network_g` is missing', 'teaches nothing']),
    ('teacher.path.pretrain_network_d', None, ['`teacher.path.pretrain_network_d` is missing']),
    ('train.optim_g', REMOVE, ['`train.optim_g` is missing.']),
    ('train.optim_g.lr', REMOVE, ['`train.optim_g.lr` is missing.']),
    ('train.scheduler.milestones', REMOVE, ['`train.scheduler.milestones` is missing.']),
    ('train.total_iter', REMOVE, ['`train.total_iter` is missing.']),
    ('train.gan_opt.gan_type', REMOVE, ['`train.gan_opt.gan_type` is missing.', '`vanilla`']),
    ('train.stages.0.losses', REMOVE, ['`train.stages[0].losses` is missing.']),
    ('val', REMOVE, ['`datasets.val` would never be used', '`val`']),
    ('val.val_freq', REMOVE, ['`val.val_freq` is missing.']),
    ('val.metrics.psnr.crop_border', REMOVE, ['`val.metrics.psnr.crop_border` is missing.']),
    ('network_g', {'type': 'GCFSR'}, ['`network_g.out_size` is missing. Write a power of two from 32 to 1024.']),
    # values of another type, or out of range
    ('network_g', {'type': 'GCFSR_blind', 'out_size': 64, 'cond_norm': 0},
     ['`network_g.cond_norm` cannot be 0. Write a number, 1 or above, such as 32, or ~.']),
    ('network_d', {'type': 'GCFSRDiscriminator', 'out_size': 64, 'resample_kernel': []},
     ['`network_d.resample_kernel` cannot be []. Write a list of numbers, 0 or above and not all 0.']),
    ('network_g', {'type': 'StyleGAN2Generator', 'out_size': 64, 'resample_kernel': [1, -1]},
     ['`network_g.resample_kernel` cannot be [1, -1].']),
    ('network_d', {'type': 'StyleGAN2Discriminator', 'out_size': 48},
     ['`network_d.out_size` cannot be 48. Write a power of two from 4 to 1024.']),
    ('scale', '4', ["`scale` cannot be '4'. Write a whole number above 0."]),
    ('scale', True, ['`scale` cannot be True.']),
    ('scale', 0, ['`scale` cannot be 0.']),
    ('scale', 2.5, ['`scale` cannot be 2.5.']),
    ('manual_seed', -1, ['`manual_seed` cannot be -1.']),
    ('find_unused_parameters', 1, ['`find_unused_parameters` cannot be 1. Write true or false.']),
    ('teacher', 'EDSR', ["`teacher` cannot be 'EDSR'. Write a section"]),
    ('network_g', 'EDSR', ["`network_g` cannot be 'EDSR'. Write a section"]),
    ('train', [], ['`train` cannot be []. Write a section']),
    ('val.metrics.psnr', 'calculate_psnr', ['`val.metrics.psnr` cannot be', 'a section']),
    ('datasets.train.batch_size_per_gpu', 0, ['`datasets.train.batch_size_per_gpu` cannot be 0.']),
    ('datasets.train.batch_size_per_gpu', 4.0, ['`datasets.train.batch_size_per_gpu` cannot be 4.0.']),
    ('datasets.train.num_worker_per_gpu', -1, ['`datasets.train.num_worker_per_gpu` cannot be -1.']),
    ('datasets.train.use_hflip', 'yes', ['`datasets.train.use_hflip` cannot be']),
    ('datasets.train.filename_tmpl', 'x4', ['`datasets.train.filename_tmpl`', '{}x4']),
    ('datasets.train.filename_tmpl', '{}{x}', ['`datasets.train.filename_tmpl` cannot be']),
    ('datasets.train.prefetch_mode', 'gpu', ['`datasets.train.prefetch_mode`', '`cpu`, `cuda`, or ~']),
    ('datasets.train.dataroot_gt', ['a'], ["`datasets.train.dataroot_gt` cannot be ['a']. Write a path."]),
    ('datasets.val.io_backend.type', 'lmbd', ['Did you mean `lmdb`?']),
    ('noise_range', [30, 1], ['`noise_range` cannot be [30, 1]. Write a list [lowest, highest]']),
    ('path.strict_load_g', 'true', ['`path.strict_load_g` cannot be']),
    ('network_g.num_feat', '16', ["`network_g.num_feat` cannot be '16'. Write a whole number above 0."]),
    ('network_g.num_feat', 0, ['`network_g.num_feat` cannot be 0.']),
    ('network_g.num_feat', None, ['`network_g.num_feat` cannot be ~.']),
    ('network_d.skip_connection', 1, ['`network_d.skip_connection` cannot be 1. Write true or false.']),
    ('network_g', {'type': 'SwinIR', 'depths': 6}, ['`network_g.depths` cannot be 6. Write a list of whole numbers']),
    ('network_g', {'type': 'SwinIR', 'upsampler': 4}, ['`network_g.upsampler` cannot be 4. Write text']),
    ('train.total_iter', 0, ['`train.total_iter` cannot be 0.']),
    ('train.total_iter', 'many', ["`train.total_iter` cannot be 'many'.", 'such as 5000 or 5e3']),
    ('train.total_iter', 100.5, ['`train.total_iter` cannot be 100.5.']),
    ('train.total_iter', 10**400, ['`train.total_iter` cannot be 1000']),
    ('train.ema_decay', 1, ['`train.ema_decay` cannot be 1.', 'such as 0.999']),
    ('train.ema_decay', -0.1, ['`train.ema_decay` cannot be -0.1.']),
    ('train.ema_decay', float('nan'), ['`train.ema_decay` cannot be nan.']),
    ('train.optim_g.lr', '1e-4', ["`train.optim_g.lr` cannot be '1e-4'. Write a number", '1.0e-4']),
    ('train.optim_g.lr', -1.0, ['`train.optim_g.lr` cannot be -1.0.']),
    ('train.optim_g.betas', [0.9, 'b'], ['`train.optim_g.betas` cannot be', 'a list of two numbers']),
    ('train.scheduler.milestones', 5, ['`train.scheduler.milestones` cannot be 5.']),
    ('train.pixel_opt', 'L1Loss', ['`train.pixel_opt` cannot be', 'a section']),
    ('train.pixel_opt.loss_weight', 'big', ['`train.pixel_opt.loss_weight` cannot be']),
    ('train.pixel_opt.reduction', 'average', ['`train.pixel_opt.reduction`', '`mean`']),
    ('train.gan_opt.gan_type', 'vanila', ['`train.gan_opt.gan_type`', 'Did you mean `vanilla`?']),
    ('train.perceptual_opt.layer_weights', ['conv5_4'], ['`train.perceptual_opt.layer_weights` cannot be', 'section']),
    ('train.perceptual_opt.layer_weights.conv5_4', 'a', ["`train.perceptual_opt.layer_weights.conv5_4` cannot be 'a'"]),
    ('train.perceptual_opt.layer_weights.conv5_4', -1, ['layer_weights.conv5_4` cannot be -1. Write a number, 0 or']),
    ('noise_range', [-1, 30], ['`noise_range` cannot be [-1, 30].', '0 or above']),
    ('train.scheduler.milestones', [-5], ['`train.scheduler.milestones` cannot be [-5].', '0 or above']),
    ('network_g', {'type': 'SwinIR', 'window_size': -8}, ['`network_g.window_size` cannot be -8.']),
    ('network_g', {'type': 'SwinIR', 'img_size': [48]}, ['`network_g.img_size` cannot be [48].', 'two whole numbers']),
    ('network_g', {'type': 'StyleGAN2Generator', 'out_size': '32'}, ["`network_g.out_size` cannot be '32'."]),
    ('network_g.scale', -4, ['`network_g.scale` cannot be -4.']),
    # sections at the wrong level
    ('optim_g', {'type': 'Adam', 'lr': 1}, ['Unknown key `optim_g`. Move it into `train`.']),
    ('contrastive_opt', {}, ['Unknown key `contrastive_opt`. Move it into `train`.']),
    ('val_2', {}, ['Unknown key `val_2`. Move it into `datasets`.']),
    ('network_g.teacher', {}, ['Unknown key `network_g.teacher`. Move it to the top of the file.']),
    ('train.perceptual_opt.layer_weights.cnov5_4', 1, ['there is no layer `cnov5_4`. Did you mean `conv5_4`?']),
    ('train.perceptual_opt.vgg_type', 'vgg91', ['Did you mean `vgg19`?']),
    ('train.perceptual_opt.criterion', None, ['`train.perceptual_opt.criterion` cannot be ~.', '`l1`']),
    ('train.feature_kd_opt.layers', {0: 'body.1'}, ['`train.feature_kd_opt.layers` cannot be', 'in quotes']),
    ('train.optim_g.weight_decay', -1, ['`train.optim_g.weight_decay` cannot be -1.']),
    ('train.feature_kd_opt.hidden', [4], ['`train.feature_kd_opt.hidden` cannot be [4].', 'whole number']),
    ('train.update_order', 'd_frist', ['Did you mean `d_first`?']),
    ('train.gan_mode', 'ragan', ['`train.gan_mode`', '`standard`, `relativistic`']),
    ('train.net_d_iters', 0, ['`train.net_d_iters` cannot be 0.']),
    ('train.perceptual_opt.layer_weights', {}, ['`train.perceptual_opt.layer_weights` names no layer. Write some']),
    ('train.stages', {'a': 1}, ['`train.stages` cannot be a section.', 'a list of sections']),
    ('train.stages.0.iters', 0, ['`train.stages[0].iters` cannot be 0.']),
    ('train.stages.0.losses', 'pixel', ["`train.stages[0].losses` cannot be 'pixel'. Write a list of names"]),
    ('train.stages.0.optimizer', 'new', ['`train.stages[0].optimizer`', '`keep`, `fresh`']),
    ('train.stages.0.discriminator', 'both', ['`train.stages[0].discriminator`', '`student`, `teacher`']),
    ('train.stages.0.weights', {'pixel': -1}, ['`train.stages[0].weights.pixel` cannot be -1.']),
    ('val.val_freq', 0, ['`val.val_freq` cannot be 0.']),
    ('val.save_img', 'no', ['`val.save_img` cannot be']),
    ('val.metrics.psnr.better', 'more', ['`val.metrics.psnr.better`', '`higher`, `lower`']),
    ('logger.print_freq', -100, ['`logger.print_freq` cannot be -100.']),
    ('logger.use_tb_logger', 'true', ['`logger.use_tb_logger` cannot be']),
    ('dist_params.backend', 'ncll', ['Did you mean `nccl`?']),
    ('name', '../datasets', ["`name` cannot be '../datasets'.", 'without / and \\']),
    ('datasets.val.name', 'a/b', ["`datasets.val.name` cannot be 'a/b'."]),
    ('datasets.val.name', 'a\\b', ['`datasets.val.name` cannot be']),
    ('datasets.train.name', '..', ["`datasets.train.name` cannot be '..'."]),
    ('val.suffix', '../x', ["`val.suffix` cannot be '../x'."]),
    ('datasets.train.color', 'rgb', ["`datasets.train.color` cannot be 'rgb'. Write `y`, or ~."]),
    ('datasets.train.mean', [0.5, 0.5], ['`datasets.train.mean` cannot be [0.5, 0.5].', 'three numbers, or of one']),
    ('datasets.train.mean', [0.5, 0.5, 0.5], ['`datasets.train` has one of `mean` and `std` only.']),
    ('network_g', {'type': 'SwinIR', 'img_size': 'big'}, ["`network_g.img_size` cannot be 'big'."]),
    ('train.optim_g.betas', [0.9], ['`train.optim_g.betas` cannot be [0.9].', 'such as [0.9, 0.99]']),
    ('train.optim_g.betas', [0.9, 1], ['`train.optim_g.betas` cannot be [0.9, 1].']),
    ('train.optim_g.betas', [-0.1, 0.9], ['`train.optim_g.betas` cannot be']),
    ('train.optim_g.eps', -1e-8, ['`train.optim_g.eps` cannot be -1e-08.']),
    ('train.optim_g.type', 'LBFGS', ['`train.optim_g.type`: LBFGS does not fit this loop', 'Use Adam']),
    ('train.optim_d.type', 'SparseAdam', ['`train.optim_d.type`: SparseAdam does not fit']),
    ('train.optim_g.type', 'Muon', ['`train.optim_g.type`: Muon does not fit']),
    # options that do not fit each other
    ('logger', {'print_freq': 1, 'save_checkpoint_freq': 1, 'wandb': {'project': 'p'}},
     ['`logger.wandb.project` needs tensorboard', 'Write `use_tb_logger: true`']),
    ('logger.wandb.project', 'p', ['needs the package wandb, which is not installed', 'pip install wandb']),
    ('train.net_d_iters', 400000, ['`train.net_d_iters` is 400000 of 400000 iterations', 'never']),
    ('train.net_d_init_iters', 400000, ['`train.net_d_init_iters` is 400000 of 400000 iterations']),
    ('train.total_iter', 1000, ['add up to 400000 iterations, but `train.total_iter` is 1000.', ': 400000`']),
    ('train.stages.1.name', 'supervised', ['`train.stages[1].name`: there is a stage `supervised` before']),
    ('train.stages.1.losses', ['pixle'], ['`train.stages[1].losses` names `pixle`', 'Did you mean `pixel`?']),
    ('train.stages.1.losses', ['contrastive'], ['names `contrastive`, which has no options', 'contrastive_opt']),
    ('train.stages.1.losses', ['feature_kd_d'], ['names `feature_kd_d`', '`train_d`']),
    ('train.stages.1.losses', ['pixel', 'pixel'], ['`train.stages[1].losses` names a loss twice.']),
    ('train.stages.0.losses', [], ['`train.stages[0]` trains nothing.', 'pixel']),
    ('train.stages.0.weights', {'gan': 1}, ['`train.stages[0].weights` names `gan`, which is not on in this stage.']),
    ('train.perceptual_opt', REMOVE, ['names `perceptual`, which has no options. Add `train.perceptual_opt`.']),
    ('network_d', REMOVE, ['`train.feature_kd_d_opt` needs `network_d`, which is missing.']),
    ('teacher', REMOVE, ['`train.response_kd_opt` needs `teacher`, which is missing.']),
    ('teacher.network_d', REMOVE, ['`teacher.path.pretrain_network_d` has weights for `teacher.network_d`,']),
    ('train.ema_decay', 0, ['`train.ldl_opt` needs `train.ema_decay`, which is missing or 0.']),
    ('train.optim_d', REMOVE, ['`train.stages[1]` trains the discriminator, but `train.optim_d` is missing.']),
    ('datasets.train.gt_size', 126, ['`datasets.train.gt_size` is 126, which the scale 4 does not divide. Write 124.']),
    ('datasets.train.prefetch_mode', 'cuda', ['`pin_memory: true`']),
    ('datasets.val.persistent_workers', True, ['`datasets.val.persistent_workers` needs workers']),
    ('datasets.test_1', {}, ['`datasets.test_1` is of no use in training.', '`val_2`']),
    ('datasets.train_2', {}, ['`datasets.train_2` is of no use in training.']),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [1000]}, ['add up to 1000', '400000']),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [2e5, 2e5]}, ['2 `periods`, but 1 `restart_w']),
    ('train.scheduler.restarts', [0, 5], ['2 `restarts`, but 1 `restart_weights`']),
])
def test_refusals(key, value, fragments, monkeypatch):
    monkeypatch.setattr(training.importlib.util, 'find_spec', lambda name: None)
    message = refusal(change(distillation(), key, value))
    assert all(fragment in message for fragment in fragments), message
    assert '\n' not in message


def test_wandb_where_it_is_installed(monkeypatch):
    opt = change(distillation(), 'logger.wandb.project', 'p')
    monkeypatch.setattr(training.importlib.util, 'find_spec', lambda name: None)
    check_options({**opt, 'name': 'debug_sdakd'}, LOSSES)  # BasicSR leaves wandb out
    monkeypatch.setattr(training.importlib.util, 'find_spec', lambda name: object())
    check_options(opt, LOSSES)


def test_workers_and_cpu_prefetch():
    opt = change(distillation(), 'datasets.train.prefetch_mode', 'cpu')
    message = refusal(change(opt, 'datasets.train.num_worker_per_gpu', 0))
    assert '`datasets.train.prefetch_mode: cpu` with no workers' in message and '`num_worker_per_gpu`' in message


@pytest.mark.parametrize(('key', 'value', 'fragments'), [
    ('network_d', REMOVE, ['`train` trains the discriminator, but `network_d` is missing.', 'UNetDiscriminatorSN']),
    ('train.optim_d', REMOVE, ['`train.optim_d` is missing.']),
    ('train.gan_opt', REMOVE, ['`train.optim_d` is there, but nothing trains the discriminator.']),
    ('train.stages', [{'name': 'a', 'iters': 400000, 'losses': ['gan'], 'train_d': False}],
     ['nothing trains the discriminator']),
    ('train.self_distill_opt', {'type': 'L1Loss'}, []),
    ('train.self_distill_opt', {**PERCEPTUAL, 'loss_weight': 0.1, 'perceptual_weight': 0.5}, []),
    ('train.self_distill_opt', {**PERCEPTUAL, 'perceptual_weight': 0.1},
     ['`train.self_distill_opt.perceptual_weight` is a factor within PerceptualLoss', 'Write `loss_weight` too']),
    ('val.flip_seq', True, ['`val.flip_seq` is of video models, and not read by TestOurModel.']),
])
def test_adversarial_refusals(key, value, fragments):
    opt = change(adversarial_files(), key, value)
    if fragments:
        message = refusal(opt)
        assert all(fragment in message for fragment in fragments), message
    else:
        check_options(opt, LOSSES)


def test_a_training_of_one_iteration():
    opt = change(change(adversarial_files(), 'train.total_iter', 1), 'train.net_d_iters', 1)
    check_options(opt, LOSSES)
    assert '`train.net_d_iters` is 2 of 1 iterations' in refusal(change(opt, 'train.net_d_iters', 2))


def test_train_d_needs_gan_opt_and_no_losses_are_refused():
    opt = change(change(adversarial_files(), 'train.gan_opt', REMOVE), 'train.stages',
                 [{'name': 'a', 'iters': 400000, 'losses': ['pixel'], 'train_d': True}])
    assert '`train.stages[0]` trains the discriminator, but `train.gan_opt` is missing.' in refusal(opt)
    opt = adversarial_files()
    for name in ('gan_opt', 'pixel_opt', 'optim_d'):
        del opt['train'][name]
    assert '`train` trains nothing.' in refusal(opt)


def test_a_discriminator_can_be_trained_alone():
    opt = change(adversarial_files(), 'train.stages', [{'name': 'a', 'iters': 4e5, 'losses': [], 'train_d': True}])
    assert check_options(opt, LOSSES) == ['`train.pixel_opt` is on in no stage.']


def test_a_loss_without_options_is_on_with_its_defaults():
    opt = change(distillation(), 'train.response_kd_opt', {})
    opt['train']['stages'][0]['losses'].append('response_kd')
    assert check_options(opt, LOSSES) == ['`train.ldl_opt` is on in no stage.']


@pytest.mark.parametrize(('key', 'value'), [
    ('gan_mode', 'standard'), ('update_order', 'd_first'), ('r1_reg_weight', 10), ('net_d_reg_every', 16),
    ('net_d_iters', 999999), ('net_d_init_iters', 999999)])
def test_adversarial_options_without_an_adversary_are_warned_of(key, value):
    opt = change(adversarial_files(), f'train.{key}', value)
    if value != 999999:
        assert check_options(opt, LOSSES) == []
    for name in {'gan_opt', 'optim_d', 'net_d_iters', 'net_d_init_iters'} - {key}:
        del opt['train'][name]
    assert check_options(opt, LOSSES) == [
        f'`train.{key}` is of no use: there is no `gan`, and no discriminator is trained.']


def test_the_teachers_discriminator_without_gan_is_warned_of():
    opt = change(distillation(), 'train.stages.0.discriminator', 'teacher')
    assert ('`train.stages[0].discriminator: teacher` is of no use without `gan` in `train.stages[0].losses`.'
            in check_options(opt, LOSSES))


def test_feature_kd_d_trains_no_discriminator():
    """As kd_models/stages.py: by default it is trained where `gan` is on."""
    opt = change(distillation(), 'train.stages', REMOVE)
    del opt['train']['gan_opt']
    assert '`train.optim_d` is there, but nothing trains the discriminator.' in refusal(opt)
    del opt['train']['optim_d']
    assert '`train.feature_kd_d_opt` is on in no stage.' in check_options(opt, LOSSES)
    opt = distillation()
    opt['train']['stages'][1]['train_d'] = opt['train']['stages'][2]['train_d'] = False
    del opt['train']['optim_d']
    assert '`train.feature_kd_d_opt` is on in no stage.' in check_options(opt, LOSSES)


def test_an_idle_teacher_is_a_warning():
    opt = {**adversarial_files(), 'teacher': distillation()['teacher']}
    assert check_options(opt, LOSSES) == ['`teacher` is there, but no loss or metric asks it: nothing is distilled.']


def test_a_test_without_weights_is_warned_of(write):
    opt, _ = parse(write(TEST), is_train=False)
    for value in (None, REMOVE):
        assert check_options(change(opt, 'path.pretrain_network_g', value), LOSSES) == [
            '`path.pretrain_network_g` is missing: a network with random weights is measured.']


def test_a_cache_of_the_teacher_needs_a_loss_that_reads_it():
    opt = change(distillation(), 'teacher.cache', 'folder')
    assert {name: cache['folder'] for name, cache in teacher_caches(opt).items()} == {'teacher': 'folder'}
    assert check_options(opt, LOSSES) == check_options(distillation(), LOSSES)
    assert teacher_caches(change(opt, 'model_type', 'TestForeignModel')) == {}
    opt = {**adversarial_files(), 'teacher': opt['teacher']}
    assert teacher_caches(opt) == {}
    assert "`teacher.cache` is of no use: no loss asks for the teacher's images." in check_options(opt, LOSSES)


@pytest.mark.parametrize('dataset', ['RealESRGANDataset', 'RealESRGANPairedDataset', 'TestForeignDataset'])
def test_a_cache_of_the_teacher_needs_fixed_pairs(dataset):
    """Said before anything else of the dataset."""
    opt = change(change(distillation(), 'teacher.cache', 'folder'), 'datasets.train.type', dataset)
    message = refusal(opt)
    assert f'PairedImageDataset only. {dataset} may degrade or crop otherwise at each draw.' in message
    assert 'Use PairedImageDataset with prepared LR images, or take `teacher.cache` out.' in message


def test_a_test_against_the_teacher_needs_its_weights(write):
    opt, _ = parse(write(TEST), is_train=False)
    opt.update(model_type='TestOurModel', teacher=distillation()['teacher'])
    opt['val']['metrics'] = {'psnr': {'type': 'calculate_psnr', 'crop_border': 4, 'reference': 'teacher'}}
    check_options(opt, LOSSES)
    message = refusal(change(opt, 'teacher.path.pretrain_network_g', None))
    assert '`teacher.path.pretrain_network_g` is missing' in message
    opt['datasets'] = {}
    with pytest.raises(OptionError, match='`path.pretrain_network_g`: `net_g.pth` is missing'):
        check_files(opt)
    (Path() / 'net_g.pth').write_bytes(b'')
    with pytest.raises(OptionError, match='`teacher.path.pretrain_network_g`: `.*t.pth` is missing'):
        check_files(opt)
    opt['val']['metrics']['psnr']['reference'] = 'gt'
    check_files(opt)


def test_in_a_test_only_test_sets_count(write):
    opt, _ = parse(write(TEST), is_train=False)
    opt['datasets']['train'] = {}
    assert '`datasets.train` is of no use in a test. Call it `val` or `test`' in refusal(opt)
    opt['datasets'] = {}
    assert '`datasets` is empty' in refusal(opt)


def test_real_esrgan_is_refused_incomplete():
    degradation = read(REAL_ESRGAN)
    train_set = degradation.pop('train_set')
    opt = {**read(SRGAN), 'model_type': 'TestOurModel', 'datasets': {'train': train_set}, **degradation}
    assert '`jpeg_range2` is missing, which degrades the images of `datasets.train`.' in refusal(
        change(opt, 'jpeg_range2', REMOVE))
    assert '`resize_prob` cannot be [0.5, 0.5].' in refusal(change(opt, 'resize_prob', [0.5, 0.5]))
    assert '`datasets.train.kernel_prob2` has 1 numbers for 2 kernels.' in refusal(
        change(opt, 'datasets.train.kernel_prob2', [1]))
    opt = change(opt, 'datasets.train.meta_info', REMOVE)
    assert '`datasets.train.meta_info` is missing.' in refusal(opt)
    check_options(change(opt, 'datasets.train.io_backend', {'type': 'lmdb'}), LOSSES)


def test_a_class_may_use_a_known_name_for_something_else():
    def metric(img, img2, criterion='mse', gamma=-1.0, reduction: str = 'batch', num_feat=None, crop_border: int = 4):
        return 0.0

    metric.__module__ = 'kd_metrics.test_metric'
    assert arguments_of(metric, skip=('img', 'img2')) == {
        'criterion': 'text?', 'gamma': 'number', 'reduction': 'text', 'num_feat': 'size?', 'crop_border': 'count'}
    metric.__module__ = 'their_metrics'
    assert arguments_of(metric, skip=('img', 'img2')) == {
        'criterion': 'text?', 'gamma': 'number', 'reduction': 'text', 'num_feat': 'any?', 'crop_border': 'int'}


def test_names_in_a_foreign_network_mean_what_they_mean_there():
    network = {'type': 'TestForeignBlocks', 'layers': [2, 2, 6, 2], 'reduction': 16, 'num_feat': [16, 32],
               'betas': 3, 'upscale': 1.5}
    check_options(change(distillation(), 'network_g', network), LOSSES)


@pytest.mark.parametrize('text', [DISTILLATION, SRGAN])
def test_every_misspelt_key_and_wrong_type_is_refused(text):
    opt = {**read(text), 'model_type': 'TestOurModel'}
    free = ('val.metrics.psnr', 'val.metrics.niqe')  # names that the user chooses
    for key in keys_of(opt):
        last = key.rpartition('.')[2]
        if last.isdigit() or '.layers.' in key or key in free:
            continue
        misspelt = change(opt, f'{key}x', None)
        assert f'{last}x' in refusal(misspelt) or '.layer_weights' in key, key
        refusal(change(opt, key, object()))
