"""Metrics in validation: of the whole set, without ground truth, unavailable, and failing."""
import json

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_niqe
from basicsr.utils import tensor2img
from basicsr.utils.registry import METRIC_REGISTRY

from kd_cli.loop import test_pipeline as run_test
from kd_metrics import MetricUnavailable
from kd_metrics.frechet_metric import RandomFID
from kd_models.distillation_model import DistillationModel
from tests.support import batches, model_options, save_teacher, train_yaml, write_yaml

PSNR = {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}
RANDOM_FID = {'type': 'RandomFID', 'better': 'lower'}


class Loader(list):
    """A validation loader."""

    def __init__(self, items, name='Val', keys=('lq', 'gt')):
        super().__init__({**{key: item[key] for key in keys}, 'lq_path': [f'{i}.png']} for i, item in enumerate(items))
        self.dataset = type('Dataset', (), {'opt': {'name': name}})


@pytest.fixture
def build(tmp_path):
    """A model in training with these metrics."""
    def with_metrics(**metrics):
        return DistillationModel(model_options(tmp_path, val={'metrics': metrics, 'val_freq': 1}))
    return with_metrics


@pytest.fixture
def logged(warnings_logged):
    """The warnings so far."""
    return lambda: warnings_logged


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / 'validation.jsonl').read_text().splitlines()]


def outputs(model, items) -> list[np.ndarray]:
    with torch.no_grad():
        return [tensor2img([model.net_g(item['lq'])]) for item in items]


def test_a_metric_of_the_set(build, tmp_path):
    items = batches(4, batch=1)
    model = build(psnr=PSNR, random_fid=RANDOM_FID)
    model.validation(Loader(items), 1, None, save_img=False)
    metric = RandomFID()
    for image, item in zip(outputs(model, items), items, strict=True):
        metric.update(image, tensor2img([item['gt']]))
    expected = metric.compute()
    assert lines(tmp_path)[0]['metrics'] == {'psnr': pytest.approx(model.metric_results['psnr']),
                                             'random_fid': pytest.approx(expected, rel=1e-9)}
    with torch.no_grad():
        model.net_g.conv_last.bias += 0.5  # worse
    model.validation(Loader(items), 2, None, save_img=False)
    best = model.best_metric_results['Val']['random_fid']
    assert model.metric_results['random_fid'] > best['val'] == pytest.approx(expected) and best['iter'] == 1


def test_the_file_of_a_test(tmp_path, images):
    """`mean` has the value of the set, the images do not."""
    test = {'name': 'tiny', 'model_type': 'DistillationModel', 'scale': 2, 'num_gpu': 0,
            'datasets': {'test_1': {**train_yaml(images)['datasets']['val'], 'name': 'Tiny'}},
            'network_g': (teacher := save_teacher(tmp_path))['network_g'],
            'path': {'pretrain_network_g': teacher['path']['pretrain_network_g']},
            'val': {'save_img': False, 'suffix': None, 'metrics': {'random_fid': RANDOM_FID, 'psnr': PSNR}}}
    run_test(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'test.yml', test))])
    content = json.loads((tmp_path / 'results' / 'tiny' / 'metrics_Tiny.json').read_text())
    assert set(content['mean']) == {'random_fid', 'psnr'} and content['mean']['random_fid'] > 0
    assert len(content['images']) == 6 and all(set(values) == {'psnr'} for values in content['images'].values())


def test_self_ensemble_is_labelled(tmp_path, images, logged):
    """In the log, in the file of a test, and in the lines of a training."""
    val = {'self_ensemble': True, 'val_freq': 1, 'metrics': {'psnr': PSNR}}
    model = DistillationModel(model_options(tmp_path, val=val))
    model.validation(Loader(batches(1, batch=1)), 1, None, save_img=False)
    assert 'Val: x8 self-ensemble is on, eight passes per image.' in logged()
    assert lines(tmp_path)[0]['self_ensemble'] is True
    model.opt.update(is_train=False)
    model.opt['path']['results_root'] = str(tmp_path)
    model.validation(Loader(batches(1, batch=1)), 'test', None, save_img=False)
    assert json.loads((tmp_path / 'metrics_Val.json').read_text())['self_ensemble'] is True
    model.opt['val']['self_ensemble'] = False
    model.validation(Loader(batches(1, batch=1)), 'test', None, save_img=False)
    assert json.loads((tmp_path / 'metrics_Val.json').read_text())['self_ensemble'] is False


def test_a_value_that_is_no_number_leaves_the_metric_out(build, logged):
    model = build(psnr=PSNR)
    model.validation(Loader(batches(1, size=2, batch=1)), 1, None, save_img=False)  # nothing is left of 4x4
    assert model.metric_results == {}
    assert any('It is not a number for 0, which may be too small for it.' in text for text in logged())


def test_against_the_teacher(tmp_path):
    teacher = save_teacher(tmp_path)
    model = DistillationModel(model_options(
        tmp_path, network_g=teacher['network_g'], teacher=teacher,
        val={'metrics': {'same': {**RANDOM_FID, 'reference': 'teacher'}}, 'val_freq': 1}))
    model.net_g.load_state_dict(torch.load(teacher['path']['pretrain_network_g'])['params'])
    model.validation(Loader(batches(3, batch=1), keys=('lq', )), 1, None, save_img=False)
    assert model.metric_results == {'same': pytest.approx(0, abs=1e-9)}


def test_without_ground_truth(build, tmp_path, logged):
    """NIQE is measured, a set of real images takes the place of the ground truth, the rest is left out."""
    (tmp_path / 'real').mkdir()
    for i, item in enumerate(batches(3, batch=1)):
        cv2.imwrite(str(tmp_path / 'real' / f'{i}.png'), tensor2img([item['gt']]))
    items = batches(2, size=100, batch=1)
    model = build(psnr=PSNR, niqe={'type': 'calculate_niqe', 'crop_border': 2, 'better': 'lower'},
                  random_fid=RANDOM_FID, to_real={**RANDOM_FID, 'real': str(tmp_path / 'real')})
    for iteration in (1, 2):
        model.validation(Loader(items, keys=('lq', )), iteration, None, save_img=False)
    assert set(lines(tmp_path)[1]['metrics']) == {'niqe', 'to_real'}
    niqe = [calculate_niqe(image, crop_border=2) for image in outputs(model, items)]
    assert model.metric_results['niqe'] == pytest.approx(np.mean(niqe))
    said = [message for message in logged() if 'left out' in message]
    assert len(said) == 2  # not again in the second validation
    assert 'Val: the metric psnr is left out. There is no ground truth' in said[0]
    assert 'random_fid is left out. There is no ground truth' in said[1] and 'real:' in said[1]


def test_what_is_unavailable_is_asked_once_and_left_out(build, tmp_path, logged, monkeypatch):
    asked = []

    def calculate_offline(img, img2, **kwargs):
        asked.append(img)
        raise MetricUnavailable('No network here. Get one.')
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'calculate_offline', calculate_offline)
    model = build(offline={'type': 'calculate_offline'}, psnr=PSNR)
    for name in ('A', 'A', 'B'):
        model.validation(Loader(batches(3, batch=1), name), 1, None, save_img=False)
    assert len(asked) == 2  # once for each set
    assert [set(line['metrics']) for line in lines(tmp_path)] == [{'psnr'}] * 3
    assert len([message for message in logged() if 'No network here' in message]) == 1


def test_a_set_of_one_image_has_no_frechet_distance(build, tmp_path, logged):
    model = build(random_fid=RANDOM_FID, psnr=PSNR)
    model.validation(Loader(batches(1, batch=1)), 1, None, save_img=False)
    assert set(model.metric_results) == {'psnr'}
    assert any('needs two images at least' in message for message in logged())


def test_a_metric_that_fails_does_not_end_the_run(build, tmp_path, logged):
    """NIQE of images without two of its blocks: left out of this validation, with the images measured before."""
    model = build(niqe={'type': 'calculate_niqe', 'crop_border': 0}, psnr=PSNR)
    mixed = [*batches(1, size=100, batch=1), *batches(1, size=20, batch=1)]
    model.validation(Loader(mixed), 1, None, save_img=False)
    assert set(model.metric_results) == {'psnr'}
    assert any('niqe is left out of this validation, it failed on 1 (' in message for message in logged())
    model.validation(Loader(mixed[:1]), 2, None, save_img=False)
    assert set(model.metric_results) == {'psnr', 'niqe'}


def test_a_value_of_the_set_that_is_not_a_number(build, tmp_path, logged, monkeypatch):
    """It is neither reported nor compared; the next validation may have one."""
    model = build(random_fid=RANDOM_FID, psnr=PSNR)
    with monkeypatch.context() as patched:
        patched.setattr(RandomFID, 'compute', lambda metric: float('nan'))
        model.validation(Loader(batches(2, batch=1)), 1, None, save_img=False)
    assert set(model.metric_results) == {'psnr'} and lines(tmp_path)[0]['metrics'].keys() == {'psnr'}
    assert any('it is not a number' in message for message in logged())
    model.validation(Loader(batches(2, batch=1)), 2, None, save_img=False)
    assert set(model.metric_results) == {'psnr', 'random_fid'}


def test_validation_leaves_the_random_numbers_of_training_alone(build):
    model = build(random_fid={**RANDOM_FID, 'seed': 77})
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model.validation(Loader(batches(2, batch=1)), 1, None, save_img=False)
    assert torch.equal(state, torch.get_rng_state())
