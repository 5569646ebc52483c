"""What `teacher.cache` changes: the teacher's image by distance from the crop's border, and the time of an iteration.

    python docs/results/mcadkd/teacher_cache.py -opt docs/results/mcadkd/mcadkd_edsr16_x2.yml \
      --force_yml teacher:cache=datasets/cache/imdn_x2
"""
# ruff: noqa: I001
import kd_models  # noqa: F401
import imdn_arch  # noqa: F401

import os
import sys
import time
from copy import deepcopy

import torch
from basicsr.models import build_model

from kd_cli.loop import create_loaders
from kd_models.mcadkd_model import MCADKDModel
from kd_utils.options import parse_options

CROPS, ROUNDS, ITERATIONS = 500, 6, 3
RINGS = ((0, 2), (2, 4), (4, 8), (8, 16), (16, 32))  # distances from the border, in pixels of the GT crop


def options():
    opt, _ = parse_options(sys.argv[1:], os.getcwd())
    opt['logger']['use_tb_logger'] = False
    MCADKDModel.complete(opt)
    return opt


def uncached(opt):
    return {**deepcopy(opt), 'teacher': {**deepcopy(opt['teacher']), 'cache': None}}


def ring_means(difference):
    """The mean of |difference| (N, C, H, W) in each ring."""
    side = torch.arange(difference.shape[-1])
    side = torch.minimum(side, side.flip(0))
    distance = torch.minimum(side[:, None], side[None])
    return [float(difference.abs()[..., (distance >= low) & (distance < high)].mean()) for low, high in RINGS]


def differences(opt, teacher, augmented):
    """Rows of ring means over random crops: cached against uncached, and each against the ground truth."""
    opt = deepcopy(opt)
    opt['datasets']['train'].update(use_hflip=augmented, use_rot=augmented, batch_size_per_gpu=1)
    loader, sampler, _ = create_loaders(opt)
    sampler.set_epoch(0)
    rows = []
    for _, item in zip(range(CROPS), loader, strict=False):
        of_crop, gt = teacher.generate(item['lq'])[0], item['gt']
        rows.append([ring_means(d) for d in (item['teacher'] - of_crop, item['teacher'] - gt, of_crop - gt)])
    return torch.tensor(rows, dtype=torch.float64).mean(0).tolist()


def iteration_times(opts):
    """Seconds per iteration of each training, data included, in turns of a few iterations."""
    runs = []
    for opt in opts:
        loader, sampler, _ = create_loaders(opt)
        sampler.set_epoch(0)
        runs.append((build_model(opt), iter(loader)))
    seconds, iteration = [[] for _ in opts], 0
    for _ in range(ROUNDS):
        for (model, batches), spent in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            for i in range(1, ITERATIONS + 1):
                model.feed_data(next(batches))
                model.optimize_parameters(iteration + i)
            spent.append((time.perf_counter() - start) / ITERATIONS)
        iteration += ITERATIONS
    return [sorted(spent[1:])[(ROUNDS - 1) // 2] for spent in seconds]  # the median, without the first turn


def main():
    opt = options()
    loader, sampler, _ = create_loaders(opt)
    model = build_model(uncached(opt))
    cache = sampler.dataset
    cache.claim(model.teacher.fingerprint())
    for _ in cache.fill(cache.missing(), lambda lq: model.teacher.generate(lq)[0]):
        pass
    print('mean absolute difference x 255   ' + ''.join(f'{f"{low}-{high - 1} px":>10}' for low, high in RINGS))
    for augmented in (False, True):
        rows = differences(opt, model.teacher, augmented)
        for name, row in zip(('cached - uncached', 'cached - GT', 'uncached - GT'), rows, strict=True):
            print(f'{name:19}{"flips, turns" if augmented else "crops only":14}'
                  + ''.join(f'{value * 255:10.3f}' for value in row))
    with_cache, without = iteration_times([opt, uncached(opt)])
    print(f'time of an iteration, cached / uncached: {with_cache / without:.2f}')


if __name__ == '__main__':
    main()
