"""One iteration: which losses are on, who is updated and when, in which order, and what a stage begins with."""
import pytest
import torch

from kd_models.stages import Stages
from kd_models.terms import TERMS
from kd_models.update import losses_on
from tests.support import (
    ORDERS,
    assert_equal_weights,
    batches,
    build,
    full_options,
    gan_options,
    model_options,
    train,
    weights,
)

STAGES = [{'name': 'supervised', 'iters': 2, 'losses': ['pixel']},
          {'name': 'distill', 'iters': 2, 'losses': ['pixel', 'feature_kd'], 'train_d': True},
          {'name': 'adversarial', 'iters': 2, 'losses': ['pixel', 'feature_kd', 'gan'], 'optimizer': 'fresh'}]


def test_stages(tmp_path, monkeypatch):
    """Each stage runs what it names and nothing else: the supervised one neither teacher nor discriminator."""
    teacher_calls, d_calls = [], []
    model = build(full_options(tmp_path, stages=STAGES, total_iter=6, ldl_opt=None, r1_reg_weight=0))
    monkeypatch.setattr(model.teacher.net_g, 'forward', _counted(model.teacher.net_g.forward, teacher_calls))
    monkeypatch.setattr(model.net_d, 'forward', _counted(model.net_d.forward, d_calls))
    d_before, counts, logs = weights(model.net_d), [], []
    for iteration, item in enumerate(batches(6), 1):
        logs += train(model, [item], first=iteration)
        counts.append((len(teacher_calls), len(d_calls)))
        if iteration == 2:
            assert_equal_weights(weights(model.net_d), d_before)
    assert counts == [(0, 0), (0, 0), (1, 2), (2, 4), (3, 7), (4, 10)]
    kd_d = {'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake', 'l_d_feature_kd'}
    assert [log.pop('stage') for log in logs] == [1, 1, 2, 2, 3, 3]
    assert [set(log) for log in logs] == [{'l_g_pix'}] * 2 \
        + [{'l_g_pix', 'l_g_feature_kd', 'feature_kd_r2', *kd_d}] * 2 \
        + [{'l_g_pix', 'l_g_feature_kd', 'feature_kd_r2', 'l_g_gan', *kd_d}] * 2


def _counted(forward, calls):
    def counted(*args):
        calls.append(args[0].shape)
        return forward(*args)
    return counted


def test_update_orders_differ_as_they_should(tmp_path):
    """The discriminator's fake images: from before (simultaneous) or after (g_first) the generator's update."""
    seen = {}
    for order in ORDERS:
        model = build(gan_options(tmp_path, {'update_order': order}))
        fakes = []
        update = model.adversary.update_discriminator
        model.adversary.update_discriminator = \
            lambda step, *a, update=update, fakes=fakes, **k: (fakes.append(step.output.detach().clone()),
                                                               update(step, *a, **k))[1]
        before = build(gan_options(tmp_path, {'update_order': order}))
        train(model, batches(1))
        lq = batches(1)[0]['lq']
        with torch.no_grad():
            seen[order] = (torch.equal(fakes[0], before.net_g(lq)), torch.equal(fakes[0], model.net_g(lq)))
    assert seen == {'simultaneous': (True, False), 'g_first': (False, True), 'd_first': (True, False)}


def test_d_first_gives_the_generator_the_updated_discriminator(tmp_path):
    values = {}
    for order in ('simultaneous', 'd_first'):
        model = build(gan_options(tmp_path, {'update_order': order}))
        values[order] = train(model, batches(1))[0]['l_g_gan']
    assert values['simultaneous'] != values['d_first']


@pytest.mark.parametrize('turns, expected', [({'net_d_init_iters': 2}, [3, 4, 5, 6]), ({'net_d_iters': 2}, [2, 4, 6]),
                                             ({'net_d_init_iters': 2, 'net_d_iters': 2}, [4, 6]), ({}, [*range(1, 7)])])
def test_the_generator_waits_for_its_turn(tmp_path, turns, expected):
    """The discriminator is alone for the first `net_d_init_iters` iterations, and ahead by `net_d_iters` from then."""
    model = build(gan_options(tmp_path, turns))
    logs, learnt = [], []
    for iteration, item in enumerate(batches(6), 1):
        before = weights(model.net_g)['conv_last.weight']
        logs += train(model, [item], first=iteration)
        learnt += [] if torch.equal(model.net_g.conv_last.weight, before) else [iteration]
    assert learnt == expected == [iteration for iteration, log in enumerate(logs, 1) if 'l_g_pix' in log]
    assert all('l_d_real' in log for log in logs)


def test_training_a_discriminator_alone(tmp_path):
    """How a teacher discriminator is made: the generator is not updated."""
    options = gan_options(tmp_path, {'stages': [{'name': 'd', 'iters': 100, 'losses': [], 'train_d': True}]})
    model = build(options)
    g_before, d_before = weights(model.net_g), weights(model.net_d)
    train(model, batches(2))
    assert_equal_weights(weights(model.net_g), g_before)
    assert not torch.equal(model.net_d.conv0.weight, d_before['conv0.weight'])


def test_the_generator_stands_still_in_a_stage_without_its_losses(tmp_path):
    """Statistics and random depth too, while other stages train it."""
    options = gan_options(tmp_path, {'stages': [
        {'name': 'g', 'iters': 2, 'losses': ['pixel']}, {'name': 'd', 'iters': 1, 'losses': [], 'train_d': True},
        {'name': 'both', 'iters': 97, 'losses': ['pixel', 'gan']}]})
    model, modes = build(options), []
    for iteration, data in enumerate(batches(4), 1):
        model.feed_data(data)
        model.optimize_parameters(iteration)
        modes.append(model.net_g.training)
    assert modes == [True, True, False, True]


def test_fresh_optimizer_forgets_at_the_first_iteration_of_its_stage(tmp_path):
    model = build(full_options(tmp_path, stages=STAGES, total_iter=6, ldl_opt=None))
    train(model, batches(4))
    weight = next(model.net_g.parameters())
    assert model.optimizer_g.state[weight]['step'] == 4
    train(model, batches(1), first=5)
    assert model.optimizer_g.state[weight]['step'] == 1
    train(model, batches(1), first=6)
    assert model.optimizer_g.state[weight]['step'] == 2


def test_a_fresh_optimizer_is_that_of_the_discriminator_too(tmp_path):
    model = build(full_options(tmp_path, stages=STAGES, total_iter=6, ldl_opt=None))

    def steps():
        return [{int(state['step']) for state in optimizer.state.values()} for optimizer in model.optimizers]

    train(model, batches(4))
    assert steps() == [{4, 2}, {2}]  # adaptors and discriminator begin with the second stage
    train(model, batches(1), first=5)
    assert steps() == [{1}, {1}]


def test_stage_weights_scale_a_loss(tmp_path):
    stages = [{'name': 'all', 'iters': 100, 'losses': ['pixel'], 'weights': {'pixel': 0.25}}]
    plain, scaled = build(model_options(tmp_path)), build(model_options(tmp_path, {'stages': stages}))
    log, scaled_log = train(plain, batches(1))[0], train(scaled, batches(1))[0]
    assert scaled_log['l_g_pix'] == pytest.approx(log['l_g_pix'] / 4)
    for a, b in zip(plain.net_g.parameters(), scaled.net_g.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad / 4)


def test_losses_on(tmp_path):
    """In the order of the table, those of the generator, from their first iteration on."""
    stages = [{'name': 'a', 'iters': 100, 'losses': ['self_distill', 'feature_kd', 'pixel'], 'train_d': True}]
    model = build(full_options(tmp_path, stages=stages, self_distill_opt={'type': 'L1Loss', 'start_iter': 3}))
    stage = Stages(model.opt['train'], list(model.terms)).at(1)
    assert list(model.terms) == [name for name in TERMS if name in model.terms]
    assert losses_on(model.terms, stage, 3) == ('pixel', 'feature_kd')
    assert losses_on(model.terms, stage, 4) == ('pixel', 'feature_kd', 'self_distill')
