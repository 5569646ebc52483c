"""What a diffusion teacher and its one-pass student cost on the same image.

    python benchmarks/advkd_cost.py [-opt options/train/AdvKD/advkd_x4_practical.yml] [--size 64] [--repeats 5]

prints parameters, multiply-adds, evaluations of the network and milliseconds per image of both networks of an option
file of AdvKDModel. Weights are random, since cost does not depend on them. Both are timed in turns, after a pass that
is not counted, and the median is shown; multiply-adds are those of all evaluations together.
"""
from __future__ import annotations

# ruff: noqa: I001
import kd_models  # noqa: F401  first: it makes basicsr importable and registers the networks

import argparse
import statistics
import time
from typing import Any

import torch
from basicsr.archs import build_network

from kd_models.probe import probe
from kd_utils.options import load_yaml


def networks(opt: dict[str, Any]) -> dict[str, torch.nn.Module]:
    """Teacher and student of an option file, in eval."""
    sections = {'teacher': opt['teacher']['network_g'], 'student': opt['network_g']}
    return {name: build_network(section).eval() for name, section in sections.items()}


def inputs(opt: dict[str, Any], size: int, device: torch.device) -> torch.Tensor:
    """An LR image (1, 3, size, size) or, for unconditional networks, the noise (1, 3 * S * S) of an image of side S."""
    side = opt['network_g'].get('size')
    return torch.randn(1, 3 * side**2, device=device) if side else torch.rand(1, 3, size, size, device=device)


@torch.no_grad()
def milliseconds(nets: dict[str, torch.nn.Module], image: torch.Tensor, repeats: int) -> dict[str, float]:
    """The median of each network's times."""
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(repeats + 1):
        for name, net in nets.items():
            start = time.perf_counter()
            net(image)
            if image.is_cuda:
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def table(opt: dict[str, Any], size: int, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each network."""
    nets = {name: net.to(device) for name, net in networks(opt).items()}
    image = inputs(opt, size, device)
    times, rows = milliseconds(nets, image, repeats), []
    for name, net in nets.items():
        measured = probe(net, tuple(image.shape), owner=name)
        sampler = getattr(net, 'sampler', None)
        rows.append({'name': name, 'params': measured.params, 'macs': measured.macs,
                     'evaluations': sampler.steps if sampler else 1, 'ms': times[name], 'shape': measured.shape})
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command; `argv` is the command line without the program's name."""
    parser = argparse.ArgumentParser(description='What a diffusion teacher and its student cost.')
    parser.add_argument('-opt', default='options/train/AdvKD/advkd_x4_practical.yml', help='option file of AdvKDModel')
    parser.add_argument('--size', type=int, default=64, help='side of the LR image')
    parser.add_argument('--repeats', type=int, default=5, help='passes that are timed')
    args = parser.parse_args(argv)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    opt = load_yaml(args.opt)
    if not opt.get('teacher'):
        parser.error(f'{args.opt} has no teacher. Name an option file of AdvKDModel.')
    rows = table(opt, args.size, args.repeats, device)
    height, width = rows[0]['shape'][-2:]
    print(f'{args.opt}, an image of {width}x{height}, {torch.get_num_threads()} threads, {device}\n')
    print('| network | params | MACs | evaluations | ms per image |\n| --- | --- | --- | --- | --- |')
    for row in rows:
        print(f'| {row["name"]} | {row["params"]:,} | {row["macs"] / 1e9:.3f} G | {row["evaluations"]} | '
              f'{row["ms"]:.1f} |')
    teacher, student = rows
    ratios = [teacher[key] / student[key] for key in ('params', 'macs', 'evaluations', 'ms')]
    print('| teacher/student | ' + ' | '.join(f'{ratio:.1f}x' for ratio in ratios) + ' |')


if __name__ == '__main__':
    main()
