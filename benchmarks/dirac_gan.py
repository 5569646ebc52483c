"""The Dirac-GAN with and without self-distillation, in all three update orders.

    python benchmarks/dirac_gan.py [--out docs/results/sdgan]

prints the spectral radius of one training step, measured and in closed form, then how far full runs are from the
equilibrium, and writes `dirac_gan.png`, their trajectories, into the folder. It takes seconds on a CPU.

The game (Mescheder et al. 2018): the generator is one number theta, the data are 0, the discriminator is
D(x) = psi x, and both play L = f(psi theta) with f(t) = -log(1 + exp(-t)), c = f'(0) = 1/2. Self-distillation adds
lambda/2 (theta - phi)^2 to the generator's loss, phi being theta's moving average, without gradient:

    theta <- theta - h (psi f'(psi theta) + lambda (theta - phi))       psi <- psi + h theta f'(psi theta)
    phi <- beta phi + (1 - beta) theta,  last and with the new theta

`order` says which player sees the other's new value, as `train.update_order` does; a test holds the package's own
training step against `step` here. "Measured" means: the eigenvalues of the derivative of `step` at the equilibrium,
taken by finite differences. The closed form is the largest root of the characteristic polynomial.
"""
from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no display is needed

import matplotlib.pyplot as plt

ORDERS = ('simultaneous', 'g_first', 'd_first')
C = 0.5  # f'(0)
State = tuple[float, float, float]  # theta, psi, phi


# ------------------------------------------------------------------------------------------------------------ the game


def sigmoid(t: float) -> float:
    """1 / (1 + exp(-t)) without overflow; f'(t) is sigmoid(-t)."""
    return 0.5 * (1 + math.tanh(t / 2))


def step(state: State, *, h: float, lam: float, beta: float, order: str, saturating: bool = True) -> State:
    """One iteration.

    Args:
        state: theta, psi, phi.
        h: Step size of both players.
        lam: lambda, the weight of self-distillation.
        beta: Decay of the moving average.
        order: One of ORDERS.
        saturating: Whether the generator minimises f(psi theta), or maximises f(-psi theta), the usual loss.
    """
    theta, psi, phi = state
    moves: dict[str, Callable[[float, float], float]] = {
        'g': lambda of_theta, of_psi: of_theta - h * (
            of_psi * sigmoid(-of_psi * of_theta if saturating else of_psi * of_theta) + lam * (of_theta - phi)),
        'd': lambda of_theta, of_psi: of_psi + h * of_theta * sigmoid(-of_psi * of_theta),
    }
    if order == 'd_first':
        psi = moves['d'](theta, psi)
    new_theta = moves['g'](theta, psi)
    if order == 'simultaneous':
        psi = moves['d'](theta, psi)
    elif order == 'g_first':
        psi = moves['d'](new_theta, psi)
    return new_theta, psi, beta * phi + (1 - beta) * new_theta


def run(steps: int, start: tuple[float, float] = (1., 1.), **options: float | str | bool) -> np.ndarray:
    """The states after each step, (steps, 3); phi starts at theta."""
    state: State = (start[0], start[1], start[0])
    states = []
    for _ in range(steps):
        state = step(state, **options)  # type: ignore[arg-type]
        states.append(state)
    return np.array(states)


def radius(states: np.ndarray) -> np.ndarray:
    """Distance of (theta, psi) from the equilibrium, (steps, )."""
    return np.hypot(states[:, 0], states[:, 1])


# ----------------------------------------------------------------------------------------------------- spectral radius


def measured_radius(**options: float | str | bool) -> float:
    """Spectral radius of `step` at the equilibrium, from central differences."""
    eps, columns = 1e-4, []
    for i in range(3):
        ahead, behind = (tuple(sign * eps * (i == j) for j in range(3)) for sign in (1, -1))
        columns.append((np.array(step(ahead, **options)) - np.array(step(behind, **options))) / (2 * eps))  # type: ignore
    return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())


def closed_radius(*, h: float, lam: float, beta: float, order: str) -> float:
    """The same from the characteristic polynomial, with g = h c, eta = h lambda, kappa = 1 - beta.

        simultaneous:         w^3 + (kappa + beta eta) w^2 + g^2 w + kappa g^2 = 0,    w = z - 1
        g_first and d_first:  (z - 1)^2 (z - beta) + g^2 z (z - beta) + beta eta (z - 1)^2 = 0
    """
    g2, eta, kappa = (h * C)**2, h * lam, 1 - beta
    if order == 'simultaneous':
        return float(np.abs(1 + np.roots([1, kappa + beta * eta, g2, kappa * g2])).max())
    square = np.array([1., -2., 1.])  # (z - 1)^2
    terms = (np.polymul(square, [1, -beta]), g2 * np.array([1, -beta, 0]), beta * eta * square)
    polynomial = terms[0]
    for term in terms[1:]:
        polynomial = np.polyadd(polynomial, term)
    return float(np.abs(np.roots(polynomial)).max())


def stable_weights(*, h: float, beta: float, order: str) -> tuple[float, float]:
    """Lowest and highest lambda between which the step contracts; (nan, nan) where none does."""
    g2, kappa = (h * C)**2, 1 - beta
    if order == 'simultaneous':
        return (g2 + (kappa / beta)**2) / h, (1 + beta) * (4 + g2) / (4 * beta * h)
    return (0., (1 + beta) * (4 - g2) / (4 * beta * h)) if g2 < 4 else (math.nan, math.nan)


# -------------------------------------------------------------------------------------------------------------- report

# h, lambda, beta; 0.5^(32/10000) is StyleGAN2's decay
SETTINGS = [(.1, 0., .99), (.1, .02, .99), (.1, .1, .99), (.1, .5, .99), (.1, 1., .99), (.1, .1, .9), (.1, 1., .9),
            (.1, 1., .999), (.1, 1., .5**(32 / 1e4)), (.01, 0., .999), (.01, .1, .999)]
WEIGHTS = (0., .1, .5)
RUN = {'h': .1, 'beta': .99}


def print_radii() -> None:
    print('Spectral radius of one step: measured / closed form. Below 1 the game converges.\n')
    print(f'{"h":<6}{"lambda":<8}{"beta":<10}' + ''.join(f'{order:<26}' for order in ORDERS)
          + 'lambda needed, simultaneous')
    for h, lam, beta in SETTINGS:
        options = [{'h': h, 'lam': lam, 'beta': beta, 'order': order} for order in ORDERS]
        cells = [f'{measured_radius(**one):.8f} / {closed_radius(**one):.8f}' for one in options]  # type: ignore
        lowest = stable_weights(h=h, beta=beta, order='simultaneous')[0]
        print(f'{h:<6}{lam:<8}{beta:<10.6f}' + ''.join(f'{cell:<26}' for cell in cells) + f'{lowest:.6f}')


def print_runs() -> None:
    print('\nDistance from the equilibrium in full runs from (1, 1), h = 0.1, beta = 0.99.\n')
    print(f'{"order":<14}{"loss":<16}{"lambda":<8}{"r(100)":<12}{"r(1000)":<12}r(2000)')
    for order in ORDERS:
        for saturating in (True, False):
            for lam in WEIGHTS:
                r = radius(run(2000, lam=lam, order=order, saturating=saturating, **RUN))
                loss = 'saturating' if saturating else 'non-saturating'
                print(f'{order:<14}{loss:<16}{lam:<8}' + ''.join(f'{r[at - 1]:<12.4g}' for at in (100, 1000, 2000)))


def draw(path: Path) -> None:
    """Trajectories in the plane of theta and psi, and the distance from the equilibrium below them."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 6), layout='constrained', sharey='row')
    for order, (plane, distance) in zip(ORDERS, axes.T, strict=True):
        for lam in WEIGHTS:
            states = run(2000, lam=lam, order=order, **RUN)
            plane.plot(states[:600, 0], states[:600, 1], linewidth=.8, label=f'λ = {lam:g}')
            distance.semilogy(radius(states), linewidth=1.2)
        plane.plot(0, 0, 'k+')
        plane.set(title=order, xlabel='θ', xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect='equal')
        distance.set(xlabel='iteration', ylim=(1e-6, 10))
        distance.grid(alpha=.3)
    axes[0, 0].set_ylabel('ψ, first 600 iterations')
    axes[1, 0].set_ylabel('distance from (0, 0)')
    axes[0, 0].legend(loc='upper left', fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """The command; `argv` is the command line without the program's name."""
    parser = argparse.ArgumentParser(description='The Dirac-GAN with and without self-distillation.')
    parser.add_argument('--out', type=Path, default=Path('docs/results/sdgan'), help='folder of dirac_gan.png')
    out = parser.parse_args(argv).out
    print_radii()
    print_runs()
    out.mkdir(parents=True, exist_ok=True)
    draw(out / 'dirac_gan.png')
    print(f'\nWritten: {out / "dirac_gan.png"}')


if __name__ == '__main__':
    main()
