"""Trainings with a teacher's cache: who makes it when, exact resume, and what is refused."""
import os
import sys

import pytest
import torch

from kd_cli.loop import train_pipeline
from kd_models.teacher import Teacher
from kd_utils.options import OptionError
from tests.support import TEACHER, assert_equal_weights, save_teacher, train_yaml, write_yaml
from tests.test_kd_cli.test_commands import command

PSNR = {'type': 'calculate_psnr', 'crop_border': 2}


def cached_yaml(images, root, **changes):
    return train_yaml(images, **{'teacher': {**save_teacher(root), 'cache': str(root / 'cache')},
                                 'train__response_kd_opt': {'type': 'L1Loss'}, **changes})


def trained(root, options, *arguments):
    root.mkdir(exist_ok=True)
    train_pipeline(str(root), ['-opt', str(write_yaml(root / 'tiny.yml', options)), *arguments])
    return torch.load(root / 'experiments' / options['name'] / 'models' / 'net_g_latest.pth')


@pytest.fixture
def asked(monkeypatch):
    """The size of each image that a teacher was asked for."""
    sizes, generate = [], Teacher.generate
    monkeypatch.setattr(Teacher, 'generate',
                        lambda self, lq, taps=None: (sizes.append(lq.shape[-1]), generate(self, lq, taps))[1])
    return sizes


def test_the_teacher_sees_each_image_once_and_none_in_a_second_run(tmp_path, images, asked):
    options = cached_yaml(images, tmp_path)
    first = trained(tmp_path / 'a', options)
    assert asked == [32] * 6 and len(list((tmp_path / 'cache').glob('*.npy'))) == 6
    second = trained(tmp_path / 'b', options)
    assert len(asked) == 6
    assert_equal_weights(first['params'], second['params'])
    without = trained(tmp_path / 'c', {**options, 'teacher': {**options['teacher'], 'cache': None}})
    assert set(asked[6:]) == {16} and len(asked) == 6 + options['train']['total_iter']
    assert any(not torch.equal(without['params'][name], first['params'][name]) for name in first['params'])


def test_a_metric_against_the_teacher_asks_the_network(tmp_path, images, asked):
    trained(tmp_path, cached_yaml(images, tmp_path, val__metrics={'psnr': {**PSNR, 'reference': 'teacher'}}))
    assert len(asked) == 6 + 2 * 6  # two validations


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, images, workers):
    """Mid-epoch, the cache made by the first part of the one and found by the other."""
    options = cached_yaml(images, tmp_path, datasets__train__num_worker_per_gpu=workers)
    trained(tmp_path / 'part', {**options, 'train': {**options['train'], 'total_iter': 4}})
    (tmp_path / 'cache' / sorted(os.listdir(tmp_path / 'cache'))[0]).unlink()  # one has got lost
    resumed = trained(tmp_path / 'part', options, '--auto_resume')
    whole = trained(tmp_path / 'whole', options)
    for key in whole:
        assert_equal_weights(resumed[key], whole[key])


def test_two_processes_share_the_work(tmp_path, images):
    options = write_yaml(tmp_path / 'tiny.yml', cached_yaml(images, tmp_path, train__total_iter=2))
    output = command('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'kd_cli.train',
                     '-opt', options, '--launcher', 'pytorch', cwd=tmp_path)
    assert '3 images to be made on this process, for a training set of 6' in output
    assert len(list((tmp_path / 'cache').glob('*.npy'))) == 6 and 'l_g_response_kd' in output


@pytest.mark.parametrize('change, arguments, message', [
    ({'train__feature_kd_opt': {}}, (), 'feature_kd_opt` compares feature maps'),
    ({}, ('--loop', 'basicsr'), "not read by BasicSR's loop. Leave `--loop basicsr` or the cache out"),
    ({'teacher__cache': sys.executable}, (), 'cannot be made or written .*. Name another folder'),
])
def test_refusals_create_nothing(tmp_path, images, change, arguments, message):
    options = write_yaml(tmp_path / 'tiny.yml', cached_yaml(images, tmp_path, **change))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(OptionError, match=message):
        train_pipeline(str(tmp_path), ['-opt', str(options), *arguments])
    assert sorted(tmp_path.rglob('*')) == before


def test_another_teachers_cache_is_refused_and_the_older_run_stays(tmp_path, images):
    options = cached_yaml(images, tmp_path)
    trained(tmp_path, options)
    path = options['teacher']['path']['pretrain_network_g']
    torch.save({'params': {name: value * 1.5 for name, value in torch.load(path)['params'].items()}}, path)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(OptionError, match='made with other weights. Name another folder, or remove this one'):
        trained(tmp_path, options)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_cache_that_no_loss_reads_is_not_made(tmp_path, images, asked):
    trained(tmp_path, cached_yaml(images, tmp_path, train__response_kd_opt=None))
    assert not asked and not (tmp_path / 'cache').exists()


def test_each_teacher_has_its_own_images(tmp_path, images, asked):
    """A run with the caches of two teachers is the run with their images; another one needs neither teacher."""
    teachers = {}
    for name, width in (('a', 12), ('b', 10)):
        (tmp_path / name).mkdir()
        section = save_teacher(tmp_path / name, {**TEACHER, 'num_feat': width})
        teachers[name] = {**section, 'cache': str(tmp_path / f'cache_{name}')}
    options = train_yaml(images, teachers=teachers, train__response_kd_opt={'type': 'L1Loss', 'teacher': ['a', 'b']})
    first = trained(tmp_path / 'one', options)
    assert len(asked) == 12
    files = [{path.name: path.read_bytes() for path in (tmp_path / f'cache_{name}').glob('*.npy')} for name in 'ab']
    assert files[0].keys() == files[1].keys() and all(files[0][name] != files[1][name] for name in files[0])
    assert_equal_weights(trained(tmp_path / 'two', options)['params'], first['params'])
    assert len(asked) == 12
    exchanged = {**options, 'teachers': {'a': {**teachers['a'], 'cache': teachers['b']['cache']}, 'b': teachers['b']}}
    with pytest.raises(OptionError, match='were made with other network_g, weights'):
        trained(tmp_path / 'three', exchanged)
