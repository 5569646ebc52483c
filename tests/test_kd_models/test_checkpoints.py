"""Checkpoints: what is written, what decides which is the best, and from which states a run goes on."""
import pytest
import torch

from kd_models.checkpoints import metric_of_best, value_of_best
from kd_utils import checkpoint
from kd_utils.options import OptionError
from tests.support import assert_equal_weights, batches, build, full_options, gan_options, model_options, train, weights


def test_a_checkpoint_is_complete(tmp_path):
    """The state names all its files; the latest networks are of no state."""
    model = build(full_options(tmp_path))
    train(model, batches(2))
    model.save(3, 2)
    model.save(3, -1)
    state = checkpoint.load_complete(tmp_path / 'training_states/2.state', tmp_path / 'models')
    assert (state['epoch'], state['iter'], list(state['files'])) == (3, 2, ['models/net_g_2.pth', 'models/net_d_2.pth'])
    assert sorted(path.name for path in tmp_path.glob('*/net_*')) == ['net_d_2.pth', 'net_d_latest.pth', 'net_g_2.pth',
                                                                      'net_g_latest.pth']
    latest = torch.load(tmp_path / 'models/net_g_latest.pth')
    assert_equal_weights(latest['params'], weights(model.net_g))
    assert_equal_weights(latest['params_ema'], weights(model.net_g_ema))


def test_without_an_average_there_is_none_in_the_file(tmp_path):
    build(model_options(tmp_path)).save(0, -1)
    assert list(torch.load(tmp_path / 'models/net_g_latest.pth')) == ['params']


def test_the_best_is_by_its_metric_at_its_iteration():
    psnr = {'type': 'calculate_psnr', 'crop_border': 2}
    opt = {'logger': {'keep_best': 'psnr'}, 'val': {'metrics': {'psnr': psnr}}}
    validated = {'iter': 4, 'metrics': {'A': {'ssim': 0.5}, 'B': {'ssim': 0.6, 'psnr': 30.}, 'C': {'psnr': 20.}}}
    assert value_of_best(opt, validated, 4) == 30. and metric_of_best(opt) == ['psnr', psnr]
    assert value_of_best(opt, validated, 5) is None and value_of_best(opt, {}, 4) is None
    assert value_of_best({'logger': {}}, validated, 4) is None and metric_of_best({'logger': {}}) == [None, None]


@pytest.mark.parametrize('option', [{}, {'type': 'SGD', 'lr': 1e-3}])
def test_a_state_of_another_kind_of_run_is_refused(tmp_path, option):
    model = build(model_options(tmp_path))
    train(model, batches(1))
    model.save(0, 1)
    state = torch.load(tmp_path / 'training_states' / '1.state')
    other = build(model_options(tmp_path, {'optim_g': option}) if option else gan_options(tmp_path))
    with pytest.raises(OptionError, match='of a run with other networks, losses or optimizers'):
        other.resume_training(state)


@pytest.mark.parametrize('fused', [(False, True), (True, False)])
def test_a_state_of_another_device_goes_on(tmp_path, fused):
    """On a GPU Adam is fused; a CPU's can be, too."""
    model, resumed = (build(model_options(tmp_path, {'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': value}}))
                      for value in fused)
    train(model, batches(2))
    model.save(0, 2)
    resumed.net_g.load_state_dict(model.net_g.state_dict())
    resumed.resume_training(torch.load(tmp_path / 'training_states' / '2.state'))
    for of_both in (model, resumed):
        train(of_both, batches(1), first=3)
    for name, value in weights(model.net_g).items():
        torch.testing.assert_close(weights(resumed.net_g)[name], value)


def test_an_extended_run_follows_the_new_schedule(tmp_path):
    def rates(model, first, last):
        return [(model.update_learning_rate(i), model.get_current_learning_rate())[1] for i in range(first, last + 1)]
    cosine = {'type': 'CosineAnnealingRestartLR', 'eta_min': 1e-5}
    short, long = ({'total_iter': n, 'scheduler': {**cosine, 'periods': [n]}} for n in (4, 8))
    model = build(model_options(tmp_path, short))
    rates(model, 1, 4)
    model.save(0, 4)
    extended, whole = build(model_options(tmp_path, long)), build(model_options(tmp_path, long))
    extended.resume_training(torch.load(tmp_path / 'training_states' / '4.state'))
    assert rates(extended, 5, 8) == rates(whole, 1, 8)[4:]
