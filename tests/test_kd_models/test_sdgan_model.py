"""Self-distillation: the EMA as teacher, its value, when it is on, and what is refused."""
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torchvision.models import squeezenet1_1

from kd_models.distillation_model import DistillationModel
from kd_models.sdgan_model import SDGANModel
from kd_utils.options import OptionError, check_options
from tests.support import (
    EDSR,
    WithBatchNorm,
    assert_equal_weights,
    batches,
    gan_options,
    model_options,
    save_teacher,
    train,
    weights,
)

MSE = {'type': 'MSELoss', 'loss_weight': 0.5}
STAGES = [{'name': 'before', 'iters': 20, 'losses': ['pixel']},
          {'name': 'with', 'iters': 40, 'losses': ['pixel', 'self_distill']},
          {'name': 'after', 'iters': 40, 'losses': ['pixel', 'gan']}]


def sd_options(folder, train_opt=None, **top):
    return gan_options(folder, {'ema_decay': 0.9, 'self_distill_opt': dict(MSE), **(train_opt or {})},
                       **{'model_type': 'SDGANModel', **top})


def without(options, key='self_distill_opt'):
    options['train'][key] = None
    return options


def run(options, iterations=3):
    torch.manual_seed(3)
    model = build_model(options)
    return model, train(model, batches(iterations))


def test_the_default_distance_is_lpips_vgg(tmp_path):
    options = gan_options(tmp_path, {'ema_decay': 0.999}, model_type='SDGANModel')
    SDGANModel.complete(options)
    assert options['train']['self_distill_opt'] == {}
    assert SDGANModel.losses['self_distill'] == 'LPIPSLoss'
    assert check_options(options, SDGANModel.losses) == []


def test_no_other_model_has_it_on(tmp_path):
    for name in ('DistillationModel', 'SDAKDModel', 'MCADKDModel'):
        options = gan_options(tmp_path, {'ema_decay': 0.9}, model_type=name)
        DistillationModel.complete(options)
        assert 'self_distill_opt' not in options['train']


@pytest.mark.parametrize('model_type', ['DistillationModel', 'SDAKDModel', 'MCADKDModel'])
def test_every_method_can_have_it(tmp_path, model_type):
    options = sd_options(tmp_path, {'total_iter': 8}, model_type=model_type, teacher=save_teacher(tmp_path))
    options['train']['contrastive_opt'] = None
    logs = run(options, 3)[1]
    assert all('l_g_self_distill' in log for log in logs)


def test_its_value(tmp_path):
    """w mean((G(x) - G_ema(x))^2), from the two networks as they are before the iteration."""
    model, _ = run(sd_options(tmp_path), 2)
    item = batches(3)[2]
    with torch.no_grad():
        student, ema = (net(item['lq']).numpy() for net in (model.net_g, model.net_g_ema))
    log = train(model, [item], first=3)[0]
    expected = np.mean((student - ema)**2, dtype=np.float64)
    assert expected > 0
    assert log['self_distill_distance'] == pytest.approx(expected, rel=1e-4)
    assert log['l_g_self_distill'] == pytest.approx(0.5 * expected, rel=1e-4)


def test_its_gradient_is_added_once(tmp_path):
    """SGD with and without it: the difference is minus lr times the gradient of the weighted distance."""
    sgd = {'optim_g': {'type': 'SGD', 'lr': 1.0}, 'scheduler': None}
    path = dict(model_options(tmp_path)['path'], pretrain_network_g=str(tmp_path / 'start.pth'), strict_load_g=True)
    torch.manual_seed(1)
    nets = {name: build_network(dict(EDSR)).state_dict() for name in ('params', 'params_ema')}
    torch.save(nets, path['pretrain_network_g'])
    results = []
    for change in (lambda options: options, without):
        options = change(sd_options(tmp_path, sgd, path=path))
        options['network_d'] = options['train']['gan_opt'] = options['train']['optim_d'] = None
        results.append(run(options, 1)[0])
    model = build_model(without(sd_options(tmp_path, sgd, path=path)))
    lq = batches(1)[0]['lq']
    (0.5 * ((model.net_g(lq) - model.net_g_ema(lq).detach())**2).mean()).backward()
    nets = [result.net_g for result in (*results, model)]
    for p, q, reference in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(q - p, reference.grad, rtol=1e-3, atol=1e-6)


def test_from_equal_weights_the_first_step_is_that_without(tmp_path):
    with_it, logs = run(sd_options(tmp_path), 1)
    plain, _ = run(without(sd_options(tmp_path)), 1)
    assert logs[0]['l_g_self_distill'] == 0
    assert_equal_weights(weights(with_it.net_g), weights(plain.net_g))
    assert_equal_weights(weights(with_it.net_d), weights(plain.net_d))


def test_fine_tuning_from_params_ema(tmp_path):
    source, _ = run(sd_options(tmp_path), 3)
    source.save(0, 3)
    file = str(tmp_path / 'models/net_g_3.pth')
    path = {**source.opt['path'], 'pretrain_network_g': file, 'param_key_g': 'params_ema'}
    _, logs = run(sd_options(tmp_path, path=path), 1)
    assert logs[0]['self_distill_distance'] == 0


def test_the_teacher_moves_with_the_ema_alone(tmp_path):
    model, _ = run(sd_options(tmp_path), 2)
    assert not any(p.requires_grad or p.grad is not None for p in model.net_g_ema.parameters())
    assert not model.net_g_ema.training
    before = [p.clone() for p in model.net_g_ema.parameters()]
    train(model, batches(1), first=3)
    for old, ema, net in zip(before, model.net_g_ema.parameters(), model.net_g.parameters(), strict=True):
        torch.testing.assert_close(ema, 0.9 * old + 0.1 * net, rtol=1e-5, atol=1e-7)


def test_buffers_are_the_students(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'WithBatchNorm', WithBatchNorm)
    model, _ = run(sd_options(tmp_path, network_g={'type': 'WithBatchNorm'}), 2)
    for ema, net in zip(model.net_g_ema.buffers(), model.net_g.buffers(), strict=True):
        assert torch.equal(ema, net)


@pytest.mark.parametrize('order', ['simultaneous', 'g_first', 'd_first'])
def test_one_forward_of_the_ema_serves_ldl_too(tmp_path, order):
    ldl = {'ldl_opt': {'type': 'L1Loss', 'loss_weight': 1.0}, 'update_order': order}
    model = build_model(sd_options(tmp_path, ldl))
    calls = []
    model.net_g_ema.register_forward_hook(lambda *_: calls.append(1))
    logs = train(model, batches(2))
    assert len(calls) == 2 and {'l_g_ldl', 'l_g_self_distill'} <= set(logs[1])


def test_before_its_start_it_costs_nothing(tmp_path):
    model = build_model(sd_options(tmp_path, {'self_distill_opt': {**MSE, 'start_iter': 2}}))
    calls = []
    model.net_g_ema.register_forward_hook(lambda *_: calls.append(1))
    logs = train(model, batches(4))
    assert ['l_g_self_distill' in log for log in logs] == [False, False, True, True]
    assert len(calls) == 2


def test_ema_ramp_up(tmp_path):
    """Half-life at iteration k: 0.05 k iterations, until that of `ema_decay` is reached."""
    model = build_model(sd_options(tmp_path, {'ema_decay': 0.999, 'ema_ramp_up': 0.05}))
    assert model._ema_decay_at(20) == pytest.approx(0.5)
    assert model._ema_decay_at(200)**10 == pytest.approx(0.5)
    assert model._ema_decay_at(10**6) == 0.999
    train(model, batches(1))  # a half-life of a twentieth of an iteration
    for ema, net in zip(model.net_g_ema.parameters(), model.net_g.parameters(), strict=True):
        torch.testing.assert_close(ema, net, rtol=1e-4, atol=1e-6)


def test_lpips_from_a_file(tmp_path):
    torch.manual_seed(0)
    features = squeezenet1_1(weights=None).features.state_dict()
    torch.save({f'features.{name}': value for name, value in features.items()}, tmp_path / 'squeeze.pth')
    lpips = {'type': 'LPIPSLoss', 'net': 'squeeze', 'weights': str(tmp_path / 'squeeze.pth'), 'loss_weight': 1.0}
    model, logs = run(sd_options(tmp_path, {'self_distill_opt': lpips}), 2)
    assert logs[0]['l_g_self_distill'] == 0 < logs[1]['l_g_self_distill']
    model.save(0, 2)
    assert set(torch.load(tmp_path / 'models/net_g_2.pth')) == {'params', 'params_ema'}
    assert model.aux.state_dict() == {}  # nothing of the backbone is trained or saved


class Noisy(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.strength = nn.Parameter(torch.zeros(()))  # noise that does not show yet

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.conv(x) + self.strength * torch.randn_like(x[:, :1]), 2)


def test_a_generator_with_noise_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Noisy', Noisy)
    with pytest.raises(OptionError, match='Noisy draws random numbers in each pass'):
        build_model(sd_options(tmp_path, network_g={'type': 'Noisy'}))


@pytest.mark.parametrize('train_opt, message', [
    ({'ema_decay': 0}, '`train.self_distill_opt` needs `train.ema_decay`, which is missing or 0'),
    ({'self_distill_opt': {'loss_weight': -1}}, '`train.self_distill_opt.loss_weight` cannot be -1'),
    ({'self_distill_opt': {'augment': 1}}, 'Write true or false'),
    ({'self_distill_opt': {'strat_iter': 5}}, 'Did you mean `start_iter`'),
    ({'self_distill_opt': {'net': 'resnet'}}, 'Write one of `vgg`, `alex`, `squeeze`'),
    ({'ema_ramp_up': 0}, '`train.ema_ramp_up` cannot be 0'),
    ({'pixel_opt': None, 'gan_opt': None, 'optim_d': None}, '`self_distill` alone'),
    ({'ema_decay': 0}, 'Write a number such as 0.999 there, or `self_distill_opt: ~`'),
    ({'self_distill_opt': {**MSE, 'start_iter': 100}}, '`train.self_distill_opt.start_iter` is 100, and the last '
                                                       'iteration with this loss is 100, so it would never be on'),
    ({'self_distill_opt': {**MSE, 'start_iter': 60}, 'stages': STAGES}, 'the last iteration with this loss is 60'),
    ({'self_distill_opt': {**MSE, 'start_iter': 61}, 'stages': STAGES}, 'the last iteration with this loss is 60'),
])
def test_refusals(tmp_path, train_opt, message):
    with pytest.raises(OptionError, match=message):
        check_options(sd_options(tmp_path, train_opt), SDGANModel.losses)


def test_it_may_begin_in_the_last_iteration(tmp_path):
    options = sd_options(tmp_path, {'self_distill_opt': {**MSE, 'start_iter': 59}, 'stages': STAGES})
    assert check_options(options, SDGANModel.losses) == []


def test_latents_are_refused(tmp_path):
    options = sd_options(tmp_path, val={'val_freq': 1})
    options['datasets']['val'] = {'name': 'samples', 'type': 'SampleDataset', 'n': 2}
    with pytest.raises(OptionError, match='SampleDataset gives latents, and SDGANModel takes LR images here'):
        check_options(options, SDGANModel.losses)


def test_images_too_small_for_the_distance_are_refused(tmp_path):
    with pytest.raises(OptionError, match='MS-SSIM needs images of at least 97 pixels a side, these are 32x32'):
        build_model(sd_options(tmp_path, {'self_distill_opt': {'type': 'MSSSIMLoss'}}))


def test_a_ramp_without_an_ema_is_said_to_be_of_no_use(tmp_path):
    options = gan_options(tmp_path, {'ema_ramp_up': 0.05})
    assert any('`train.ema_ramp_up` is of no use' in text for text in check_options(options, DistillationModel.losses))
