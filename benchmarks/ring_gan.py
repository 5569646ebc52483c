"""A GAN on a ring of eight Gaussians, with and without self-distillation, in a calm training and one that cycles.

    python benchmarks/ring_gan.py [--seeds 64]

prints, for each training and weight, how far the generated points are from the data: the energy distance, mean and
standard error over the seeds, of the EMA generator, which is the one deployed, and of the active one. It takes a minute
or two on a CPU, since all seeds and weights are trained at once, each a slice of the same tensors.

Generator and discriminator are perceptrons with two hidden layers; both play the non-saturating logistic game with
Adam, updated simultaneously, as BasicSR's SR GANs are. Self-distillation adds weight * mean |G(z) - G_ema(z)|^2 to the
generator's loss, without gradient into the EMA. Both trainings see the same latents and data for every weight.

    calm      with the R1 penalty on the data, the usual cure of cycling
    cycling   without it

What is expected, written down before the weights were run (at weight 0 the two trainings had been looked at, to see
that one is calm and the other cycles): self-distillation damps what moves fast and ignores what stands still, at the
price of holding back a generator that moves steadily.

    cycling   the active generator improves at every weight, most at 0.1; its EMA, which averages the cycle already,
              improves less
    calm      no gain; at 0.3 the generator is held back and the distance of the EMA is larger than at 0
    both      the active generator comes closer to its EMA with every step of the weight
"""
from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = (0., .03, .1, .3)
HIDDEN, LATENT, BATCH = 32, 4, 64
RADIUS, SPREAD = 2., .1
DECAY = .99  # of the EMA
Net = list[Tensor]  # weight (runs, in, out) and bias (runs, 1, out) of each layer


@dataclass(frozen=True)
class Training:
    """How long and how fast, and the weight of the R1 penalty."""
    r1: float
    lr: float = 2e-3
    betas: tuple[float, float] = (0., .99)
    iterations: int = 3000


TRAININGS = {'calm': Training(r1=1.), 'cycling': Training(r1=0.)}


def perceptron(runs: int, sizes: Sequence[int], seeds: int) -> Net:
    """Networks of which run i starts as run i modulo `seeds` does."""
    net = []
    for width, out in zip(sizes[:-1], sizes[1:], strict=True):
        weight = torch.randn(seeds, width, out) * math.sqrt(2 / width)
        net += [weight.repeat(runs // seeds, 1, 1), torch.zeros(runs, 1, out)]
    return [p.requires_grad_() for p in net]


def apply(net: Net, x: Tensor) -> Tensor:
    """(runs, N, in) -> (runs, N, out)."""
    for i in range(0, len(net), 2):
        x = torch.baddbmm(net[i + 1], x, net[i])
        x = F.leaky_relu(x, .2) if i + 2 < len(net) else x
    return x


def ring(seeds: int, count: int) -> Tensor:
    """Points of eight Gaussians on a circle, (seeds, count, 2)."""
    angle = torch.randint(8, (seeds, count)) * (math.pi / 4)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], -1) + SPREAD * torch.randn(seeds, count, 2)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased, of (runs, N, 2) and (runs, N, 2): (runs, )."""
    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum((1, 2)) / (z.shape[1] * (z.shape[1] - 1))

    return 2 * torch.cdist(x, y).mean((1, 2)) - within(x) - within(y)


def train(training: Training, weights: Sequence[float], seeds: int) -> tuple[Net, Net]:
    """Generators and their EMAs; run i has weight `weights[i // seeds]`."""
    runs = len(weights) * seeds
    net_g = perceptron(runs, (LATENT, HIDDEN, HIDDEN, 2), seeds)
    net_d = perceptron(runs, (2, HIDDEN, HIDDEN, 1), seeds)
    ema = [p.detach().clone() for p in net_g]
    lam = torch.tensor(weights).repeat_interleave(seeds)
    optim_g, optim_d = (torch.optim.Adam(net, lr=training.lr, betas=training.betas) for net in (net_g, net_d))
    for _ in range(training.iterations):
        z, real = (x.repeat(len(weights), 1, 1) for x in (torch.randn(seeds, BATCH, LATENT), ring(seeds, BATCH)))
        fake = apply(net_g, z)
        distance = (fake - apply(ema, z)).square().sum(-1).mean(1)
        loss_g = F.softplus(-apply(net_d, fake)).mean((1, 2)) + lam * distance
        gradients = torch.autograd.grad(loss_g.sum(), net_g)
        _update(optim_d, net_d, torch.autograd.grad(loss_of_discriminator(net_d, real, fake.detach(), training.r1),
                                                    net_d))
        _update(optim_g, net_g, gradients)
        torch._foreach_lerp_(ema, [p.detach() for p in net_g], 1 - DECAY)
    return net_g, ema


def loss_of_discriminator(net_d: Net, real: Tensor, fake: Tensor, r1: float) -> Tensor:
    """The logistic loss and R1, r1 / 2 E|grad D|^2 on the data, summed over the runs."""
    real = real.requires_grad_(r1 > 0)
    logits = apply(net_d, real)
    loss = F.softplus(-logits).mean((1, 2)) + F.softplus(apply(net_d, fake)).mean((1, 2))
    if r1:
        slope, = torch.autograd.grad(logits.sum(), real, create_graph=True)
        loss = loss + r1 / 2 * slope.square().sum(-1).mean(1)
    return loss.sum()


def _update(optimizer: torch.optim.Optimizer, net: Net, gradients: Sequence[Tensor]) -> None:
    for p, gradient in zip(net, gradients, strict=True):
        p.grad = gradient
    optimizer.step()


@torch.no_grad()
def measure(net_g: Net, ema: Net, runs_per_weight: int, count: int = 512) -> dict[str, Tensor]:
    """Energy distances to new data and the distance between both generators, (weights, seeds) each."""
    weights = len(net_g[0]) // runs_per_weight
    z, real = (x.repeat(weights, 1, 1) for x in (torch.randn(runs_per_weight, count, LATENT),
                                                 ring(runs_per_weight, count)))
    active, averaged = apply(net_g, z), apply(ema, z)
    values = {'EMA': energy_distance(averaged, real), 'active': energy_distance(active, real),
              'active to EMA': (active - averaged).norm(dim=-1).mean(1)}
    return {name: value.view(weights, runs_per_weight) for name, value in values.items()}


def run(name: str, weights: Sequence[float] = WEIGHTS, seeds: int = 64) -> dict[str, Tensor]:
    """The measurements of one training, from fixed random numbers."""
    torch.manual_seed(0)
    return measure(*train(TRAININGS[name], weights, seeds), seeds)


def table(name: str, values: dict[str, Tensor], weights: Sequence[float] = WEIGHTS) -> str:
    """Means and standard errors over the seeds; then the EMA's difference to weight 0, by seed."""
    lines = [f'{name:<10}{"weight":<8}' + ''.join(f'{column:<20}' for column in values) + 'EMA - EMA at 0']
    for i, weight in enumerate(weights):
        cells = [_mean(value[i]) for value in values.values()]
        lines.append(f'{"":<10}{weight:<8g}' + ''.join(f'{cell:<20}' for cell in cells)
                     + (_mean(values['EMA'][i] - values['EMA'][0]) if i else ''))
    return '\n'.join(lines)


def _mean(values: Tensor) -> str:
    return f'{values.mean():.4f} +- {values.std() / len(values)**.5:.4f}'


def main(argv: list[str] | None = None) -> None:
    """The command; `argv` is the command line without the program's name."""
    parser = argparse.ArgumentParser(description='A GAN on a ring of Gaussians with and without self-distillation.')
    parser.add_argument('--seeds', type=int, default=64, help='how many trainings per weight')
    seeds = parser.parse_args(argv).seeds
    for name in TRAININGS:
        print(table(name, run(name, seeds=seeds)), end='\n\n')


if __name__ == '__main__':
    main()
