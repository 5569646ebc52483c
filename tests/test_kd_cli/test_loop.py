"""The loop by its own functions: files, resume, the stock loop beside it."""
import hashlib
import inspect
import json
import os
import re

import basicsr.test
import basicsr.train
import pytest
import torch
import yaml

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_models.distillation_model import DistillationModel
from kd_utils.options import OptionError, load_yaml
from tests.support import GAN_YAML, assert_equal_weights, save_teacher, train_yaml, write_yaml


def trained(root, options, *arguments):
    root.mkdir(exist_ok=True)
    train_pipeline(str(root), ['-opt', str(write_yaml(root / 'tiny.yml', options)), *arguments])
    return root / 'experiments' / options['name']


def test_files(tmp_path, images):
    folder = trained(tmp_path, train_yaml(images), '--force_yml', 'train:optim_g:lr=5e-4')
    assert {'models', 'training_states', 'visualization', 'tiny.yml', 'options.yml', 'validation.jsonl'} \
        <= set(os.listdir(folder))
    assert set(os.listdir(folder / 'models')) == {'net_g_4.pth', 'net_g_8.pth', 'net_g_latest.pth'}
    assert set(os.listdir(folder / 'training_states')) == {'4.state', '8.state'}
    assert yaml.safe_load((folder / 'options.yml').read_text())['train']['optim_g']['lr'] == 5e-4
    lines = [json.loads(line) for line in (folder / 'validation.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in lines] == [4, 8]
    latest = torch.load(folder / 'models' / 'net_g_latest.pth')
    assert_equal_weights(latest['params_ema'], torch.load(folder / 'models' / 'net_g_8.pth')['params_ema'])


def test_the_log_says_how_fast_it_is_at_each_reading(tmp_path, images):
    folder = trained(tmp_path, train_yaml(images), '--force_yml', 'logger:print_freq=4')
    log = next(folder.glob('train_*.log')).read_text()
    assert len(re.findall(r'Speed: [\d.e+]+ images/s, \d+ % of the time waiting for data, peak memory', log)) == 2


def test_a_schedule_free_training_is_resumed_by_the_loop(tmp_path, images):
    pytest.importorskip('schedulefree')
    free = {'type': 'schedulefree.AdamWScheduleFree', 'lr': 1e-3}
    changes = {'train__optim_g': free, 'train__optim_d': free, 'train__scheduler': None, 'train__ema_decay': 0}
    options = train_yaml(images, teacher=save_teacher(tmp_path), logger__save_checkpoint_freq=8,
                         **{**GAN_YAML, **changes})
    whole = trained(tmp_path / 'whole', options)
    part = trained(tmp_path / 'part', {**options, 'train': {**options['train'], 'total_iter': 3}})
    trained(tmp_path / 'part', options, '--auto_resume')
    for name in ('net_g_8.pth', 'net_d_8.pth', 'net_g_latest.pth'):
        a, b = (torch.load(folder / 'models' / name)['params'] for folder in (whole, part))
        assert_equal_weights(a, b)
    last = [(folder / 'validation.jsonl').read_text().splitlines()[-1] for folder in (whole, part)]
    assert last[0] == last[1]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('stop', [3, 4], ids=['epoch_end', 'mid_epoch'])
def test_resume_on_a_cpu_equals_the_uninterrupted_run(tmp_path, images, stop, workers):
    """From another working directory, with EMA, discriminator, adaptors and best metrics."""
    options = train_yaml(images, teacher=save_teacher(tmp_path), logger__save_checkpoint_freq=stop,
                         datasets__train__num_worker_per_gpu=workers, **GAN_YAML)
    whole = trained(tmp_path / 'whole', options)
    part = trained(tmp_path / 'part', {**options, 'train': {**options['train'], 'total_iter': stop}})
    assert not (part / 'models' / 'net_g_8.pth').exists()
    trained(tmp_path / 'part', options, '--auto_resume')
    for name in ('net_g_8.pth', 'net_d_8.pth', 'net_g_latest.pth'):
        a, b = (torch.load(folder / 'models' / name) for folder in (whole, part))
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_weights(a[key], b[key])
    a, b = (torch.load(folder / 'training_states' / '8.state') for folder in (whole, part))
    assert_equal_weights(a['aux'], b['aux'])
    assert str(a['optimizers']) == str(b['optimizers']) and a['schedulers'] == b['schedulers']
    last = [(folder / 'validation.jsonl').read_text().splitlines()[-1] for folder in (whole, part)]
    assert last[0] == last[1]
    if stop == 4:
        assert a['best_metric_results'] == b['best_metric_results']


def test_a_new_run_archives_the_old_one(tmp_path, images):
    options = train_yaml(images)
    trained(tmp_path, options)
    trained(tmp_path, options)
    assert len([name for name in os.listdir(tmp_path / 'experiments') if '_archived_' in name]) == 1


def test_testing_a_student(tmp_path, images):
    """Promise 5, by commands: DistillationModel and SRModel give the same figures."""
    options = train_yaml(images)
    folder = trained(tmp_path, options)
    results = {}
    for model_type in ('DistillationModel', 'SRModel'):
        test = {'name': model_type, 'model_type': model_type, 'scale': 2, 'num_gpu': 0,
                'datasets': {'test_1': {**options['datasets']['val'], 'name': 'Tiny'}},
                'network_g': options['network_g'],
                'path': {'pretrain_network_g': str(folder / 'models' / 'net_g_latest.pth'),
                         'param_key_g': 'params_ema', 'strict_load_g': True},
                'val': {'save_img': True, 'suffix': None, 'metrics': options['val']['metrics']}}
        run_test(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'test.yml', test))])
        images_made = tmp_path / 'results' / model_type / 'visualization' / 'Tiny'
        results[model_type] = [(images_made / f'{i}_{model_type}.png').read_bytes() for i in range(6)]
    assert results['DistillationModel'] == results['SRModel']
    measured = json.loads((tmp_path / 'results' / 'DistillationModel' / 'metrics_Tiny.json').read_text())
    last = json.loads((folder / 'validation.jsonl').read_text().splitlines()[-1])
    assert measured['mean'] == last['metrics']


def test_algorithms_are_not_tried_on_every_size_of_image(tmp_path, images, monkeypatch):
    """cuDNN's benchmark is on for training crops, and off for whole images."""
    seen = {'training': set(), 'validation': set()}
    for task, method in (('training', DistillationModel.optimize_parameters), ('validation', DistillationModel.test)):
        def asked(self, *arguments, task=task, method=method):
            seen[task].add(torch.backends.cudnn.benchmark)
            return method(self, *arguments)
        monkeypatch.setattr(DistillationModel, method.__name__, asked)
    options = train_yaml(images)
    trained(tmp_path, options)
    assert seen == {'training': {True}, 'validation': {False}}
    torch.backends.cudnn.benchmark = True
    options['datasets'] = {'test': options['datasets']['val']}
    options['path'] = {'pretrain_network_g': str(tmp_path / f'experiments/{options["name"]}/models/net_g_latest.pth')}
    run_test(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'test.yml', options))])
    assert seen['validation'] == {False}


def test_an_epoch_without_a_batch_is_refused(tmp_path, images):
    with pytest.raises(OptionError, match='fewer than a batch of 7.*dataset_enlarge_ratio'):
        trained(tmp_path, train_yaml(images, datasets__train__batch_size_per_gpu=7))


def test_lmdb(tmp_path, images):
    from kd_cli.prepare import main as prepare
    for folder in ('hr', 'lr'):
        prepare(['lmdb', str(images / folder), str(tmp_path / f'{folder}.lmdb')])
    folder = trained(tmp_path, train_yaml(
        images, datasets__train__dataroot_gt=str(tmp_path / 'hr.lmdb'),
        datasets__train__dataroot_lq=str(tmp_path / 'lr.lmdb'), datasets__train__io_backend={'type': 'lmdb'}))
    assert (folder / 'models' / 'net_g_8.pth').exists()


MIRRORED = {
    'train_pipeline': (basicsr.train, {'1.4.2': 'daf6515cece632b4'}),
    'create_train_val_dataloader': (basicsr.train, {'1.4.2': '7dc43480652eb6f4'}),
    'load_resume_state': (basicsr.train, {'1.4.2': '9f0a2c11735b9809'}),
    'test_pipeline': (basicsr.test, {'1.4.2': '6500d8cc3c47150b'}),
}


@pytest.mark.parametrize('name', MIRRORED)
def test_the_stock_functions_that_the_loop_mirrors_are_the_known_ones(name):
    """When this fails, BasicSR has changed: read its new function, mirror what matters, and add its hash."""
    module, known = MIRRORED[name]
    digest = hashlib.sha256(inspect.getsource(getattr(module, name)).encode()).hexdigest()[:16]
    assert digest in known.values()


def test_options_are_printed_as_a_file_of_their_own(tmp_path, capsys, monkeypatch):
    """Those of the bases and of the method are in it; neither data nor weights need be there, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    variant = {'base': 'train/SDAKD/sdakd_realesrgan_x4_quarter.yml', 'name': 'narrow', 'network_g': {'num_feat': 8},
               'without': ['train.feature_kd_d_opt'], 'teacher': {'path': {'pretrain_network_g': 'nowhere.pth'}}}
    train_pipeline('.', ['--print-options', str(write_yaml(tmp_path / 'variant.yml', variant))])
    first = capsys.readouterr()
    printed = yaml.safe_load(first.out)
    whole = {**load_yaml('variant.yml'), **{key: printed[key] for key in ('path', 'datasets', 'val', 'train')}}
    assert printed == whole and not {'base', 'without', 'rank', 'root_path'} & printed.keys()
    assert printed['network_g']['num_feat'] == 8 and printed['num_gpu'] == 'auto' and 'log' not in printed['path']
    assert printed['train']['feature_kd_d_opt'] == {'type': 'MLPFeatureLoss', 'loss_weight': 1.0}  # SDAKD's own
    assert '`train.feature_kd_d_opt` is not in the file' in first.err
    (tmp_path / 'printed.yml').write_text(first.out)
    train_pipeline('.', ['--print-options', 'printed.yml'])
    assert capsys.readouterr().out == first.out
    with pytest.raises(OptionError, match='network_g.num_feat'):
        train_pipeline('.', ['--print-options', 'variant.yml', '--force_yml', 'network_g:num_feat=few'])
    assert sorted(os.listdir()) == ['printed.yml', 'variant.yml']
