"""The phases in pictures: the teacher's states above, what the student's heads make of the same noise below.

    python docs/results/advkd/phases.py EXPERIMENT OUT.png LR_IMAGE [LR_IMAGE ...]

Left of them is bicubic interpolation, right of them the ground truth, whose folder is HR beside that of the LR images;
all of the middle 32x32 pixels of an LR image.
Everything is in the teacher's terms, so what a state or a head holds is shown as bicubic + x / 2. Heads of smaller
images than the last are enlarged by repeating pixels.
"""
# ruff: noqa: I001
import kd_models  # noqa: F401  first: it makes basicsr importable

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.utils import img2tensor, tensor2img
from torch import Tensor
from torch.nn import functional as F

from kd_utils import checkpoint
from kd_utils.options import load_yaml
from kd_utils.resize import bicubic

OPTIONS = load_yaml('docs/results/advkd/student_x4.yml')
BORDER, SIDE = 4, 32


def network(section: dict, weights: str | Path, key: str) -> torch.nn.Module:
    net = build_network(dict(section)).eval()
    checkpoint.load_network(net, weights, key=key)
    return net


def image(path: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return img2tensor(cv2.imread(str(path)).astype(np.float32) / 255)[None]


def middle(x: Tensor, side: int) -> Tensor:
    top, left = ((size - side) // 2 for size in x.shape[-2:])
    return x[..., top:top + side, left:left + side]


def shown(x: Tensor, lq: Tensor, scale: int) -> Tensor:
    """bicubic + x / 2, with the LR image at the size of x, in the size of the SR image."""
    return F.interpolate(bicubic(lq, tuple(x.shape[-2:])) + x / 2, size=[scale * side for side in lq.shape[-2:]])


@torch.no_grad()
def rows(lq: Tensor, gt: Tensor, teacher: torch.nn.Module, student: torch.nn.Module,
         heads: torch.nn.ModuleList) -> list[list[Tensor]]:
    """The two rows of one image."""
    scale, condition = student.scale, teacher.condition(lq)
    noise = torch.randn(condition.shape, generator=torch.Generator().manual_seed(student.seed))
    states = teacher.trajectory(noise, condition).states[1:]
    maps = student.features(student.enter(lq, noise), len(student.phases))
    images = [head(x) for head, x in zip([*heads, student.head], maps, strict=True)]
    return [[condition, *(shown(x, lq, scale) for x in xs), gt] for xs in (states, images)]


def tile(tensor: Tensor) -> np.ndarray:
    return cv2.copyMakeBorder(tensor2img(tensor), 0, BORDER, 0, BORDER, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('experiment')
    parser.add_argument('out')
    parser.add_argument('images', nargs='+', type=Path)
    args = parser.parse_args()
    folder = Path('experiments') / args.experiment
    teacher = network(OPTIONS['teacher']['network_g'], OPTIONS['teacher']['path']['pretrain_network_g'], 'params_ema')
    student = network(OPTIONS['network_g'], folder / 'models/net_g_latest.pth', 'params')  # the heads have no EMA
    heads = student.phase_heads()
    state = max(folder.glob('training_states/*.state'), key=lambda path: int(path.stem))
    aux = checkpoint.load_state(state)['aux']
    heads.load_state_dict({name.removeprefix('phase_heads.'): value for name, value in aux.items()})

    pictures = []
    for path in args.images:
        lq = middle(image(path), SIDE)
        gt = middle(image(path.parent.parent / 'HR' / path.name), SIDE * student.scale)
        for row in rows(lq, gt, teacher, student, heads):
            pictures.append(np.hstack([tile(tensor) for tensor in row]))
    cv2.imwrite(args.out, np.vstack(pictures))


if __name__ == '__main__':
    main()
