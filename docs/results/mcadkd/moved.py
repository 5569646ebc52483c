"""What a run of MCAD-KD moved between two of its states: every tensor of networks, heads and temperatures.

    python docs/results/mcadkd/moved.py experiments/mcadkd_s0 1000 2000
"""
import sys

import torch

folder, *iterations = sys.argv[1:]
files = {'net_g': 'models/net_g_{}.pth', 'net_d': 'models/net_d_{}.pth', 'heads, tau': 'training_states/{}.state'}
for name, file in files.items():
    first, last = (torch.load(f'{folder}/{file.format(i)}', weights_only=True) for i in iterations)
    key = 'aux' if 'aux' in first else 'params'
    moved = [tensor for tensor in first[key] if not torch.equal(first[key][tensor], last[key][tensor])]
    still = sorted(set(first[key]) - set(moved))
    print(f'{name:12} {len(moved)} of {len(first[key])} tensors moved{", not: " + ", ".join(still) if still else ""}')
