"""GCFSR by commands: training on faces, resuming, testing at several scales, and what is refused."""
import json

import cv2
import numpy as np
import pytest
import torch

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_cli.prepare import make_lr
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError
from tests.support import GCFSR, GCFSR_TEACHER, assert_equal_weights, face_options, face_set, save_teacher, write_yaml


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    """A folder with hr/ (four images of 32x32), their bicubic lr2/, lr4/ and lr8/, and large/ (one of 64x64)."""
    root = tmp_path_factory.mktemp('faces')
    for folder, count, size in (('hr', 4, 32), ('large', 1, 64)):
        (root / folder).mkdir()
        for i in range(count):
            image = np.random.default_rng(i).integers(0, 256, (size, size, 3)).astype(np.float32)
            cv2.imwrite(str(root / folder / f'{i}.png'), cv2.GaussianBlur(image, (0, 0), 1))
    for scale in (2, 4, 8):
        make_lr(root / 'hr', root / f'lr{scale}', scale)
    return root


def pairs(root, scale, **changes):
    return {'name': f'Faces_x{scale}', 'type': 'PairedImageDataset', 'dataroot_gt': str(root / 'hr'), 'scale': scale,
            'dataroot_lq': str(root / f'lr{scale}'), 'io_backend': {'type': 'disk'}, **changes}


PSNR = {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}


def train_options(root, folder, **train):
    options = face_options(folder, {'total_iter': 8, **train}, model_type='SDAKDModel', name='faces',
                           teacher=save_teacher(folder, GCFSR_TEACHER), path={},
                           val={'val_freq': 4, 'metrics': PSNR}, logger={'print_freq': 1, 'save_checkpoint_freq': 4})
    options['datasets'] = {'train': {**options['datasets']['train'], **face_set(root / 'hr')},
                           'val': pairs(root, 4), 'val_2': pairs(root, 8)}
    for key in ('dist', 'rank', 'world_size', 'is_train'):
        del options[key]
    return options


def test_options(root, **changes):
    return {'name': 'faces', 'model_type': 'DistillationModel', 'scale': 4, 'num_gpu': 0,
            'datasets': {'test_1': pairs(root, 2), 'test_2': pairs(root, 8)}, 'network_g': dict(GCFSR), 'path': {},
            'val': {'metrics': PSNR}, **changes}


test_options.__test__ = False  # type: ignore[attr-defined]


def run(pipeline, folder, options, *arguments):
    folder.mkdir(exist_ok=True)
    pipeline(str(folder), ['-opt', str(write_yaml(folder / 'faces.yml', options)), *arguments])


def test_trained_resumed_and_tested(tmp_path, faces):
    """Stopped within the second stage; the test restores bare LR faces of two scales in one file."""
    options = train_options(faces, tmp_path, stages=[
        {'name': 'supervised', 'iters': 2, 'losses': ['pixel']},
        {'name': 'distill', 'iters': 3, 'losses': ['pixel', 'feature_kd'], 'train_d': True},
        {'name': 'adversarial', 'iters': 3, 'losses': ['pixel', 'feature_kd', 'gan'], 'optimizer': 'fresh'}])
    run(train_pipeline, tmp_path / 'whole', options)
    cut = {**options['train'], 'total_iter': 4, 'stages': [options['train']['stages'][0], {
        **options['train']['stages'][1], 'iters': 2}]}
    run(train_pipeline, tmp_path / 'part', {**options, 'train': cut})
    run(train_pipeline, tmp_path / 'part', options, '--auto_resume')
    for name in ('net_g_8.pth', 'net_d_8.pth'):
        a, b = (torch.load(tmp_path / root / 'experiments/faces/models' / name) for root in ('whole', 'part'))
        for key in a:
            assert_equal_weights(a[key], b[key])
    weights = {'pretrain_network_g': str(tmp_path / 'whole/experiments/faces/models/net_g_latest.pth'),
               'param_key_g': 'params_ema'}
    results = {}
    for model_type in ('DistillationModel', 'SRModel'):
        run(run_test, tmp_path / model_type, test_options(
            faces, model_type=model_type, path=weights, val={'metrics': PSNR, 'save_img': True}))
        images = tmp_path / model_type / 'results/faces/visualization'
        results[model_type] = [(images / f'Faces_x{scale}/{i}_faces.png').read_bytes()
                               for scale in (2, 8) for i in range(4)]
    assert results['DistillationModel'] == results['SRModel']
    measured = [json.loads((tmp_path / f'DistillationModel/results/faces/metrics_Faces_x{scale}.json').read_text())
                for scale in (2, 8)]
    assert [len(of_set['images']) for of_set in measured] == [4, 4] and all('psnr' in s['mean'] for s in measured)


def test_the_stock_loop_trains_it(tmp_path, faces, monkeypatch):
    """`--loop basicsr`, where a set's own scale does not count."""
    monkeypatch.setattr('sys.argv', ['train.py'])
    options = train_options(faces, tmp_path, total_iter=4)
    del options['datasets']['val_2']
    run(train_pipeline, tmp_path / 'stock', {**options, 'manual_seed': 0}, '--loop', 'basicsr')
    assert (tmp_path / 'stock/experiments/faces/models/net_g_4.pth').exists()


TRAINING = [
    ('network_g.out_size', 48, '`network_g.out_size` cannot be 48. Write a power of two from 32 to 1024'),
    ('datasets.train.downsample_list', [16, 4], 'has the scale 16, and `network_g` knows the scales 1 to 8'),
    ('datasets.train.downsample_list', [3], '3 does not divide `gt_size`, 32. Write powers of two.'),
    ('datasets.train.dataroot_gt', 'large', '`datasets.train.gt_size` is 32, but `.*large/0.png` is 64x64. Make faces'),
    ('datasets.val', {'dataroot_gt': 'large', 'dataroot_lq': 'large', 'scale': 1},
     '`datasets.val`: `.*large/0.png` does not fit `network_g`. LR faces are 64x64, and the network makes 32x32'),
    ('datasets.val', {'mean': [0.5], 'std': [0.5]},
     '`datasets.val.mean` and `std` change the range .* `network_g` takes LR faces in .0, 1.. Take both out'),
    ('datasets.val_2.scale', 4, 'does not fit the scale 4'),
    ('network_g.cond_norm', 2, '`datasets.val`: `.*` does not fit `network_g`. Scale 4 is outside the range'),
]


@pytest.mark.parametrize('key, value, message', TRAINING)
def test_training_is_refused_before_anything_is_made(tmp_path, faces, key, value, message):
    options = train_options(faces, tmp_path)
    *parents, last = key.split('.')
    section = options
    for parent in parents:
        section = section[parent]
    section[last] = {**section[last], **value} if isinstance(value, dict) else value
    for dataset in options['datasets'].values():
        dataset.update({k: str(faces / v) for k, v in dataset.items() if v == 'large'})
    with pytest.raises(OptionError, match=message):
        run(train_pipeline, tmp_path / 'refused', options)
    assert [path.name for path in (tmp_path / 'refused').iterdir()] == ['faces.yml']


def single(root, folder, **changes):
    """LR faces without ground truth."""
    return {'test_1': {'name': 'Bare', 'type': 'SingleImageDataset', 'dataroot_lq': str(root / folder),
                       'io_backend': {'type': 'disk'}, **changes}}


@pytest.mark.parametrize('changes, message', [
    ({'datasets': 'large'}, '`datasets.test_1`: `.*large/0.png` does not fit `network_g`. LR faces are 64x64, and the '
                            'network makes 32x32 .*whose size divides 32'),
    ({'datasets': 'lr8', 'network_g': {**GCFSR, 'cond_norm': 4}}, 'Scale 8 is outside the range of this network, 1 to'),
    ({'network_g': {**GCFSR, 'out_size': 64}},
     '`network_g` makes `.*lr2/0.png` 4 times as large, but the scale is 2. Write `scale: 4`, or name LR'),
    ({'network_g': {**GCFSR, 'out_size': 500}}, '`network_g.out_size` cannot be 500. Write a power of two'),
])
def test_a_test_is_refused_before_anything_is_made(tmp_path, faces, changes, message):
    if 'datasets' in changes:
        changes = {**changes, 'datasets': single(faces, changes['datasets'])}
    with pytest.raises(OptionError, match=message):
        run(run_test, tmp_path / 'refused', test_options(faces, **changes))
    assert [path.name for path in (tmp_path / 'refused').iterdir()] == ['faces.yml']


def test_weights_of_another_size_are_refused(tmp_path, faces):
    path = {'pretrain_network_g': save_teacher(tmp_path, GCFSR_TEACHER)['path']['pretrain_network_g']}
    with pytest.raises(CheckpointError, match='does not fit GCFSR: shapes differ.*Change the network section'):
        run(run_test, tmp_path / 'refused', test_options(faces, path=path))
