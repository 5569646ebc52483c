"""A refused run leaves everything as it was."""
import os

import pytest
import torch

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError
from tests.support import save_teacher, train_yaml, write_yaml


def tree(folder):
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


@pytest.mark.parametrize('change, error, message', [
    ({'train__feature_kd_opt': {'layers': {'body.9': 'body.0'}}}, OptionError, 'no layer `body.9`'),
    ({'train__feature_kd_opt': {'hidden': 'wide'}}, OptionError, 'hidden is `wide`'),
    ({'network_g__upscale': 4}, OptionError, 'turns an LR crop'),
    ({'path__pretrain_network_g': 'teacher_g.pth'}, CheckpointError, 'shapes differ'),
    ({'datasets__train__batch_size_per_gpu': 7}, OptionError, 'fewer than a batch of 7'),
    ({'val__metrics__psnr__reference': 'teacher', 'teacher': None}, OptionError, 'needs `teacher`'),
    ({'datasets__val_2': 'same name'}, OptionError, 'two sets with `name: Tiny`'),
    ({'train__stages': [{'name': 'a', 'iters': 3, 'losses': ['pixel']}]}, OptionError, 'add up to 3'),
    ({'train__gan_opt': {'gan_type': 'vanilla'}}, OptionError, '`network_d` is missing'),
])
def test_nothing_is_created_or_archived(tmp_path, images, change, error, message):
    options = train_yaml(images, train__total_iter=2, val__val_freq=2)
    path = write_yaml(tmp_path / 'tiny.yml', options)
    train_pipeline(str(tmp_path), ['-opt', str(path)])
    teacher = save_teacher(tmp_path)
    change = dict(change)
    if change.get('datasets__val_2'):
        change['datasets__val_2'] = options['datasets']['val']
    if 'path__pretrain_network_g' in change:
        change['path__pretrain_network_g'] = teacher['path']['pretrain_network_g']
    write_yaml(path, train_yaml(images, **{'teacher': teacher, **change}))
    before = tree(tmp_path)
    with pytest.raises(error, match=message):
        train_pipeline(str(tmp_path), ['-opt', str(path)])
    assert tree(tmp_path) == before


def test_a_refused_test_keeps_older_results(tmp_path, images):
    options = train_yaml(images)
    test = {'name': 'tiny', 'model_type': 'DistillationModel', 'scale': 2, 'num_gpu': 0,
            'datasets': {'test_1': {**options['datasets']['val'], 'name': 'Tiny'}}, 'network_g': options['network_g'],
            'path': {'pretrain_network_g': save_teacher(tmp_path)['path']['pretrain_network_g']}, 'val': {}}
    (tmp_path / 'results' / 'tiny').mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match='shapes differ'):
        run_test(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'test.yml', test))])
    assert tree(tmp_path) == [*before, str(tmp_path / 'test.yml')]


def test_options_of_an_older_run_can_be_run_again(tmp_path, images):
    """`-opt experiments/NAME/options.yml`: its folder is archived on the way."""
    train_pipeline(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'tiny.yml', train_yaml(images)))])
    first = torch.load(tmp_path / 'experiments/tiny/models/net_g_latest.pth')
    train_pipeline(str(tmp_path), ['-opt', str(tmp_path / 'experiments/tiny/options.yml')])
    second = torch.load(tmp_path / 'experiments/tiny/models/net_g_latest.pth')
    assert all(torch.equal(first['params'][name], second['params'][name]) for name in first['params'])


def test_a_network_set_to_none_resumes(tmp_path, images):
    options = train_yaml(images, network_d=None, train__total_iter=4)
    train_pipeline(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'tiny.yml', options))])
    options['train']['total_iter'] = 6
    train_pipeline(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'tiny.yml', options)), '--auto_resume'])
    assert (tmp_path / 'experiments/tiny/models/net_g_6.pth').exists()


def test_slurm_without_a_gpu(tmp_path, images):
    """BasicSR would divide by the number of GPUs."""
    path = write_yaml(tmp_path / 'tiny.yml', train_yaml(images))
    with pytest.raises(OptionError, match='--launcher slurm needs a GPU for each process.*torchrun'):
        train_pipeline(str(tmp_path), ['-opt', str(path), '--launcher', 'slurm'])
    assert not (tmp_path / 'experiments').exists()
