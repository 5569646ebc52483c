"""How a family of generators is called on LR images: one small object, used in training, validation and test alike."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kd_utils.options import OptionError


class Adapter:
    """Calls a generator on LR images in [0, 1], (N, C, H, W), and returns SR images in [0, 1], (N, C, sH, sW)."""

    def __init__(self, network_opt: dict[str, Any]) -> None:
        self.network_opt = network_opt

    def __call__(self, net: nn.Module, lq: Tensor) -> Tensor:
        output = net(lq)
        image = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(image, Tensor):
            raise OptionError(f'{type(net).__name__} returns a {type(image).__name__}, not an image. '
                              'Let its forward return the image, or a tuple that begins with it.')
        return image


class WindowAdapter(Adapter):
    """Pads to a multiple of the attention window and crops back, as BasicSR's SwinIRModel does in its tests."""

    def __call__(self, net: nn.Module, lq: Tensor) -> Tensor:
        window = self.network_opt['window_size']
        height, width = lq.shape[-2:]
        pad_h, pad_w = -height % window, -width % window
        if not (pad_h or pad_w):
            return super().__call__(net, lq)
        mode = 'reflect' if pad_h < height and pad_w < width else 'replicate'  # reflection needs the pixels to reflect
        padded = F.pad(lq, (0, pad_w, 0, pad_h), mode)
        output = super().__call__(net, padded)
        scale = output.shape[-1] // padded.shape[-1]
        return output[..., :height * scale, :width * scale]


class StyleGAN2Adapter(Adapter):
    """Latents (N, num_style_feat) to images (N, 3, out_size, out_size) in [0, 1], with the network's stored noise."""

    def __call__(self, net: nn.Module, lq: Tensor) -> Tensor:
        return net([lq], randomize_noise=False)[0] / 2 + 0.5


def build_adapter(network_opt: dict[str, Any]) -> Adapter:
    """The adapter for a `network_g` section: windowed where it has a `window_size` (SwinIR, HAT ...)."""
    if network_opt['type'] == 'StyleGAN2Generator':
        return StyleGAN2Adapter(network_opt)
    if isinstance(network_opt.get('window_size'), int):
        return WindowAdapter(network_opt)
    return Adapter(network_opt)
