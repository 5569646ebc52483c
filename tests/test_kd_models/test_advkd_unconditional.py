"""Adv-KD as published, from noise to images: a teacher trained here or by diffusers."""
import json

import cv2
import numpy as np
import pytest
import torch
from basicsr.models import build_model

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_cli.prepare import main as prepare
from kd_models.advkd_model import AdvKDModel
from kd_models.distillation_model import DistillationModel
from kd_utils.options import OptionError, check_options
from tests.support import model_options, refusal, save_teacher, write_yaml

SIZE = 16
TEACHER = {'type': 'DiffusionUNet', 'size': SIZE, 'block_out_channels': [8, 16], 'layers_per_block': 1,
           'norm_num_groups': 4, 'timesteps': 40, 'steps': 2}
STUDENT = {'type': 'PhaseDecoder', 'size': SIZE, 'num_feat': 4}
SAMPLES = {'name': 'noise', 'type': 'SampleDataset', 'n': 6}
LOADER = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 3, 'dataset_enlarge_ratio': 1, 'prefetch_mode': None}
TRAIN = {'scheduler': {'type': 'MultiStepLR', 'milestones': [100], 'gamma': 0.5}, 'total_iter': 6, 'warmup_iter': -1}


def student_options(folder, teacher, **train_opt):
    opt = model_options(folder, {'pixel_opt': None, 'preset': 'faithful', 'optim_g': {'type': 'Adam', 'lr': 1e-3},
                                 **train_opt}, model_type='AdvKDModel', network_g=dict(STUDENT), teacher=teacher)
    opt['datasets'] = {'train': {**SAMPLES, **LOADER, 'phase': 'train'}}
    del opt['scale']
    return opt


def pipeline(folder, size=SIZE):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    unet = UNet2DModel(sample_size=size, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                       down_block_types=('DownBlock2D', ) * 2, up_block_types=('UpBlock2D', ) * 2)
    DDPMPipeline(unet, DDPMScheduler(1000)).save_pretrained(folder)
    return unet


def test_images_are_refused_where_latents_are_wanted(tmp_path):
    opt = student_options(tmp_path, save_teacher(tmp_path, TEACHER))
    opt['datasets']['train'] = {'name': 'x', 'type': 'FFHQDataset', 'dataroot_gt': 'x.lmdb', 'use_hflip': True,
                                'io_backend': {'type': 'lmdb'}, 'mean': [0.] * 3, 'std': [1.] * 3, **LOADER}
    AdvKDModel.complete(opt)
    with pytest.raises(OptionError, match='FFHQDataset gives images, and AdvKDModel makes its own from latents'):
        check_options(opt, DistillationModel.losses)


def test_a_pipeline_of_diffusers_teaches(tmp_path):
    """Its folder brings U-Net, schedule, prediction type and size; states are those of its own DDIM."""
    unet = pipeline(tmp_path / 'ddpm').eval()
    teacher = {'network_g': {'type': 'DiffusionUNet', 'pretrained': str(tmp_path / 'ddpm'), 'steps': 2}, 'path': {}}
    opt = student_options(tmp_path, teacher)
    AdvKDModel.complete(opt)
    assert check_options(opt, DistillationModel.losses) == []
    model = build_model(opt)
    net = model.teacher.net_g
    assert net.size == SIZE and net.timesteps == 1000 and net.sampler.scheduler.config.prediction_type == 'epsilon'
    model.feed_data({'lq': torch.randn(3, 3 * SIZE**2)})
    model.optimize_parameters(1)
    drawn = model.draw(3)
    noise = drawn['noise']
    with torch.no_grad():
        eps = unet(noise, 999).sample
    abar = net.sampler.scheduler.alphas_cumprod
    x0 = ((noise - (1 - abar[999]).sqrt() * eps) / abar[999].sqrt()).clamp(-1, 1)
    expected = abar[499].sqrt() * x0 + (1 - abar[499]).sqrt() * eps
    torch.testing.assert_close(drawn['states'][:, 1], expected.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    assert model.states == [0, 1, 2] and torch.equal(drawn['states'][:, 0], noise.clamp(-1, 1))


@pytest.mark.parametrize('network, message', [
    ({'size': 32}, '`size` is 32, and the images of `.*ddpm` are 16x16. Write 16.'),
    ({'timesteps': 500}, '`teacher.network_g.timesteps` is not read where there is `teacher.network_g.pretrained`'),
    ({'scale': 2}, '`teacher.network_g.scale` is not read'),
])
def test_what_a_pipeline_brings_cannot_be_written(tmp_path, network, message):
    pipeline(tmp_path / 'ddpm')
    teacher = {'network_g': {'type': 'DiffusionUNet', 'pretrained': str(tmp_path / 'ddpm'), 'steps': 2, **network},
               'path': {}}
    with pytest.raises(OptionError, match=message):
        build_model(student_options(tmp_path, teacher))


def test_a_pipeline_without_a_size_is_refused(tmp_path):
    pipeline(tmp_path / 'ddpm', size=None)
    teacher = {'network_g': {'type': 'DiffusionUNet', 'pretrained': str(tmp_path / 'ddpm'), 'steps': 2}, 'path': {}}
    with pytest.raises(OptionError, match='have 3 channels and the size None'):
        build_model(student_options(tmp_path, teacher))


def test_a_pipeline_does_not_teach_super_resolution(tmp_path):
    teacher = {'network_g': {'type': 'DiffusionUNet', 'pretrained': 'ddpm', 'steps': 2}, 'path': {}}
    opt = model_options(tmp_path, {'pixel_opt': None}, model_type='AdvKDModel', teacher=teacher,
                        network_g={'type': 'DenoisingPhaseNet', 'scale': 2})
    assert '`teacher.network_g.pretrained` has no LR images' in refusal(opt)


def test_there_are_no_lr_images_for_negatives(tmp_path):
    opt = student_options(tmp_path, save_teacher(tmp_path, TEACHER))
    opt['train']['contrastive_opt'] = {'negatives': 'in_batch+degraded'}
    with pytest.raises(OptionError, match='asks for the LR images as negatives'):
        build_model(opt)


@pytest.mark.parametrize('key, value, message', [
    ('datasets.train.type', 'FFHQDataset', 'FFHQDataset gives images, and AdvKDModel makes its own from latents'),
    ('datasets.train.num_style_feat', 10, 'is 10, and `network_g` takes latents of 768 numbers'),
    ('datasets.train.batch_size_per_gpu', 1, 'phase 1 does not take 1 images of 8x8'),
    ('network_g.size', None, '`network_g.size` is missing'),
    ('network_g.size', 0, '`network_g.size` cannot be 0'),
    ('network_g.size', 8, '`network_g.size` is 8, and `teacher.network_g.size` is 16'),
    ('teacher.network_g.residual', True, '`teacher.network_g.residual` is not read'),
    ('scale', 4, '`scale` is of super-resolution'),
])
def test_what_does_not_fit_noise(tmp_path, key, value, message):
    opt = student_options(tmp_path, save_teacher(tmp_path, TEACHER))
    section, *path = opt, *key.split('.')
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    assert message in refusal(opt)


@pytest.mark.parametrize('name, message', [('train', 'SampleDataset gives latents, and DiffusionSRModel learns'),
                                           ('val', 'num_style_feat` is 5')])
def test_data_sets_of_a_teacher(tmp_path, name, message):
    opt = model_options(tmp_path, {'pixel_opt': None}, model_type='DiffusionSRModel', network_g=dict(TEACHER),
                        val={'val_freq': 1})
    del opt['scale']
    opt['datasets']['train'] = {'name': 'real', 'type': 'FFHQDataset', 'dataroot_gt': 'real.lmdb', 'use_hflip': True,
                                'mean': [0.5], 'std': [0.5], 'io_backend': {'type': 'lmdb'}, 'phase': 'train',
                                'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}
    opt['datasets'][name] = {**SAMPLES, 'num_style_feat': 5}
    assert message in refusal(opt)


def test_a_teacher_of_another_size_is_refused(tmp_path):
    teacher = save_teacher(tmp_path, {**TEACHER, 'size': 8})
    with pytest.raises(OptionError, match='teacher'):
        build_model(student_options(tmp_path, teacher))


@pytest.fixture
def lmdb(tmp_path):
    folder = tmp_path / 'real'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    prepare(['lmdb', str(folder), str(tmp_path / 'real.lmdb')])
    return tmp_path


def test_through_the_loop(lmdb, monkeypatch):
    """A small teacher trained here, its student, and samples of both from the same noise."""
    monkeypatch.chdir(lmdb)
    common = {'num_gpu': 0, 'manual_seed': 0,
              'logger': {'print_freq': 1, 'save_checkpoint_freq': 100, 'use_tb_logger': False}}
    real = {'name': 'real', 'type': 'FFHQDataset', 'dataroot_gt': str(lmdb / 'real.lmdb'), 'use_hflip': True,
            'io_backend': {'type': 'lmdb'}, 'mean': [0, 0, 0], 'std': [1, 1, 1], **LOADER}
    adam = {'type': 'Adam', 'lr': 1e-3}
    teacher = {'name': 'teacher', 'model_type': 'DiffusionSRModel', **common, 'datasets': {'train': real},
               'network_g': TEACHER, 'train': {**TRAIN, 'optim_g': adam}}
    train_pipeline(str(lmdb), ['-opt', str(write_yaml(lmdb / 'teacher.yml', teacher))])
    section = {'network_g': TEACHER, 'path': {'pretrain_network_g': 'experiments/teacher/models/net_g_latest.pth'}}
    student = {'name': 'student', 'model_type': 'AdvKDModel', **common, 'teacher': section, 'network_g': STUDENT,
               'datasets': {'train': {**SAMPLES, **LOADER}, 'val': {**SAMPLES, 'name': 'val', 'seed': 1}},
               'train': {**TRAIN, 'preset': 'faithful'}, 'val': {'val_freq': 6, 'save_img': False}}
    train_pipeline(str(lmdb), ['-opt', str(write_yaml(lmdb / 'student.yml', student))])
    for name, network in (('teacher', TEACHER), ('student', STUDENT)):
        test = {'name': name, 'model_type': 'DiffusionSRModel' if name == 'teacher' else 'AdvKDModel', 'num_gpu': 0,
                'datasets': {'test_1': SAMPLES}, 'network_g': network, 'val': {'save_img': True, 'metrics': {
                    'rfid': {'type': 'RandomFID', 'real': str(lmdb / 'real'), 'better': 'lower'}}},
                'path': {'pretrain_network_g': f'experiments/{name}/models/net_g_latest.pth'}}
        run_test(str(lmdb), ['-opt', str(write_yaml(lmdb / 'test.yml', test))])
        assert len(list((lmdb / f'results/{name}/visualization/noise').glob('*.png'))) == 6
        assert json.loads((lmdb / f'results/{name}/metrics_noise.json').read_text())['mean']['rfid'] > 0
