"""The alarm of adversarial training: silent while it goes well, early where it does not."""
import math

import pytest
import torch
from basicsr.models import build_model

from kd_models.alarm import READINGS, CollapseAlarm
from tests.support import batches, gan_options, model_options, train


def test_a_loss_that_is_not_finite_is_named_once():
    alarm = CollapseAlarm()
    assert alarm.check({'l_g_pix': 0.1, 'l_g_gan': 2.0}, {}) == []
    [message] = alarm.check({'l_g_pix': 0.1, 'l_g_gan': math.nan}, {})
    assert message.startswith('Not finite: l_g_gan.') and 'lower lr' in message
    assert alarm.check({'l_g_pix': 0.1, 'l_g_gan': math.inf}, {}) == [], 'it has been said'
    [message] = alarm.check({'l_g_pix': math.inf, 'l_g_gan': math.inf}, {})
    assert message.startswith('Not finite: l_g_pix.')
    alarm.check({'l_g_pix': 0.1, 'l_g_gan': 2.0}, {})
    assert alarm.check({'l_g_gan': math.nan}, {}), 'it has been good again'


def test_a_discriminator_that_wins_is_said_after_a_few_readings():
    alarm = CollapseAlarm()
    messages = [alarm.check({}, {'accuracy': 0.995}) for _ in range(2 * READINGS)]
    assert [bool(m) for m in messages] == [i == READINGS - 1 for i in range(2 * READINGS)]
    assert '99.5%' in messages[READINGS - 1][0] and 'train.optim_d.lr' in messages[READINGS - 1][0]
    alarm.check({}, {'accuracy': 0.8})
    assert not any(alarm.check({}, {'accuracy': 0.995}) for _ in range(READINGS - 1))
    assert alarm.check({}, {'accuracy': 0.995})


def test_colours_that_drift_away_are_said_but_not_those_of_an_untrained_network():
    alarm = CollapseAlarm()
    assert alarm.check({}, {'drift': 0.4}) == [], 'it has not been near yet'
    assert alarm.check({}, {'drift': 0.02}) == []
    assert alarm.check({}, {'drift': 0.2}) == [], 'it was near by chance'
    for drift in [0.02] * READINGS + [0.05]:
        assert alarm.check({}, {'drift': drift}) == []
    [message] = alarm.check({}, {'drift': 0.12})
    assert '0.120, 31 of 255' in message
    assert alarm.check({}, {'drift': 0.3}) == []
    for drift in [0.01] * READINGS + [math.nan]:
        assert alarm.check({}, {'drift': drift}) == []
    assert alarm.check({}, {'drift': 0.2})


def test_what_is_measured(tmp_path):
    model = build_model(gan_options(tmp_path))
    train(model, batches(1))
    numbers = model._watched()
    shift = (model.output.mean((2, 3)) - model.lq.mean((2, 3))).abs().mean()
    assert torch.equal(numbers['drift'], shift)
    model.verdict = (torch.tensor([1., 2., -1., 3.]), torch.tensor([-1., -1., 1., 1.]))
    assert float(model._watched()['accuracy']) == (0.75 + 0.5) / 2


def test_least_squares_are_judged_half_way_between_the_labels(tmp_path):
    options = gan_options(tmp_path)
    options['train']['gan_opt'].update(gan_type='lsgan')
    model = build_model(options)
    train(model, batches(1))
    model.verdict = model.adversary.verdict(torch.tensor([0.9, 1.1, 0.6, 0.4]), torch.tensor([0.1, -0.2, 0.3, 0.45]),
                                            model.terms['gan'].criterion)
    assert float(model._watched()['accuracy']) == (0.75 + 1) / 2


def test_nothing_is_measured_while_no_generator_is_judged(tmp_path):
    """A discriminator that warms up, or that is made for a teacher, may win."""
    for losses in ([], ['pixel']):
        stages = [{'name': 'warm-up', 'iters': 100, 'losses': losses, 'train_d': True}]
        model = build_model(gan_options(tmp_path, {'stages': stages}))
        train(model, batches(1))
        assert model._watched() == {}


def test_nothing_is_measured_without_a_gan(tmp_path):
    model = build_model(model_options(tmp_path))
    train(model, batches(1))
    assert model._watched() == {}


@pytest.mark.parametrize('mode', ['standard', 'relativistic'])
def test_a_run_that_breaks_is_warned_of(tmp_path, mode, warnings_logged):
    """A rate far too high for the generator: its colours leave those of the LR images."""
    options = gan_options(tmp_path, {'gan_mode': mode})
    options['train']['gan_opt']['loss_weight'] = 1e-3
    model = build_model(options)
    good = batches(40)
    for item in good:
        item['gt'] = torch.nn.functional.interpolate(item['lq'], scale_factor=2)
    for _ in range(3):
        train(model, good)
    assert model.alarm._settled >= READINGS
    assert not any('mean colours' in text for text in warnings_logged)
    for group in model.optimizer_g.param_groups:
        group['lr'] = 10.
    for iteration, item in enumerate(good, 1000):
        model.feed_data(item)
        model.optimize_parameters(iteration)
        model.get_current_log()
    assert any('mean colours' in text or 'Not finite' in text for text in warnings_logged)
