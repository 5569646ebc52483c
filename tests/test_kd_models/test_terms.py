"""The losses by name: in which order they are summed, what they are called in the log, and which forwards they read."""
import pytest
import torch

from kd_models.advkd_model import AdvKDModel
from kd_models.diffusion_model import DiffusionSRModel
from kd_models.distillation_model import DistillationModel
from kd_models.terms import STOCK, TERMS
from tests.support import assert_equal_weights, batches, build, full_options, train, weights


def test_losses_are_registered_by_name():
    """Those of the terms, of a method's own table too."""
    assert {'pixel', 'ldl', 'perceptual', 'gan', 'response_kd', 'feature_kd', 'contrastive',
            'self_distill'} <= set(DistillationModel.losses)
    assert DistillationModel.losses == {name: term.default_type for name, term in TERMS.items()}
    assert AdvKDModel.losses['phase_kd'] == 'L1Loss' and DiffusionSRModel.losses == {'diffusion': 'MSELoss'}


def test_yaml_order_of_losses_does_not_matter(tmp_path):
    names = ['pixel', 'response_kd', 'feature_kd', 'gan', 'ldl']
    results = []
    for order in (names, names[::-1]):
        options = full_options(tmp_path)
        section = options['train']
        opts = {f'{name}_opt': section.pop(f'{name}_opt') for name in names}
        section.update({f'{name}_opt': opts[f'{name}_opt'] for name in order})
        section['stages'] = [{'name': 'all', 'iters': 100, 'losses': order}]
        model = build(options)
        train(model, batches(2))
        results.append(weights(model.net_g))
    assert_equal_weights(*results)


@pytest.mark.parametrize('name, log', [('pixel_opt', 'l_g_pix'), ('response_kd_opt', 'l_g_response_kd'),
                                       ('feature_kd_opt', 'l_g_feature_kd'), ('gan_opt', 'l_g_gan'),
                                       ('ldl_opt', 'l_g_ldl')])
def test_a_weight_is_applied_once(tmp_path, name, log):
    """Promise 7: doubling `loss_weight` doubles the loss and its gradient."""
    def measure(weight):
        options = full_options(tmp_path)
        options['train'][name]['loss_weight'] = weight
        options['train']['stages'] = [{'name': 'one', 'iters': 100, 'losses': [name[:-4]], 'train_d': True}]
        model = build(options)
        value = train(model, batches(1))[0][log]
        return value, torch.cat([p.grad.flatten() for p in model.net_g.parameters() if p.grad is not None])
    (one, gradient_one), (two, gradient_two) = measure(1.0), measure(2.0)
    assert two == pytest.approx(2 * one, rel=1e-5) and one != 0
    torch.testing.assert_close(gradient_two, 2 * gradient_one, rtol=1e-4, atol=1e-8)


def test_basicsrs_losses_come_first():
    """So that with them alone the sum is BasicSR's, bit for bit."""
    assert tuple(TERMS)[:len(STOCK)] == STOCK


def test_names_in_the_log(tmp_path):
    terms = build(full_options(tmp_path)).terms
    assert terms['feature_kd'].log_name == 'l_g_feature_kd' and terms['feature_kd_d'].log_name == 'l_d_feature_kd'
    assert terms['response_kd'].log_name == 'l_g_response_kd'


@pytest.mark.parametrize('inputs, expected', [('given', {'teacher'}), ('upcycled', {'upcycled', 'upcycled.teacher'}),
                                              ('both', {'teacher', 'upcycled', 'upcycled.teacher'})])
def test_the_forwards_that_a_teachers_loss_reads(tmp_path, inputs, expected):
    opt = full_options(tmp_path, response_kd_opt={'type': 'L1Loss', 'inputs': inputs}, upcycling={})
    if inputs == 'given':
        del opt['train']['upcycling']
    terms = build(opt).terms
    assert terms['response_kd'].forwards == expected
    assert terms['ldl'].forwards == {'ema'} and terms['pixel'].forwards == set()
