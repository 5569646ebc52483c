"""Real-ESRGAN's LR images, made while training, with its pool of training pairs.

`degradation: exact` runs BasicSR's own functions on any device, so that what they draw and compute is theirs.
`degradation: fast` does the same to the images in a tenth of the time, with other random numbers.
"""
from __future__ import annotations

from typing import Any

import torch
from basicsr.data.transforms import paired_random_crop
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import DiffJPEG, USMSharp
from torch import Tensor, nn

from kd_models.synthesis import SeparableUSM, Synthesis

# loss -> the key that has it compare with sharpened ground truths
USM_KEYS = {'pixel': 'l1_gt_usm', 'perceptual': 'percep_gt_usm', 'gan': 'gan_gt_usm'}


def is_degrading(opt: dict[str, Any]) -> bool:
    """Whether LR images are made while training: Real-ESRGAN's keys are there and not switched off."""
    return bool(opt['is_train'] and 'resize_prob' in opt and opt.get('high_order_degradation', True))


def is_fast(opt: dict[str, Any]) -> bool:
    """Whether LR images and sharpened ground truths need not be BasicSR's bit for bit."""
    return is_degrading(opt) and opt.get('degradation') == 'fast'


def build_degradation(opt: dict[str, Any], device: torch.device) -> Degradation:
    """The degradation that the options ask for, BasicSR's own by default."""
    return (FastDegradation if is_fast(opt) else ExactDegradation)(opt, device)


def build_sharpener(opt: dict[str, Any]) -> nn.Module:
    """What sharpens ground truths (N, C, H, W) in [0, 1]; BasicSR's own by default."""
    return SeparableUSM() if is_fast(opt) else USMSharp()


class Degradation:
    """Second-order degradation, training pair pool and USM sharpening (Wang et al., Real-ESRGAN, ICCVW 2021).

    Args:
        opt: The options, with Real-ESRGAN's keys at the top.
        device: Where images are degraded.

    Attributes:
        lq: LR images of the last call, (N, 3, H, W) in [0, 1], rounded to 8 bits.
        gt: Their ground truths, (N, 3, sH, sW) in [0, 1].
        gt_usm: The same sharpened; None where nothing has sharpened them yet.
    """
    lq: Tensor
    gt: Tensor
    gt_usm: Tensor | None = None

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        self.opt = opt
        self.device = device
        self.queue_size, self.queue_ptr = opt.get('queue_size', 180), 0
        size = opt['gt_size']
        self.queue_gt = torch.zeros(self.queue_size, 3, size, size, device=device)
        self.queue_lr = torch.zeros(self.queue_size, 3, size // opt['scale'], size // opt['scale'], device=device)

    def __call__(self, data: dict[str, Tensor]) -> None:
        """Sets `lq`, `gt` and `gt_usm` from a batch of RealESRGANDataset: `gt`, `kernel1`, `kernel2`, `sinc_kernel`."""
        raise NotImplementedError

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


class ExactDegradation(Degradation):
    """BasicSR's functions, run on this object in the place of a model. See `Degradation`."""
    is_train = True  # BasicSR's functions ask for it
    _dequeue_and_enqueue = RealESRGANModel._dequeue_and_enqueue

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        super().__init__(opt, device)  # the pool too, for which BasicSR's function would take a GPU for granted
        self.usm_sharpener = USMSharp().to(device)
        self.jpeger = _Contiguous(DiffJPEG(differentiable=False)).to(device)
        # RealESRNet's sharpens before it degrades, and is the same otherwise
        self._synthesize = (RealESRNetModel if 'gt_usm' in opt else RealESRGANModel).feed_data

    def __call__(self, data: dict[str, Tensor]) -> None:
        """As `Degradation`."""
        self._synthesize(self, data)  # type: ignore[arg-type]


class FastDegradation(Degradation):
    """`Synthesis`, and a pool that nothing but the pairs in question moves in or out of. See `Degradation`."""

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        super().__init__(opt, device)
        self._sharpen, self._synthesis = SeparableUSM(), Synthesis(opt, device)

    @torch.no_grad()
    def __call__(self, data: dict[str, Tensor]) -> None:
        """As `Degradation`."""
        gt, *kernels = (data[key].to(self.device, non_blocking=True)
                        for key in ('gt', 'kernel1', 'kernel2', 'sinc_kernel'))
        sharp = self._sharpen(gt) if self.opt.get('gt_usm', True) else gt
        lq = self._synthesis(sharp, (kernels[0], kernels[1], kernels[2]))
        # RealESRNet's key makes the sharpened images the ground truths
        gt, lq = paired_random_crop(sharp if 'gt_usm' in self.opt else gt, lq, self.opt['gt_size'], self.opt['scale'])
        self.gt, self.lq = self._exchanged(gt, lq)

    def _exchanged(self, gt: Tensor, lq: Tensor) -> tuple[Tensor, Tensor]:
        """While the pool is being filled the batch itself, later as many pairs drawn from the pool for it."""
        count = len(lq)
        if self.queue_ptr < self.queue_size:
            self.queue_gt[self.queue_ptr:self.queue_ptr + count] = gt
            self.queue_lr[self.queue_ptr:self.queue_ptr + count] = lq
            self.queue_ptr += count
            return gt.contiguous(), lq.contiguous()
        # BasicSR shuffles the whole pool and takes the first pairs
        places = torch.randperm(self.queue_size)[:count].to(self.device, non_blocking=True)
        drawn = self.queue_gt[places], self.queue_lr[places]
        self.queue_gt[places], self.queue_lr[places] = gt, lq
        return drawn


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
