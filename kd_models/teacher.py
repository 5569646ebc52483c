"""The frozen networks that teach: built from the `teacher` section, kept in eval, never trained, never saved."""
from __future__ import annotations

import hashlib
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from kd_models.adapters import build_adapter
from kd_models.taps import Taps
from kd_utils import checkpoint
from kd_utils.options import OptionError


class Teacher:
    """A frozen generator and, optionally, its discriminator.

    It is not a module of the model that trains, so nothing switches it to train mode, optimizes it or saves it.

    Args:
        opt: The `teacher` section: `network_g`, optional `network_d`, `path`.
        device: Where it is placed.
    """

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        self.adapter = build_adapter(opt['network_g'])
        self.net_g = self._frozen(opt, 'g', device)
        self.net_d: Any = self._frozen(opt, 'd', device) if opt.get('network_d') else None

    @staticmethod
    def _frozen(opt: dict[str, Any], label: str, device: torch.device) -> nn.Module:
        net = build_network(opt[f'network_{label}'])
        path = opt.get('path') or {}
        file = path.get(f'pretrain_network_{label}')
        if file is None:  # it came with its weights
            return net.to(device).eval().requires_grad_(False)
        key = path.get(f'param_key_{label}', 'params_ema' if label == 'g' else 'params')
        get_root_logger().info(f'Loading the teacher {type(net).__name__} from {file}, with param key: [{key}].')
        untrained = checkpoint.load_network(net, file, path.get(f'strict_load_{label}', True), key)
        if untrained:
            raise OptionError(f'{file} leaves {untrained} tensors of teacher.network_{label} untrained. '
                              'Describe the network as it was trained, or name another file.')
        # no_grad, not inference_mode: inference tensors cannot be saved for the backward of an adaptor
        return net.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def generate(self, lq: Tensor, taps: Taps | None = None, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The teacher's SR images for `lq` (N, C, H, W), its feature maps by layer; `inputs` as for the student."""
        if taps is None:
            return self.adapter(self.net_g, lq, **inputs), {}
        return taps.run(lambda: self.adapter(self.net_g, lq, **inputs))

    def fingerprint(self) -> dict[str, Any]:
        """What decides its images: the network's options, how it is called, and a hash of its weights as loaded."""
        weights = hashlib.sha256()
        for name, tensor in self.net_g.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return {'network_g': self.adapter.network_opt, 'adapter': type(self.adapter).__name__,
                'weights': weights.hexdigest()}
