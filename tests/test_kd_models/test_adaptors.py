"""Feature adaptors: their learning rate, their warm-up, what the log says of them, and their resumed statistics."""
import pytest
import torch
from basicsr.models import build_model

from tests.support import (
    TEACHER,
    UNET,
    assert_equal_weights,
    batches,
    gan_options,
    model_options,
    save_teacher,
    stopped_and_resumed,
    train,
    weights,
)


def options(folder, **option):
    return model_options(folder, {'pixel_opt': None, 'feature_kd_opt': {'type': 'MLPFeatureLoss', **option}},
                         teacher=save_teacher(folder))


@pytest.mark.parametrize('factor', [1, 10, 3])
def test_adaptors_have_a_rate_of_their_own_in_every_schedule(tmp_path, factor):
    train_opt = {'feature_kd_opt': {'adaptor_lr': factor}, 'feature_kd_d_opt': {'adaptor_lr': factor}}
    model = build_model(gan_options(tmp_path, train_opt, teacher=save_teacher(tmp_path, TEACHER, UNET)))
    for iteration in (1, 10, 60):  # within a warm-up, after it, after the milestone
        model.update_learning_rate(iteration, warmup_iter=5)
        for optimizer in model.optimizers:
            network, adaptors = (group['lr'] for group in optimizer.param_groups)
            assert adaptors == pytest.approx(factor * network)


def test_the_default_is_ten_times_the_networks(tmp_path):
    model = build_model(options(tmp_path))
    assert [group['lr'] for group in model.optimizer_g.param_groups] == [1e-3, 1e-2]


def test_only_adaptors_learn_from_the_loss_while_they_warm_up(tmp_path):
    model = build_model(options(tmp_path, adaptor_warmup=2))
    start, start_of_adaptors = weights(model.net_g), weights(model.aux)
    data = batches(3)
    train(model, data[:2])
    assert_equal_weights(weights(model.net_g), start)
    assert any(not torch.equal(value, start_of_adaptors[name]) for name, value in weights(model.aux).items())
    train(model, data[2:], 3)
    assert any(not torch.equal(value, start[name]) for name, value in weights(model.net_g).items())


def test_r2_rises_while_adaptors_learn(tmp_path):
    model = build_model(options(tmp_path, adaptor_warmup=100))
    logs = train(model, batches(1) * 60)
    assert logs[0]['feature_kd_r2'] < 0.1 < logs[-1]['feature_kd_r2'] < 1


def test_statistics_are_resumed(tmp_path):
    whole, resumed = stopped_and_resumed(lambda: build_model(options(tmp_path)), tmp_path, batches(4), 2)
    assert_equal_weights(weights(resumed.net_g), weights(whole.net_g))
    assert_equal_weights(weights(resumed.aux), weights(whole.aux))
    assert not any('of_teacher' in name for name in weights(resumed.net_g))
