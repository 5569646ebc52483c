"""How strongly each loss of a run pulls at the student, and where to: norms and cosines of their gradients.

    python docs/results/mcadkd/gradients.py -opt docs/results/mcadkd/mcadkd_edsr16_x2.yml --force_yml name=mcadkd_s0
"""
# ruff: noqa: I001
import kd_models  # noqa: F401
import imdn_arch  # noqa: F401

import os
import sys
from os import path as osp

import torch
from basicsr.models import build_model

from kd_cli.loop import create_loaders
from kd_data.draws import seed_everything
from kd_models.mcadkd_model import MCADKDModel
from kd_utils import checkpoint
from kd_utils.options import parse_options

ITERATIONS, BATCHES = (1000, 2000), 20


def options(iteration):
    """Those of the run; with the networks of an iteration, or as they were at the start."""
    opt, _ = parse_options(sys.argv[1:], os.getcwd())
    opt['logger']['use_tb_logger'] = False
    MCADKDModel.complete(opt)
    if iteration:
        for label in 'gd':
            opt['path'][f'pretrain_network_{label}'] = osp.join(opt['path']['models'], f'net_{label}_{iteration}.pth')
    return opt


def gradients(model, data):
    """Loss -> its weighted gradient with respect to the student's parameters, as one vector."""
    model.feed_data(data)
    step = model.step(10**6, model.enter_stage(10**6))  # a stage with all losses
    model.update.forward(step)
    found = {}
    for name in step.losses:
        loss = sum(value for key, value in model.terms[name](step).items() if key.startswith('l_'))
        grads = torch.autograd.grad(loss, list(model.net_g.parameters()), retain_graph=True)
        found[name] = torch.cat([grad.flatten() for grad in grads])
    return found


def main():
    for iteration in (0, *ITERATIONS):
        opt = options(iteration)
        loader, sampler, _ = create_loaders(opt)
        sampler.set_epoch(1000)  # crops of no iteration of the run
        seed_everything(opt['manual_seed'])
        model = build_model(opt)
        if iteration:
            state = checkpoint.load(osp.join(opt['path']['training_states'], f'{iteration}.state'))
            model.resume_training(state)
        rows = [gradients(model, data) for _, data in zip(range(BATCHES), loader, strict=False)]
        print(f'iteration {iteration}')
        for name in model.terms:
            norms = torch.stack([row[name].norm() / row['pixel'].norm() for row in rows])
            cosines = torch.stack([torch.cosine_similarity(row[name], row['pixel'], 0) for row in rows])
            print(f'    {name:12} norm / norm of pixel: {norms.mean():.4f} +- {norms.std():.4f}   '
                  f'cosine with pixel: {cosines.mean():+.2f}')


if __name__ == '__main__':
    main()
