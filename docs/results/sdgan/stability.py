"""The paper's claims in numbers: steadier checkpoints, a smaller gap to the EMA, two losses that are not one.

    python docs/results/sdgan/stability.py
"""
# ruff: noqa: I001
import kd_models  # noqa: F401  first: it makes basicsr importable

import json
import re
from pathlib import Path

import cv2
import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.metrics.niqe import calculate_niqe
from basicsr.utils import img2tensor, tensor2img

from kd_utils import checkpoint

WEIGHTS, SEEDS, FIRST = ('0', '0.1', '0.316', '1'), range(3), 400
PHOTOGRAPHS = sorted(Path('datasets/prepared/GB82/LRbicX4').glob('*.png'))[::3]
NETWORK = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_conv': 32, 'upscale': 4,
           'act_type': 'prelu'}


@torch.no_grad()
def niqe(path: Path) -> float:
    """Mean NIQE of the EMA generator's images of the photographs; whole ones, since on small crops it varies widely."""
    net = build_network(dict(NETWORK)).eval()
    checkpoint.load_network(net, path, key='params_ema')
    images = [img2tensor(cv2.imread(str(p)).astype(np.float32) / 255)[None] for p in PHOTOGRAPHS]
    return float(np.mean([calculate_niqe(tensor2img(net(image)), crop_border=4) for image in images]))


def spread(points: dict[int, float]) -> float:
    """Standard deviation about a straight line."""
    x, y = np.array(sorted(points.items())).T
    return float(np.std(y - np.polyval(np.polyfit(x, y, 1), x), ddof=2))


def run(weight: str, seed: int) -> dict[str, float]:
    root = Path(f'experiments/sdgan_w{weight}_s{seed}')
    lines = [json.loads(line) for line in (root / 'validation.jsonl').read_text().splitlines()]
    curves = {name: {line['iter']: line['metrics'][name] for line in lines if line['iter'] >= FIRST}
              for name in ('psnr', 'vgg19_l3_dist', 'random_fid')}
    curves['niqe'] = {i: niqe(root / f'models/net_g_{i}.pth') for i in curves['psnr']}
    log = next(root.glob('train_*.log')).read_text()
    found = re.findall(r'iter:\s+(\d+),.* l_g_gan: (\S+) .*self_distill_distance: (\S+)', log)
    gan, distance = np.array([[float(g), float(d)] for i, g, d in found if int(i) > FIRST]).T
    return {**{f'spread of {name}': spread(points) for name, points in curves.items()},
            'distance to the EMA': float(distance.mean()),
            'correlation with l_g_gan': float(np.corrcoef(gan, distance)[0, 1])}


def main() -> None:
    print(f'Iterations from {FIRST} on, mean (each seed)')
    for weight in WEIGHTS:
        runs = [run(weight, seed) for seed in SEEDS]
        print(f'\nweight {weight}')
        for name in runs[0]:
            values = [of_run[name] for of_run in runs]
            print(f'    {name:28}{np.mean(values):9.4f}  ({", ".join(f"{v:.4f}" for v in values)})')


if __name__ == '__main__':
    main()
