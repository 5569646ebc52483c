"""Student networks whose first weights let the signal through, one per seed: experiments/start/SEED.pth

From PyTorch's initialisation, or He's, SRVGGNetCompact at 16 features and 32 convolutions does not leave the
nearest-neighbour image that it adds to its output within the iterations of this comparison. From identities with a
little noise it does.
"""
import kd_models  # noqa: F401  first: it makes basicsr importable

# ruff: noqa: I001
import os

import torch
from basicsr.archs import build_network
from torch import nn

STUDENT = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_conv': 32, 'upscale': 4,
           'act_type': 'prelu'}

os.makedirs('experiments/start', exist_ok=True)
for seed in range(3):
    torch.manual_seed(seed)
    net = build_network(dict(STUDENT))
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        nn.init.dirac_(conv.weight)
        conv.weight.data += 0.02 * torch.randn_like(conv.weight)
        nn.init.zeros_(conv.bias)
    nn.init.kaiming_normal_(convs[0].weight)
    nn.init.normal_(convs[-1].weight, std=0.01)
    torch.save({'params': net.state_dict()}, f'experiments/start/{seed}.pth')
