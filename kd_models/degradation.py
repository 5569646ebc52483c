"""Real-ESRGAN's LR images, made while training: borrowed from BasicSR's RealESRGANModel, on any device.

BasicSR's own functions run on `Degradation` in the place of a model, so that what they draw and compute is theirs.
"""
from __future__ import annotations

from typing import Any

import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import DiffJPEG, USMSharp
from torch import Tensor, nn

# loss -> the key that has it compare with sharpened ground truths
USM_KEYS = {'pixel': 'l1_gt_usm', 'perceptual': 'percep_gt_usm', 'gan': 'gan_gt_usm'}


def is_degrading(opt: dict[str, Any]) -> bool:
    """Whether LR images are made while training: Real-ESRGAN's keys are there and not switched off."""
    return bool(opt['is_train'] and 'resize_prob' in opt and opt.get('high_order_degradation', True))


class Degradation:
    """Second-order degradation, training pair pool and USM sharpening (Wang et al., Real-ESRGAN, ICCVW 2021).

    Args:
        opt: The options, with Real-ESRGAN's keys at the top.
        device: Where images are degraded.

    Attributes:
        lq: LR images of the last call, (N, 3, H, W) in [0, 1], rounded to 8 bits.
        gt: Their ground truths, (N, 3, sH, sW) in [0, 1].
        gt_usm: The same sharpened, None with RealESRNet's key `gt_usm`.
    """
    is_train = True  # BasicSR's functions ask for it
    lq: Tensor
    gt: Tensor
    gt_usm: Tensor | None = None
    _dequeue_and_enqueue = RealESRGANModel._dequeue_and_enqueue

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        self.opt = opt
        self.device = device
        self.usm_sharpener = USMSharp().to(device)
        self.jpeger = _Contiguous(DiffJPEG(differentiable=False)).to(device)
        # RealESRNet's sharpens before it degrades, and is the same otherwise
        self._synthesize = (RealESRNetModel if 'gt_usm' in opt else RealESRGANModel).feed_data
        self.queue_size, self.queue_ptr = opt.get('queue_size', 180), 0
        size = opt['gt_size']  # allocated here, since BasicSR's function would take a GPU for granted
        self.queue_gt = torch.zeros(self.queue_size, 3, size, size, device=device)
        self.queue_lr = torch.zeros(self.queue_size, 3, size // opt['scale'], size // opt['scale'], device=device)

    def __call__(self, data: dict[str, Tensor]) -> None:
        """Sets `lq`, `gt` and `gt_usm` from a batch of RealESRGANDataset: `gt`, `kernel1`, `kernel2`, `sinc_kernel`."""
        self._synthesize(self, data)  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """The pool of this process."""
        return {'queue_ptr': self.queue_ptr, 'queue_lr': _packed(self.queue_lr), 'queue_gt': _packed(self.queue_gt)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores the pool.

        Raises:
            RuntimeError: It is of another size.
            ValueError: It was being filled by batches of another size, which do not end where it does.
        """
        batch = self.opt['datasets']['train']['batch_size_per_gpu']
        if (self.queue_size - state['queue_ptr']) % batch:
            raise ValueError(f'It was filled up to {state["queue_ptr"]} of {self.queue_size}, which batches of {batch} '
                             'do not complete.')
        for name in ('queue_lr', 'queue_gt'):
            getattr(self, name).copy_(_unpacked(state[name]))
        self.queue_ptr = state['queue_ptr']


def _packed(images: Tensor) -> Tensor:
    """As 8 bits where they are 8-bit images, which takes a quarter of the space and loses nothing."""
    levels = (images * 255).round().byte()
    return levels if torch.equal(_unpacked(levels), images) else images


def _unpacked(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype is torch.uint8 else images


class _Contiguous(nn.Module):
    """BasicSR's blur needs contiguous images, which on a CPU its JPEG does not return."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        return self.net(x, quality=quality).contiguous()
