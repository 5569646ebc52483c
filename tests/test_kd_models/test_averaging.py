"""Optimizers from outside of torch.optim: which are taken, and where schedule-free ones have the weights when."""
from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from basicsr.models import build_model
from torch import nn

from kd_models import averaging
from kd_utils import checkpoint
from kd_utils.options import OptionError, check_options
from kd_utils.schema.optimizers import optimizer_class
from tests.support import assert_equal_weights, batches, gan_options, model_options, train_seeded

schedulefree = pytest.importorskip('schedulefree')
FREE = {'type': 'schedulefree.AdamWScheduleFree', 'lr': 1e-2, 'betas': [0.9, 0.99], 'warmup_steps': 2}
HERE = __name__


class ReallySlowGradientDescent(torch.optim.Optimizer):
    """Works, and has no two positions of the weights."""

    def __init__(self, params, lr: float = 1e-9) -> None:
        super().__init__(params, {'lr': lr})

    def step(self, closure=None):
        for p in averaging.parameters_of(self):
            p.data.sub_(p.grad, alpha=self.param_groups[0]['lr'])


class OfMatrices(ReallySlowGradientDescent):
    def step(self, closure=None):
        for p in averaging.parameters_of(self):
            p.data @= torch.eye(3)[:, :2]


class WithObjects(ReallySlowGradientDescent):
    def step(self, closure=None):
        self.param_groups[0]['module'] = nn.ReLU()


def free_options(folder, **top):
    return gan_options(folder, {'optim_g': dict(FREE), 'optim_d': dict(FREE), 'scheduler': None}, **top)


def weights(model) -> dict:
    return {name: value.clone() for name, value in model.net_g.state_dict().items()}


def trained_with_average(options, data):
    """The model, its weights as they are trained, and their average by the optimizer's own method, of a twin."""
    models = [seeded(deepcopy(options)) for _ in range(2)]
    for model in models:
        train_seeded(model, data)
    models[1].optimizer_g.eval()
    return models[0], weights(models[0]), weights(models[1])


def seeded(options):
    torch.manual_seed(0)
    return build_model(options)


class Looked:
    """A loader of one image, and what the generator's weights were when it was read."""

    def __init__(self, model) -> None:
        self.model, self.dataset = model, self
        self.opt = {'name': 'Tiny'}

    def __iter__(self):
        self.seen = weights(self.model)
        yield {**batches(1, batch=1)[0], 'lq_path': ['0.png']}


def test_validation_and_checkpoint_see_the_average_and_training_goes_on_from_the_same_bits(tmp_path):
    options = free_options(tmp_path, val={'val_freq': 4, 'save_img': False})
    model, trained, average = trained_with_average(options, batches(4))
    loader = Looked(model)
    model.nondist_validation(loader, 4, None, False)
    model.save(0, 4)
    assert_equal_weights(loader.seen, average)
    assert_equal_weights(torch.load(tmp_path / 'models' / 'net_g_4.pth', weights_only=True)['params'], average)
    assert_equal_weights(weights(model), trained)
    assert any(not torch.equal(trained[name], average[name]) for name in trained)
    model.save(-1, -1)
    assert_equal_weights(torch.load(tmp_path / 'models' / 'net_g_latest.pth', weights_only=True)['params'], average)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    data = batches(6)
    options = free_options(tmp_path)
    whole, first = seeded(deepcopy(options)), seeded(deepcopy(options))
    train_seeded(whole, data)
    train_seeded(first, data[:3])
    first.save(0, 3)
    for label in 'gd':
        options['path'][f'pretrain_network_{label}'] = str(tmp_path / 'models' / f'net_{label}_3.pth')
    resumed = build_model(options)
    resumed.resume_training(checkpoint.load_state(tmp_path / 'training_states' / '3.state'))
    train_seeded(resumed, data[3:], first=4)
    assert_equal_weights(weights(resumed), weights(whole))
    assert_equal_weights(resumed.net_d.state_dict(), whole.net_d.state_dict())
    for model in (whole, resumed):
        model.optimizer_g.eval()
    assert_equal_weights(weights(resumed), weights(whole))


def test_a_fresh_optimizer_starts_from_the_average_and_counts_anew(tmp_path):
    stages = [{'name': 'a', 'iters': 3, 'losses': ['pixel']},
              {'name': 'b', 'iters': 1, 'losses': ['pixel'], 'optimizer': 'fresh'}]
    options = model_options(tmp_path, {'optim_g': dict(FREE), 'scheduler': None, 'total_iter': 4, 'stages': stages})
    model, _, average = trained_with_average(options, batches(3))
    model.enter_stage(4)
    assert_equal_weights(weights(model), average)
    group = model.optimizer_g.param_groups[0]
    assert group['k'] == 0 and group['lr_max'] == -1 and group['train_mode']
    assert not any(model.optimizer_g.state.values())
    train_seeded(model, batches(1), first=4)
    assert group['k'] == 1 and group['lr'] == FREE['lr'] and group['initial_lr'] == FREE['lr']


def test_forgetting_leaves_the_options_and_rates_of_any_optimizer():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.5)
    group = optimizer.param_groups[0]
    group.update(lr=0.05, initial_lr=0.1)
    before = dict(group)
    averaging.forget(optimizer)
    assert group == before and optimizer.param_groups[0] is group


def test_an_optimizer_without_two_positions_is_taken_too(tmp_path):
    options = model_options(tmp_path, {'optim_g': {'type': f'{HERE}.ReallySlowGradientDescent', 'lr': 1.}})
    model = build_model(options)
    before = weights(model)
    train_seeded(model, batches(1))
    assert any(not torch.equal(before[name], value) for name, value in weights(model).items())
    model.save(0, 1)
    state = checkpoint.load_state(tmp_path / 'training_states' / '1.state')
    assert state['trained'] == [[]] and state['optimizer_types'] == ['ReallySlowGradientDescent']


def test_batch_normalisation_is_warned_of(tmp_path, warnings_logged):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    optimizer = schedulefree.AdamWScheduleFree(net.parameters(), lr=0.1)
    from kd_models.build import _check_foreign
    _check_foreign('train.optim_g', optimizer, {'lr': 0.1}, net)
    assert any('statistics of the others' in text for text in warnings_logged)


@pytest.mark.parametrize('option, message', [
    ({'type': 'schedulefreee.AdamW', 'lr': 1e-3}, 'no module schedulefreee. Install what it is part of.*pip install'),
    ({'type': 'schedulefree.AdamWScheduleFreee', 'lr': 1e-3}, 'not a class that derives from torch.optim.Optimizer'),
    ({'type': 'torch.nn.Linear', 'lr': 1e-3}, 'not a class that derives from torch.optim.Optimizer'),
    ({'type': 'torch.optim.LBFGS', 'lr': 1e-3}, 'by a closure'),
    ({'type': 'schedulefree.AdamWScheduleFreeClosure', 'lr': 1e-3}, 'does not fit this loop|by a closure'),
    ({'type': 'schedulefree.AdamWScheduleFree', 'lr': 1e-3, 'warmup': 3}, 'Did you mean `warmup_steps`'),
    ({'type': 'schedulefree.AdamWScheduleFree'}, 'lr` is missing'),
    ({'type': f'{HERE}.OfMatrices', 'lr': 1e-3}, 'OfMatrices does not fit this loop'),
    ({'type': f'{HERE}.WithObjects', 'lr': 1e-3}, 'WithObjects does not fit this loop'),
])
def test_refusals(tmp_path, option, message):
    with pytest.raises(OptionError, match=message):
        build_model(model_options(tmp_path, {'optim_g': option}))


def test_the_check_alone_takes_the_full_name(tmp_path):
    """As `train.py` checks before anything is built."""
    options = free_options(tmp_path)
    assert not any('optim_g' in message for message in check_options(options, {'pixel': None, 'gan': None}))
    assert optimizer_class('train.optim_g.type', 'torch.optim.Adam') is torch.optim.Adam
