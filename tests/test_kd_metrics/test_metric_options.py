"""What the options of these metrics may say."""
import importlib.util

import pytest

import kd_models  # noqa: F401  registers the metrics
from kd_models.distillation_model import DistillationModel
from kd_utils.options import OptionError, check_files, check_options, parse_options
from tests.support import train_yaml, write_yaml

METRICS = {
    'lpips': {'type': 'calculate_lpips', 'crop_border': 4, 'net': 'alex', 'better': 'lower'},
    'vgg': {'type': 'calculate_vgg_distance', 'crop_border': 4, 'weights': 'vgg.pth', 'layer_weights': {'conv3_1': 1},
            'criterion': 'l1', 'better': 'lower'},
    'random_fid': {'type': 'RandomFID', 'seed': 3, 'real': 'real', 'better': 'lower', 'reference': 'gt'},
}


@pytest.fixture
def check(tmp_path, images, monkeypatch):
    """Checks a file with these metrics and some changed keys; the options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'vgg.pth').touch()

    def checked(model_type='DistillationModel', **changes):
        options = train_yaml(images, model_type=model_type, val__metrics=METRICS,
                             **{f'val__metrics__{key}': value for key, value in changes.items()})
        opt, _ = parse_options(['-opt', str(write_yaml(tmp_path / 'x.yml', options))], str(tmp_path))
        check_options(opt, DistillationModel.losses)
        check_files(opt)
        return opt
    return checked


@pytest.fixture
def real(tmp_path, images):
    (tmp_path / 'real').symlink_to(images / 'hr')


def test_they_are_known_and_home_is_expanded(check, real, tmp_path):
    opt = check(random_fid__real='~/real', vgg__weights='~/vgg.pth')
    assert opt['val']['metrics']['random_fid']['real'] == str(tmp_path / 'real')
    assert opt['val']['metrics']['vgg']['weights'] == str(tmp_path / 'vgg.pth')


@pytest.mark.parametrize('key, value, message', [
    ('lpips__net', 'vg', "cannot be 'vg'. Write one of `vgg`, `alex`, `squeeze`. Did you mean `vgg`?"),
    ('lpips__wieghts', 'x', 'Unknown key `val.metrics.lpips.wieghts`. Did you mean `weights`?'),  # not swallowed
    ('lpips__weights', 'alexnet-owt-7be5be79.pth', 'is missing. Download alexnet-owt-7be5be79.pth from https'),
    ('vgg__weights', 'vgh.pth', '`vgh.pth` is missing. Name a file with weights. Did you mean `vgg.pth`?'),
    ('vgg__layer_weights', {'conv9': 1}, 'there is no layer `conv9`'),
    ('vgg__criterion', 'l3', 'Write one of `l1`, `l2`, `fro`'),
    ('random_fid__real', 'rael', 'there is no `rael`'),
    ('random_fid__seed', -1, '`val.metrics.random_fid.seed` cannot be -1'),
    ('random_fid__crop_border', 4, 'Unknown key `val.metrics.random_fid.crop_border`'),
])
def test_mistakes_are_refused(check, real, key, value, message):
    with pytest.raises(OptionError) as refused:
        check(**{key: value})
    assert message in str(refused.value)


def test_fid_needs_its_package(check, real, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'torch_fidelity' else find(name))
    with pytest.raises(OptionError, match='FID needs the package torch-fidelity.* `pip install torch-fidelity`'):
        check(fid={'type': 'FID'})
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if name == 'torch_fidelity' else find(name))
    check(fid={'type': 'FID', 'better': 'lower'})


def test_basicsrs_models_know_no_metrics_of_a_set(check, real):
    with pytest.raises(OptionError, match='RandomFID is of a whole set, which SRModel does not know. Set `model_type'):
        check('SRModel')
