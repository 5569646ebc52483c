"""The spread of a validation metric over the checkpoints of the adversarial stage, from experiments/*/validation.jsonl.

    python docs/results/sdakd/stability.py
"""
import json
from pathlib import Path

import numpy as np

ARMS, SEEDS, FIRST = ('sdakd', 'generator_only', 'student_d', 'full_d'), range(3), 625
METRICS = ('psnr', 'vgg19_l3_dist')

print(f'Standard deviation of the validations from iteration {FIRST} on about a straight line: mean (each seed)')
for arm in ARMS:
    cells = []
    for metric in METRICS:
        spreads = []
        for seed in SEEDS:
            path = Path(f'experiments/{arm}_s{seed}/validation.jsonl')
            lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            points = [(line['iter'], line['metrics'][metric]) for line in lines if line['iter'] >= FIRST]
            if points:
                x, y = np.array(points).T
                spreads.append(np.std(y - np.polyval(np.polyfit(x, y, 1), x), ddof=2))
        cells.append(f'{metric}: {np.mean(spreads):.3f} ({", ".join(f"{s:.3f}" for s in spreads)})')
    print(f'{arm:16}' + '   '.join(cells))
