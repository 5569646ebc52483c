"""Adv-KD's discriminators: their penalty, and that the update is of the phases of the iteration."""
import torch
from basicsr.models import build_model

from kd_models.phase_adversary import gradient_penalty
from tests.support import batches, train_seeded, weights
from tests.test_kd_models.test_advkd_model import faithful_options, options


def test_the_gradient_penalty_is_of_the_flattened_norm():
    images = torch.rand(4, 3, 5, 5)
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(75, 1))
    norm = critic[1].weight.norm()
    torch.testing.assert_close(gradient_penalty(critic, images, 1 - images), (norm - 1)**2)


def moved(model, before):
    """The phases whose discriminators were updated."""
    after = weights(model.net_d)
    return {k for k in range(len(model.net_d)) for name, _ in model.net_d[k].named_parameters()
            if not torch.equal(after[f'{k}.{name}'], before[f'{k}.{name}'])}


def test_discriminators_learn_with_their_phases(tmp_path):
    """That of the newest phase in a growing student, otherwise all of them."""
    model = build_model(faithful_options(tmp_path, {'total_iter': 15}))
    for iteration, phases in ((1, {0}), (2, {1}), (4, {2})):
        before = weights(model.net_d)
        train_seeded(model, batches(1), iteration)
        assert moved(model, before) == phases
    model = build_model(options(tmp_path))
    before = weights(model.net_d)
    log, = train_seeded(model, batches(1))
    assert moved(model, before) == {0, 1, 2} and log['l_d_real'] > 0


def test_weights_are_clipped_after_the_update(tmp_path):
    model = build_model(options(tmp_path, {'weight_clip': 1e-3}))
    assert max(p.abs().max() for p in model.net_d.parameters()) > 1e-2
    train_seeded(model, batches(1))
    assert max(p.abs().max() for p in model.net_d.parameters()) <= 1e-3


def test_each_penalty_is_there_if_it_has_a_weight(tmp_path):
    log, = train_seeded(build_model(options(tmp_path, {'r1_reg_weight': 0, 'gp_reg_weight': 10})), batches(1))
    assert log['l_d_gp'] > 0 and 'l_d_r1' not in log
    log, = train_seeded(build_model(options(tmp_path, {'net_d_reg_every': 1})), batches(1))
    assert log['l_d_r1'] > 0 and 'l_d_gp' not in log
