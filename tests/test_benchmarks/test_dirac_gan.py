"""The Dirac-GAN: spectral radii, full runs, and that the package's training step is the one that is simulated."""
import numpy as np
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from benchmarks.dirac_gan import (
    ORDERS,
    closed_radius,
    main,
    measured_radius,
    radius,
    run,
    stable_weights,
    step,
)
from kd_models.distillation_model import DistillationModel
from tests.support import model_options

STYLEGAN2_DECAY = 0.5**(32 / 1e4)
# h, lambda, beta, simultaneous, alternating, lambda needed by simultaneous steps
RADII = [
    (0.1, 0, 0.99, 1.00124922, 1.00000000, 0.026020),
    (0.1, 0.02, 0.99, 1.00028902, 0.99903888, 0.026020),
    (0.1, 0.1, 0.99, 0.99645001, 0.99519650, 0.026020),
    (0.1, 0.5, 0.99, 0.98675361, 0.98667721, 0.026020),
    (0.1, 1, 0.99, 0.98672364, 0.98698528, 0.026020),
    (0.1, 0.1, 0.9, 1.00036222, 0.99918427, 0.148457),
    (0.1, 1, 0.9, 0.99757644, 0.99689089, 0.148457),
    (0.1, 1, 0.999, 0.99895651, 0.99895646, 0.025010),
    (0.1, 1, STYLEGAN2_DECAY, 0.99754428, 0.99754354, 0.025049),
    (0.01, 0, 0.999, 1.00001250, 1.00000000, 0.002600),
    (0.01, 0.1, 0.999, 0.99953317, 0.99952068, 0.002600),
]


@pytest.mark.parametrize('h, lam, beta, simultaneous, alternating, needed', RADII)
def test_spectral_radius(h, lam, beta, simultaneous, alternating, needed):
    for order in ORDERS:
        expected = simultaneous if order == 'simultaneous' else alternating
        options = dict(h=h, lam=lam, beta=beta, order=order)
        for saturating in (True, False):  # the two losses differ only away from the equilibrium
            assert measured_radius(**options, saturating=saturating) == pytest.approx(expected, abs=6e-9)
        assert closed_radius(**options) == pytest.approx(expected, abs=6e-9)
    assert stable_weights(h=h, beta=beta, order='simultaneous')[0] == pytest.approx(needed, abs=6e-7)


def test_without_self_distillation_alternating_steps_only_circle():
    assert measured_radius(h=0.1, lam=0, beta=0.99, order='simultaneous') > 1 + 1e-3
    for order in ORDERS[1:]:
        assert abs(measured_radius(h=0.1, lam=0, beta=0.99, order=order) - 1) < 1e-12
    for order in ORDERS:
        assert measured_radius(h=0.1, lam=0.1, beta=0.99, order=order) < 0.9965


@pytest.mark.parametrize('order', ORDERS)
def test_stable_exactly_between_the_bounds(order):
    lowest, highest = stable_weights(h=0.1, beta=0.99, order=order)
    for lam, stable in ((1.1 * lowest or 1e-6, True), (0.99 * highest, True), (1.01 * highest, False),
                        (0.9 * lowest or -1e-3, False)):
        assert (measured_radius(h=0.1, lam=lam, beta=0.99, order=order) < 1) == stable


def test_just_below_and_above_the_weight_needed():
    lowest = stable_weights(h=0.1, beta=0.99, order='simultaneous')[0]
    for factor, expected in ((0.9, 1.000125), (1.1, 0.999875)):
        measured = measured_radius(h=0.1, lam=factor * lowest, beta=0.99, order='simultaneous')
        assert measured == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize('order', ORDERS)
def test_a_teacher_that_follows_at_once_or_never_does_not_damp(order):
    vanilla = measured_radius(h=0.1, lam=0, beta=0.99, order=order)
    assert measured_radius(h=0.1, lam=0.5, beta=0, order=order) == pytest.approx(vanilla, abs=1e-6)
    assert measured_radius(h=0.1, lam=0.5, beta=1, order=order) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize('order, saturating, lam, expected', [
    ('simultaneous', True, 0, (1.552, 2.651, 3.101)),
    ('simultaneous', True, 0.1, (1.027, 0.04445, 0.001188)),
    ('simultaneous', True, 0.5, (0.07107, 2.78e-6, 4.5e-12)),
    ('simultaneous', False, 0, (0.8038, 0.4673, 0.4508)),
    ('simultaneous', False, 0.1, (0.5413, 0.0190, 5.093e-4)),
    ('d_first', True, 0, (1.441, 1.414, 1.414)),
    ('d_first', True, 0.1, (0.9221, 0.01283, 9.32e-5)),
    ('g_first', True, 0, (1.398, 1.417, 1.418)),
    ('g_first', True, 0.1, (0.882, 0.01235, 9.392e-5)),
])
def test_full_runs(order, saturating, lam, expected):
    r = radius(run(2000, h=0.1, lam=lam, beta=0.99, order=order, saturating=saturating))
    assert r[[99, 999, 1999]] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize('h, expected', [(0.1, 0.44710), (0.02, 0.20000)])
def test_limit_cycle_of_the_usual_loss(h, expected):
    """It ends on a circle of radius sqrt(2 h), as far as averaging can tell."""
    states = run(int(2000 / h), start=(0.3, 0.), h=h, lam=0, beta=0.99, order='simultaneous', saturating=False)
    assert radius(states)[-2000:].mean() == pytest.approx(expected, abs=6e-5)
    assert expected == pytest.approx((2 * h)**0.5, rel=1e-3)


@pytest.mark.parametrize('lam', [0.005, 0.01, 0.02])
def test_self_distillation_shrinks_the_limit_cycle(lam):
    """To r^2 = 2 h - 8 lambda beta c^2 / (alpha^2 + c^2) with alpha = kappa / h; beyond the weight needed to 0."""
    h, beta, c = 0.1, 0.99, 0.5
    options = dict(h=h, beta=beta, order='simultaneous', saturating=False)
    expected = (2 * h - 8 * lam * beta * c**2 / (((1 - beta) / h)**2 + c**2))**0.5
    assert radius(run(60_000, start=(0.3, 0.), lam=lam, **options))[-1000:].mean() == pytest.approx(expected, rel=0.02)
    assert radius(run(60_000, start=(0.3, 0.), lam=0.03, **options))[-1] < 1e-4


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('start', [(2.6, 1.9), (3, 3), (-3, 2), (5, 5)])
def test_the_usual_loss_converges_from_far_away(order, start):
    assert radius(run(4000, start=start, h=0.1, lam=0.1, beta=0.99, order=order, saturating=False))[-1] < 1e-6


def test_the_saturating_loss_creeps_outwards_from_far_away():
    r = radius(run(4000, start=(3, 3), h=0.1, lam=0.1, beta=0.99, order='simultaneous'))
    assert r[0] < r[1000] < r[-1]


def test_the_command(tmp_path, capsys):
    main(['--out', str(tmp_path / 'new')])
    printed = capsys.readouterr().out
    assert '1.00124922 / 1.00124922' in printed and '0.98698528 / 0.98698528' in printed
    picture = tmp_path / 'new' / 'dirac_gan.png'
    assert picture.read_bytes()[:4] == b'\x89PNG' and picture.stat().st_size < 200_000


class Generator(nn.Module):
    """theta, as an image."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.theta * torch.ones(x.shape[0], 3, 2 * x.shape[2], 2 * x.shape[3])


class Discriminator(nn.Module):
    """The mean of the image times -psi: a discriminator calls the fake images fake, which is L with the other sign."""

    def __init__(self):
        super().__init__()
        self.psi = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return -self.psi * x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('lam', [0, 0.5])
def test_the_packages_training_step_is_the_one_simulated(tmp_path, monkeypatch, order, lam):
    for network in (Generator, Discriminator):
        monkeypatch.setitem(ARCH_REGISTRY._obj_map, network.__name__, network)
    sgd = {'type': 'SGD', 'lr': 0.1}
    train = {'optim_g': sgd, 'optim_d': sgd, 'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}, 'pixel_opt': None,
             'ema_decay': 0.9, 'update_order': order}
    if lam:  # MSELoss has no 1/2
        train['self_distill_opt'] = {'type': 'MSELoss', 'loss_weight': lam / 2}
    model = DistillationModel(model_options(tmp_path, train, network_g={'type': 'Generator'},
                                            network_d={'type': 'Discriminator'}))
    blank = {'lq': torch.zeros(1, 3, 16, 16), 'gt': torch.zeros(1, 3, 32, 32)}
    state = (1., 1., 1.)
    for iteration in range(1, 31):
        model.feed_data(blank)
        model.optimize_parameters(iteration)
        state = step(state, h=0.1, lam=lam, beta=0.9, order=order, saturating=False)
        actual = [p.item() for p in (model.net_g.theta, model.net_d.psi, model.net_g_ema.theta)]
        np.testing.assert_allclose(actual, state, atol=1e-5)
