"""The terms' values against independent computations in NumPy."""
import numpy as np
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from tests.support import EDSR, TEACHER, batches, gan_options, model_options, save_teacher, train

BATCH = batches(1)[0]


def losses_of(options, iteration=1):
    torch.manual_seed(0)
    model = build_model(options)
    with torch.no_grad():
        output = model.net_g(BATCH['lq']).numpy()
    return train(model, [BATCH], first=iteration)[0], output, model


class LinearD(nn.Module):
    """D(y) = sum(w y) per image: its gradient is w, whatever y is."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1e-2, 1e-2, 3 * 32 * 32))

    def forward(self, x):
        return x.flatten(1) @ self.w


@pytest.fixture
def linear_d(monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'LinearD', LinearD)
    return np.linspace(-1e-2, 1e-2, 3 * 32 * 32, dtype=np.float32)


def softplus(x):
    return np.log1p(np.exp(x)).mean()


@pytest.mark.parametrize('mode', ['standard', 'relativistic'])
def test_gan_losses(tmp_path, linear_d, mode):
    log, output, _ = losses_of(gan_options(tmp_path, {'gan_mode': mode}, network_d={'type': 'LinearD'}))
    real, fake = (x.reshape(2, -1) @ linear_d for x in (BATCH['gt'].numpy(), output))
    if mode == 'standard':
        expected = {'l_g_gan': 0.1 * softplus(-fake), 'l_d_real': softplus(-real), 'l_d_fake': softplus(fake)}
    else:
        expected = {'l_g_gan': 0.1 * (softplus(real - fake.mean()) + softplus(-(fake - real.mean()))) / 2,
                    'l_d_real': 0.5 * softplus(-(real - fake.mean())), 'l_d_fake': 0.5 * softplus(fake - real.mean())}
    expected.update(out_d_real=real.mean(), out_d_fake=fake.mean())
    for name, value in expected.items():
        assert log[name] == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize('iteration, applied', [(1, False), (2, True), (3, False)])
def test_lazy_r1(tmp_path, linear_d, iteration, applied):
    """gamma / 2 |grad D|^2 on every second iteration, twice as heavy; the gradient of D here is w."""
    options = {'r1_reg_weight': 10, 'net_d_reg_every': 2}
    log, _, model = losses_of(gan_options(tmp_path, options, network_d={'type': 'LinearD'}), iteration)
    _, _, plain = losses_of(gan_options(tmp_path, network_d={'type': 'LinearD'}), iteration)
    assert ('l_d_r1' in log) == applied
    if applied:
        assert log['l_d_r1'] == pytest.approx(float((linear_d**2).sum()), rel=1e-4)
    extra = (model.net_d.w.grad - plain.net_d.w.grad).numpy()
    np.testing.assert_allclose(extra, 10 / 2 * 2 * 2 * linear_d if applied else 0 * linear_d, rtol=1e-3, atol=1e-5)


def test_r1_is_per_logit(tmp_path, linear_d, monkeypatch):
    """Of 12 verdicts on parts of an image each counts as one: |grad sum_p D_p|^2 / 12."""
    class PatchesD(LinearD):
        def forward(self, x):
            return (x.flatten(1) * self.w).unflatten(1, (12, -1)).sum(2)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'PatchesD', PatchesD)
    log, _, model = losses_of(gan_options(tmp_path, {'r1_reg_weight': 10, 'net_d_reg_every': 1},
                                          network_d={'type': 'PatchesD'}))
    _, _, plain = losses_of(gan_options(tmp_path, network_d={'type': 'PatchesD'}))
    assert log['l_d_r1'] == pytest.approx(float((linear_d**2).sum()), rel=1e-4)
    extra = (model.net_d.w.grad - plain.net_d.w.grad).numpy()
    np.testing.assert_allclose(extra, 10 / 2 * 2 * linear_d / 12, rtol=1e-3, atol=1e-5)


def test_pixel_and_response(tmp_path):
    teacher = save_teacher(tmp_path)
    options = {'pixel_opt': {'type': 'MSELoss', 'loss_weight': 2.0},
               'response_kd_opt': {'type': 'L1Loss', 'loss_weight': 0.5}}
    log, output, model = losses_of(model_options(tmp_path, options, teacher=teacher))
    with torch.no_grad():
        of_teacher = model.teacher.net_g(BATCH['lq']).numpy()
    assert log['l_g_pix'] == pytest.approx(2.0 * np.mean((output - BATCH['gt'].numpy())**2), rel=1e-4)
    assert log['l_g_response_kd'] == pytest.approx(0.5 * np.mean(np.abs(output - of_teacher)), rel=1e-4)


def test_ldl(tmp_path):
    """|w output - w gt| with w from the residual's variances, 0 where the student is better than the EMA generator."""
    torch.manual_seed(5)
    torch.save({'params': _edsr(), 'params_ema': _edsr()}, tmp_path / 'g.pth')
    path = {**model_options(tmp_path)['path'], 'pretrain_network_g': str(tmp_path / 'g.pth')}
    options = {'ldl_opt': {'type': 'L1Loss'}, 'ema_decay': 0.999}
    log, output, _ = losses_of(model_options(tmp_path, options, path=path))
    torch.manual_seed(0)
    fresh = build_model(model_options(tmp_path, {'ema_decay': 0.999}, path=path))
    with torch.no_grad():
        ema = fresh.net_g_ema(BATCH['lq']).numpy()
    gt = BATCH['gt'].numpy()
    residual, of_ema = (np.abs(gt - x).sum(1) for x in (output, ema))  # (N, H, W)
    padded = np.pad(residual, ((0, 0), (3, 3), (3, 3)), 'reflect')
    local = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2)).var(axis=(-1, -2), ddof=1)
    weight = residual.var(axis=(1, 2), ddof=1, keepdims=True)**0.2 * local
    weight[residual < of_ema] = 0
    assert 0 < (weight > 0).mean() < 1
    expected = np.abs(weight[:, None] * output - weight[:, None] * gt).mean()
    assert log['l_g_ldl'] == pytest.approx(float(expected), rel=1e-3)


def _edsr():
    from basicsr.archs import build_network
    return build_network(EDSR).state_dict()


def test_feature_kd_for_both_networks(tmp_path):
    """The model hands the right maps to the right adaptors."""
    unet = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    teacher = save_teacher(tmp_path, TEACHER, {**unet, 'num_feat': 8})
    options = {'feature_kd_opt': {'type': 'MLPFeatureLoss', 'layers': {'body.3': 'body.1'}, 'normalize': 'none'},
               'feature_kd_d_opt': {'type': 'MLPFeatureLoss', 'layers': {'conv2': 'conv2'}}}
    torch.manual_seed(0)
    model = build_model(gan_options(tmp_path, options, network_d=unet, teacher=teacher))
    with torch.no_grad():
        maps = {}
        for name, net in (('student', model.net_g), ('teacher', model.teacher.net_g)):
            x = net.conv_first((BATCH['lq'] - net.mean) * 255)
            maps[name] = net.body(x)
        expected = ((model.aux['feature_kd'].adaptors['body_3'](maps['student']) - maps['teacher'])**2).mean().item()
    log = train(model, [BATCH])[0]
    assert log['l_g_feature_kd'] == pytest.approx(expected, rel=1e-4)
    assert log['l_d_feature_kd'] > 0
