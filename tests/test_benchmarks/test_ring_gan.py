"""The ring of Gaussians: the measure, that runs differ by their weight alone, and the effect of self-distillation."""
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import ring_gan
from benchmarks.ring_gan import (
    TRAININGS,
    apply,
    energy_distance,
    loss_of_discriminator,
    main,
    measure,
    perceptron,
    ring,
    train,
)


def test_the_energy_distance_of_two_gaussians():
    """2 E|x - y| - E|x - x'| - E|y - y'| in one dimension, with E|N(m, 2)| in closed form; 0 for one distribution."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 4000, 1), torch.randn(2, 4000, 1)
    y[1] += 1
    apart = 2 / math.sqrt(math.pi) * math.exp(-1 / 4) + math.erf(1 / 2)
    expected = torch.tensor([0, 2 * apart - 4 / math.sqrt(math.pi)])
    torch.testing.assert_close(energy_distance(x, y), expected, atol=0.02, rtol=0)


def test_the_data_are_eight_gaussians():
    torch.manual_seed(0)
    points = ring(2, 4000)
    angle = torch.atan2(points[..., 1], points[..., 0]) / (math.pi / 4)
    modes = angle.round() % 8
    assert [round((modes == mode).float().mean().item(), 1) for mode in range(8)] == [0.1] * 8
    centres = 2 * torch.stack([(modes * math.pi / 4).cos(), (modes * math.pi / 4).sin()], -1)
    assert (points - centres).std().item() == pytest.approx(0.1, rel=0.05)


def test_r1_is_half_the_squared_slope_on_the_data():
    torch.manual_seed(0)
    net = perceptron(2, (2, 8, 1), 2)
    real, fake = torch.randn(2, 5, 2), torch.randn(2, 5, 2)
    penalty = loss_of_discriminator(net, real.clone(), fake, 3.) - loss_of_discriminator(net, real.clone(), fake, 0.)
    slopes = [torch.autograd.functional.jacobian(lambda p, i=i: apply([w[i:i + 1] for w in net], p[None, None]).sum(),
                                                 point) for i in range(2) for point in real[i]]
    assert penalty.item() == pytest.approx(3 / 2 * sum(s.square().sum().item() for s in slopes) / 5, rel=1e-4)


def test_each_run_is_the_one_that_it_would_be_alone():
    """The same seeds for every weight, and no run feels another."""
    training = replace(TRAININGS['calm'], iterations=20)
    results = []
    for weights in ((0., .3), (0., ), (.3, )):
        torch.manual_seed(0)
        results.append(train(training, weights, 3)[0])
    for together, without, with_it in zip(*results, strict=True):
        torch.testing.assert_close(together, torch.cat([without, with_it]), atol=1e-4, rtol=1e-3)
        assert not torch.allclose(without, with_it, atol=1e-3)


def test_the_generator_learns_and_stays_closer_to_its_ema():
    training = replace(TRAININGS['calm'], iterations=400)
    torch.manual_seed(0)
    before = measure(*[perceptron(4, (4, 32, 32, 2), 4)] * 2, 4)
    after = measure(*train(training, (0., .3), 4), 4)
    assert after['EMA'][0].mean() < 0.5 * before['EMA'].mean()
    assert after['active to EMA'][1].mean() < 0.8 * after['active to EMA'][0].mean()


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(ring_gan, 'TRAININGS', {name: replace(one, iterations=5) for name, one in TRAININGS.items()})
    main(['--seeds', '3'])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and not line.startswith(' ')] == ['calm', 'cycling']
    assert sum('+-' in line for line in lines) == 2 * len(ring_gan.WEIGHTS)
