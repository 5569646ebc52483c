"""The commands that a user types, in their own processes."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import GAN, UNET, save_teacher, train_yaml, write_yaml

ROOT = Path(__file__).parents[2]


def command(*arguments, cwd, code=0, **environment):
    """Runs a command; returns what it printed."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **environment}
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert result.returncode == code, result.stdout[-3000:]
    return result.stdout


def gan_yaml(images, folder, **changes):
    return train_yaml(images, network_d=UNET, train__gan_opt=GAN['gan_opt'], train__optim_d=GAN['optim_d'],
                      train__feature_kd_opt={'type': 'MLPFeatureLoss'}, teacher=save_teacher(folder), **changes)


def test_torchrun_with_two_processes(tmp_path, images):
    options = write_yaml(tmp_path / 'tiny.yml', gan_yaml(images, tmp_path, train__total_iter=4))
    output = command('-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=29611', '-m', 'kd_cli.train',
                     '-opt', options, '--launcher', 'pytorch', cwd=tmp_path)
    assert 'World size (gpu number): 2' in output and output.count('Validation Tiny') == 1
    assert (tmp_path / 'experiments/tiny/models/net_g_latest.pth').exists()
    assert os.listdir(tmp_path / 'experiments') == ['tiny']  # one process makes the folders, none is archived


def test_the_stock_loop(tmp_path, images):
    """`--loop basicsr` hands BasicSR a plain YAML: environment variables, aliases and --force_yml already applied."""
    options = gan_yaml(images, tmp_path, train__total_iter=4)
    options['train']['adversarial_opt'] = options['train'].pop('gan_opt')
    for key in ('dataroot_gt', 'dataroot_lq'):
        options['datasets']['train'][key] = options['datasets']['train'][key].replace(str(images), '${KD_DATA}')
    output = command('-m', 'kd_cli.train', '-opt', write_yaml(tmp_path / 'tiny.yml', options), '--loop', 'basicsr',
                     '--force_yml', 'train:optim_g:lr=2e-4', cwd=tmp_path, KD_DATA=str(images))
    assert 'lr:(2.000e-04' in output and 'l_g_feature_kd' in output and 'End of training' in output
    state = torch.load(tmp_path / 'experiments/tiny/training_states/4.state', weights_only=True)
    assert state['aux'] and len(state['optimizers']) == 2


FOREIGN_TRAIN = """
import kd_models  # the added line
import sys
from os import path as osp
from torch import multiprocessing
import my_arch
from basicsr.train import train_pipeline

if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    train_pipeline(osp.abspath(osp.join(__file__, osp.pardir)))
"""
FOREIGN_ARCH = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class MyNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 12, 3, 1, 1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.last(self.first(x).relu()), 2)
"""


def test_a_foreign_project_with_one_added_line_and_spawn_workers(tmp_path, images):
    """Its own train.py, its own architecture, BasicSR's own loop and option reader."""
    (tmp_path / 'train.py').write_text(FOREIGN_TRAIN)
    (tmp_path / 'my_arch.py').write_text(FOREIGN_ARCH)
    teacher = {'network_g': {'type': 'MyNet', 'width': 8}, 'path': {'pretrain_network_g': str(tmp_path / 't.pth')}}
    weights = {'first.weight': torch.randn(8, 3, 3, 3), 'first.bias': torch.zeros(8),
               'last.weight': torch.randn(12, 8, 3, 3), 'last.bias': torch.zeros(12)}
    torch.save({'params': weights}, tmp_path / 't.pth')
    options = train_yaml(images, network_g={'type': 'MyNet', 'width': 4}, teacher=teacher, train__total_iter=2,
                         train__feature_kd_opt={'layers': {'first': 'first'}}, val__val_freq=2,
                         datasets__train__num_worker_per_gpu=1, val__suffix=None)
    output = command('train.py', '-opt', write_yaml(tmp_path / 'my.yml', options), cwd=tmp_path)
    assert 'l_g_feature_kd' in output and 'Validation Tiny' in output
    saved = torch.load(tmp_path / 'experiments/tiny/models/net_g_latest.pth', weights_only=True)
    assert set(saved['params']) == set(weights)


@pytest.mark.parametrize('change, message', [
    ({'train__feature_kd_opt': {'type': 'MLPFeatureLoss', 'layers': {'body.7': 'body.0'}}}, 'has no layer `body.7`'),
    ({'network_g__num_fat': 4}, 'Did you mean `num_feat`?'),
])
def test_mistakes_end_in_one_message(tmp_path, images, change, message):
    options = train_yaml(images, teacher=save_teacher(tmp_path), **change)
    output = command('-m', 'kd_cli.train', '-opt', write_yaml(tmp_path / 'tiny.yml', options), cwd=tmp_path, code=2)
    assert message in output and 'Traceback' not in output
    assert not any(line for line in output.splitlines() if line.startswith('error') and len(line) > 600)


def test_a_teacher_of_other_shapes_is_named(tmp_path, images):
    teacher = save_teacher(tmp_path)
    teacher['network_g']['num_feat'] = 20
    options = train_yaml(images, teacher=teacher, train__response_kd_opt={'type': 'L1Loss'})
    output = command('-m', 'kd_cli.train', '-opt', write_yaml(tmp_path / 'tiny.yml', options), cwd=tmp_path, code=2)
    assert 'teacher_g.pth does not fit EDSR: shapes differ' in output and 'Traceback' not in output


def test_code_in_a_yaml_file_does_not_run(tmp_path, images):
    path = write_yaml(tmp_path / 'tiny.yml', train_yaml(images))
    path.write_text(path.read_text() + f'evil: !!python/object/apply:os.system ["touch {tmp_path}/ran"]\n')
    output = command('-m', 'kd_cli.train', '-opt', path, cwd=tmp_path, code=2)
    assert 'error:' in output and 'Traceback' not in output and not (tmp_path / 'ran').exists()


def test_every_shipped_yaml_is_read_and_checked():
    """As the commands read them; data, teachers and results need not be there."""
    from basicsr.utils.registry import MODEL_REGISTRY

    from kd_models.distillation_model import DistillationModel
    from kd_utils.options import check_options, load_yaml, parse_options
    files = sorted((ROOT / 'options').rglob('*.yml'))
    assert files
    for file in files:
        opt, _ = parse_options(['-opt', str(file)], str(ROOT), is_train='train' in load_yaml(file))
        MODEL_REGISTRY.get(opt['model_type']).complete(opt)
        warnings = check_options(opt, DistillationModel.losses)
        assert not [w for w in warnings if 'nothing is distilled' not in w], f'{file}: {warnings}'
