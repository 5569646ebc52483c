"""The command line: BasicSR's options, and what is written into them."""
from __future__ import annotations

import pytest
import torch

from kd_utils.options import OptionError, check_options
from tests.test_kd_utils.option_files import DISTILLATION, LOSSES, SRGAN, TestOurModel, change, file_refusal, parse


def test_training_options_are_basicsrs(write, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    opt, args = parse(write(DISTILLATION), '--auto_resume', '--force_yml', 'teacher:cache=~/cache')
    assert opt['teacher']['cache'] == '/home/me/cache'
    assert opt['datasets']['train']['phase'] == 'train' and opt['datasets']['val']['phase'] == 'val'
    assert opt['datasets']['train']['scale'] == 4
    assert opt['datasets']['train']['dataroot_gt'] == 'datasets/gt'
    assert opt['teacher']['path']['pretrain_network_g'] == '/home/me/t.pth'
    assert opt['path'] == {
        'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None,
        'experiments_root': 'root/experiments/sdakd', 'models': 'root/experiments/sdakd/models',
        'training_states': 'root/experiments/sdakd/training_states', 'log': 'root/experiments/sdakd',
        'visualization': 'root/experiments/sdakd/visualization'}
    assert {key: opt[key] for key in ('auto_resume', 'is_train', 'dist', 'rank', 'world_size', 'root_path')} == {
        'auto_resume': True, 'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'root_path': 'root'}
    assert (args.launcher, args.local_rank, args.loop, args.messages) == ('none', 0, 'kd', [])
    check_options(opt, LOSSES)


def test_parsing_equals_basicsrs(write, monkeypatch):
    """Where the stock reader can read a file, ours reads the same."""
    from basicsr.utils import options as stock
    path = write(SRGAN.replace('num_gpu: 1', 'num_gpu: 0'))
    flags = ['--debug', '--force_yml', 'train:ema_decay=0.5', 'scale=4']
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', path, *flags])
    expected, _ = stock.parse_options('root', is_train=True)
    opt, _ = parse(path, *flags)
    assert opt.pop('root_path') == 'root' and opt['val'].pop('suffix') is None
    assert opt == expected


def test_a_validation_set_may_have_a_scale_of_its_own(write):
    """For networks of several scales; BasicSR would replace it."""
    opt, _ = parse(write(DISTILLATION), '--force_yml', 'datasets:val:scale=2', 'datasets:train:scale=2')
    assert [opt['datasets'][name]['scale'] for name in ('train', 'val')] == [4, 2]


def test_seeds_nothing(write):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    opt, _ = parse(write(DISTILLATION.replace('manual_seed: 0\n', '')))
    assert 'manual_seed' not in opt and torch.equal(torch.random.get_rng_state(), state)


def test_what_may_be_left_out(write):
    opt, _ = parse(write('name: a\ndatasets: {test_1: {name: b}}\n'), is_train=False)
    assert opt['num_gpu'] == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert opt['val'] == {'save_img': False, 'suffix': None}
    assert opt['path'] == {'results_root': 'root/results/a', 'log': 'root/results/a',
                           'visualization': 'root/results/a/visualization'}
    opt, _ = parse(write('name: a\nlogger: {print_freq: 1}\npath: ~\nval: {val_freq: 1}\n'))
    assert opt['logger'] == {'print_freq': 1, 'use_tb_logger': False}
    assert opt['val'] == {'val_freq': 1, 'save_img': False, 'suffix': None}
    assert 'val' not in parse(write('name: a\n'))[0]


def test_every_value_in_path_can_become_a_folder(write):
    opt, _ = parse(write('name: a\n'))
    assert all(isinstance(value, str) for value in opt['path'].values())


def test_debug(write):
    opt, _ = parse(write(DISTILLATION), '--debug')
    assert opt['name'] == 'debug_sdakd' and opt['path']['log'].endswith('debug_sdakd')
    assert opt['val']['val_freq'] == 8
    assert opt['logger']['print_freq'] == 1 and opt['logger']['save_checkpoint_freq'] == 8


def test_missing_gpu_is_a_message(write, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    opt, args = parse(write(SRGAN))
    assert opt['num_gpu'] == 0
    assert args.messages == ['`num_gpu: 1`, but there is no CUDA device here: running on the CPU.']


def test_gpus_are_counted(write, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    assert parse(write('name: a\nnum_gpu: auto\n'))[0]['num_gpu'] == 3
    assert parse(write('name: a\nnum_gpu: 2\n'))[0]['num_gpu'] == 2


def test_flags(write, monkeypatch):
    path = write('name: a\n')
    assert parse(path, '--local_rank', '3')[1].local_rank == 3
    assert parse(path, '--local-rank=2')[1].local_rank == 2
    monkeypatch.setenv('LOCAL_RANK', '1')
    opt, args = parse(path, '--launcher', 'pytorch', '--loop', 'basicsr')
    assert (args.local_rank, args.launcher, args.loop, opt['dist']) == (1, 'pytorch', 'basicsr', True)
    for wrong in (['--launcher', 'mpi'], ['--loop', 'own'], ['--unknown']):
        with pytest.raises(SystemExit):
            parse(path, *wrong)


def test_force_yml(write):
    forced = ['train:optim_g:lr=1e-4', 'a=[1,2]', 'b=~', 'c={d: 1e5}', 'e=x=y', 'f=-3', 'g=text', 'h: i = 2 ',
              'new:deep:key=true', 'empty=', 'quoted="1"', 'data=${KD_DATA}/x', 'none:below=1']
    opt, _ = parse(write('name: a\ntrain: {optim_g: {lr: 0.1}}\nnone: ~\n'), '--force_yml', *forced)
    assert opt['train']['optim_g']['lr'] == 1e-4
    assert (opt['a'], opt['b'], opt['c'], opt['e'], opt['f'], opt['g'], opt['h']) == (
        [1, 2], None, {'d': 1e5}, 'x=y', -3, 'text', {'i': 2})
    assert opt['new'] == {'deep': {'key': True}} and opt['empty'] is None and opt['quoted'] == '1'
    assert opt['data'] == 'datasets/x' and opt['none'] == {'below': 1}


def test_force_yml_twice(write):
    opt, _ = parse(write('name: a\n'), '--force_yml', 'a=1', 'b=2', '--force_yml', 'c=3', 'a=4')
    assert (opt['a'], opt['b'], opt['c']) == (4, 2, 3)


def test_home_in_weights_of_our_losses(write, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    opt, _ = parse(write('name: a\ntrain:\n  a_opt: {type: TestOurWeightsLoss, weights: ~/vgg.pth}\n'
                         '  b_opt: {type: TestForeignWeightsLoss, weights: ~/x}\n  c_opt: 3\n  4_opt: {type: [1]}\n'))
    assert opt['train']['a_opt']['weights'] == '/home/me/vgg.pth' and opt['train']['b_opt']['weights'] == '~/x'


def test_weights_of_a_models_default_loss_are_a_file_too(write, monkeypatch, files):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setitem(TestOurModel.losses, 'own', 'TestOurWeightsLoss')
    opt, _ = parse(write('name: a\nmodel_type: TestOurModel\ntrain:\n  own_opt: {weights: ~/vgg.pth}\n'))
    assert opt['train']['own_opt']['weights'] == '/home/me/vgg.pth'
    files.update(model_type='TestOurModel')
    assert '`train.own_opt.weights`: `gone.pth` is missing' in \
        file_refusal(change(files, 'train.own_opt', {'weights': 'gone.pth'}))


def test_an_lmdb_may_end_in_a_slash(write):
    opt, _ = parse(write(DISTILLATION.replace('${KD_DATA}/gt', 'gt.lmdb/')))
    assert opt['datasets']['train']['dataroot_gt'] == 'gt.lmdb'


@pytest.mark.parametrize(('entry', 'fragment'), [
    ('train', 'Write it as train:optim_g:lr=1e-4'),
    ('train::lr=1', 'Write it as train:optim_g:lr=1e-4'),
    ('=1', 'Write it as train:optim_g:lr=1e-4'),
    ('name:x=1', "`name` cannot be 'a'. Write a section"),
    ('list:0:x=1', '`list` cannot be [1]. Write a section'),
    ('x=[1', '--force_yml x=[1:1: '),
    ('x={a: 1, a: 2}', '`a` is there twice'),
    ('x=!!python/object/apply:os.system ["touch marker"]', 'is not allowed'),
    ('x=__import__("os").system("touch marker")', None),
    ('__class__"]=1;import os;os.system("touch marker");opt["x=1', None),
])
def test_force_yml_refuses_and_runs_nothing(write, tmp_path, entry, fragment):
    path = write('name: a\nlist: [1]\n')
    if fragment is None:
        parse(path, '--force_yml', entry)  # a text or a strange key, to be refused by the check
    else:
        with pytest.raises(OptionError) as caught:
            parse(path, '--force_yml', entry)
        assert fragment in str(caught.value)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(('text', 'fragment'), [
    ('scale: 4', '`name` cannot be ~. Write text'),
    ('name: 5', '`name` cannot be 5. Write text, in quotes where it looks like a number, without / and'),
    ('name: ../datasets', "`name` cannot be '../datasets'. Write text"),
    ('name: a\\b', '`name` cannot be'),
    ('name: ..', "`name` cannot be '..'."),
    ('name: .', "`name` cannot be '.'."),
    ('name: a\nteacher: {path: abc}', "`teacher.path` cannot be 'abc'. Write a section"),
    ('name: a\nnum_gpu: many', "`num_gpu` cannot be 'many'. Write `auto` or a number of GPUs."),
    ('name: a\nnum_gpu: true', '`num_gpu` cannot be True'),
    ('name: a\ndatasets: [1]', '`datasets` cannot be [1]. Write a section'),
    ('name: a\ndatasets: {train: here}', "`datasets.train` cannot be 'here'. Write a section"),
    ('name: a\npath: here', "`path` cannot be 'here'. Write a section"),
    ('name: a\nlogger: 3', '`logger` cannot be 3. Write a section'),
    ('name: a\nval: true', '`val` cannot be True. Write a section'),
])
def test_what_cannot_be_parsed(write, text, fragment):
    with pytest.raises(OptionError) as caught:
        parse(write(text))
    assert fragment in str(caught.value)
