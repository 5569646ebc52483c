"""GCFSR, a generative and controllable face super-resolution network, and its discriminator.

J. He, W. Shi, K. Chen, L. Fu, C. Dong, "GCFSR: a Generative and Controllable Face Super Resolution Method Without
Facial and GAN Priors", CVPR 2022. Written anew from the description on top of BasicSR's StyleGAN2 layers; the names of
the weights are those of the published files.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from basicsr.archs.stylegan2_arch import (
    ConvLayer,
    EqualLinear,
    StyleConv,
    StyleGAN2Discriminator,
    ToRGB,
    UpFirDnDownsample,
    UpFirDnSmooth,
    UpFirDnUpsample,
)
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from kd_utils import resize
from kd_utils.options import OptionError

_SIZES = (32, 64, 128, 256, 512, 1024)


def _largest_scale(out_size: int, cond_norm: float | None) -> float:
    return out_size / 16 if cond_norm is None else cond_norm


def _scale(height: int, width: int, out_size: int) -> int:
    """The scale of LR faces.

    Raises:
        OptionError: There is none.
    """
    if height != width or not height or out_size % height:
        raise OptionError(f'LR faces are {width}x{height}, and the network makes {out_size}x{out_size} '
                          f'(`out_size`). Give it square faces whose size divides {out_size}.')
    return out_size // height


def _check_scale(scale: float, out_size: int, largest: float) -> None:
    if not 1 <= scale <= largest:
        raise OptionError(f'Scale {scale:g} is outside the range of this network, 1 to {largest:g} (`cond_norm`). Give '
                          f'it LR faces of {math.ceil(out_size / largest)} pixels or more, or set `cond_norm` to what '
                          'it was trained with.')


def _channels(out_size: int, channel_multiplier: int, narrow: float) -> dict[int, int]:
    """Resolution -> channels, from 4 to `out_size`, as in StyleGAN2.

    Raises:
        OptionError: There is no such network.
    """
    if out_size not in _SIZES:
        raise OptionError(f'`out_size` is {out_size}. Write one of: {", ".join(map(str, _SIZES))}.')
    channels = {size: int(512 * narrow) for size in (4, 8, 16, 32)}
    channels.update({size: int(2**14 // size * channel_multiplier * narrow) for size in _SIZES[1:]})
    channels = {size: count for size, count in channels.items() if size <= out_size}
    if channels[out_size] < 1 or channels[4] < 2:
        raise OptionError(f'`narrow: {narrow}` leaves no channels at {out_size}x{out_size}. '
                          f'Write {max(out_size / (2**14 * channel_multiplier), 1 / 256)} or more.')
    return channels


def filters_as_buffers(net: nn.Module) -> None:
    """Lets the filters of BasicSR's layers, plain tensors, move with the network: else each call copies them there.

    Called again, it finds nothing to do.
    """
    for module in net.modules():
        if isinstance(module, (UpFirDnUpsample, UpFirDnDownsample, UpFirDnSmooth)) and 'kernel' in module.__dict__:
            kernel = module.__dict__.pop('kernel')
            module.register_buffer('kernel', kernel, persistent=False)


class ConditionedStyleConv(StyleConv):
    """StyleGAN2's style convolution that mixes in a map of the encoder, by two factors per channel.

    h = conv(x, style) + w * noise, (a, b) = (s1, s2) / sqrt(s1^2 + s2^2 + 1e-8), y = act(a h + b shift).
    """

    def forward(self, x: Tensor, style: Tensor, noise: Tensor, condition: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Args are (N, C_in, H, W), (N, style), (N or 1, 1, H, W), and s1 (N, C), s2 (N, C), shift (N, C, H, W)."""
        scale1, scale2, shift = condition
        norm = torch.rsqrt(scale1**2 + scale2**2 + 1e-8)
        h = self.modulated_conv(x, style) + self.weight * noise
        return self.activate(h * (scale1 * norm)[:, :, None, None] + shift * (scale2 * norm)[:, :, None, None])


@ARCH_REGISTRY.register()
class GCFSR(nn.Module):
    """GCFSR's generator: an encoder, a StyleGAN2 decoder from 16x16 on, and the scale as a condition.

    Called with LR faces alone, it is an ordinary BasicSR network: it finds the scale, enlarges by MATLAB's bicubic,
    and returns the image. Called with `in_size` too, it is the network of the paper, as trained. Cost does not depend
    on the scale, except for the enlarging (below 1 % of the full network's from x4 on). The fixed noise of such calls
    takes 11 MiB at 1024, in memory only.

    Args:
        out_size: Height and width of the output, a power of two from 32 to 1024.
        num_style_feat: Width of the style vectors. It is not narrowed by `narrow`; 512 * narrow saves most, since half
            of the parameters make the styles.
        channel_multiplier: Multiplies the channels from 64x64 on.
        resample_kernel: Filter of StyleGAN2's resampling, (K).
        narrow: Multiplies all channels.
        cond_norm: The largest scale; the condition is scale / cond_norm. By default out_size / 16, which is the
            official 64 for 1024 and 32 for 512.

    Attributes:
        num_latent: Number of style vectors.
        noise_sizes: Height and width of the noise of each style convolution.

    Raises:
        OptionError: `out_size` is no such power of two, `narrow` leaves no channels, or `cond_norm` is below 1.
    """
    argument_kinds = {'out_size': 'power!', 'cond_norm': 'largest?'}

    blind = False

    def __init__(self, *, out_size: int, num_style_feat: int = 512, channel_multiplier: int = 2,
                 resample_kernel: tuple[int, ...] = (1, 3, 3, 1), narrow: float = 1,
                 cond_norm: float | None = None) -> None:
        super().__init__()
        channels = _channels(out_size, channel_multiplier, narrow)
        if cond_norm is not None and cond_norm < 1:
            raise OptionError(f'`cond_norm` is {cond_norm}. Write the largest scale of training, such as 32, or leave '
                              'it out.')
        self.out_size = out_size
        self.num_style_feat = num_style_feat
        self.cond_norm = _largest_scale(out_size, cond_norm)
        sizes = [size for size in channels if size >= 16]
        self.num_latent = 2 * len(sizes)
        self.noise_sizes = sorted(sizes + sizes[1:])
        self._build_encoder(channels, sizes[::-1], resample_kernel)
        self._build_decoder(channels, sizes, resample_kernel)
        self._build_noise()
        filters_as_buffers(self)

    def _build_encoder(self, channels: dict[int, int], sizes: list[int], kernel: tuple[int, ...]) -> None:
        """From the image down to 16x16, the styles, and the conditions of each size."""
        self.conv_body_first = ConvLayer(3, channels[self.out_size], 3)
        self.conv_body_down = nn.ModuleList(
            ConvLayer(channels[size], channels[size // 2], 3, downsample=True, resample_kernel=kernel)
            for size in sizes[:-1])
        self.final_conv = ConvLayer(channels[16], channels[16], 3)
        # the official class writes 512 for these channels and so works with `narrow: 1` alone
        last = channels[4] if self.blind else channels[4] // 2
        self.final_down1 = ConvLayer(channels[16], channels[8], 3, downsample=True, resample_kernel=kernel)
        self.final_down2 = ConvLayer(channels[8], last, 3, downsample=True, resample_kernel=kernel)
        self.final_linear = EqualLinear(last * 16, self.num_latent * self.num_style_feat, activation='fused_lrelu')
        # 1 + weight * condition: without the bias, a and b of ConditionedStyleConv would be the same at every scale
        self.condition_scale1 = nn.ModuleList(EqualLinear(1, channels[size], bias_init_val=1) for size in sizes)
        self.condition_scale2 = nn.ModuleList(EqualLinear(1, channels[size], bias_init_val=1) for size in sizes)
        self.condition_shift = nn.ModuleList(
            ConvLayer(channels[size], channels[size], 3, activate=False) for size in sizes)

    def _build_decoder(self, channels: dict[int, int], sizes: list[int], kernel: tuple[int, ...]) -> None:
        """From 16x16 up to the image."""
        style = self.num_style_feat
        self.style_conv1 = ConditionedStyleConv(channels[16], channels[16], 3, style, resample_kernel=kernel)
        self.to_rgb1 = ToRGB(channels[16], style, upsample=False)
        self.style_convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for size in sizes[1:]:
            width, out = channels[size // 2], channels[size]
            self.style_convs.append(StyleConv(width, out, 3, style, sample_mode='upsample', resample_kernel=kernel))
            self.style_convs.append(ConditionedStyleConv(out, out, 3, style, resample_kernel=kernel))
            self.to_rgbs.append(ToRGB(out, style, resample_kernel=kernel))

    def _build_noise(self) -> None:
        """The noise of deployment; and buffers that are in every published file, but of no use.

        They have the sizes of a decoder that starts at 4x4, as StyleGAN2's does.
        """
        self.noises = nn.Module()
        for index in range(len(self.noise_sizes)):
            size = 2**((index + 5) // 2)
            self.noises.register_buffer(f'noise{index}', torch.randn(1, 1, size, size))
        random = np.random.RandomState(0)  # its numbers never change, other than PyTorch's
        for index, size in enumerate(self.noise_sizes):
            noise = torch.from_numpy(random.standard_normal((1, 1, size, size)).astype(np.float32))
            self.register_buffer(f'fixed_noise{index}', noise, persistent=False)

    def make_noise(self, batch: int = 1) -> list[Tensor]:
        """Draws the noise of one forward pass, (batch, 1, r, r) for each style convolution, to be shared by networks.

        Networks of one `out_size` take the same noise, whatever their width.
        """
        like = self.to_rgb1.bias
        return [torch.randn(batch, 1, size, size, device=like.device, dtype=like.dtype) for size in self.noise_sizes]

    def forward(self, x: Tensor, in_size: Tensor | None = None, noise: list[Tensor] | None = None,
                randomize_noise: bool | None = None,
                return_latents: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """Restores faces.

        Args:
            x: Without `in_size`: LR faces (N, 3, h, h) in [0, 1]. With it: faces already enlarged to
                (N, 3, out_size, out_size) in [-1, 1].
            in_size: The condition, scale / cond_norm, (N, 1). The blind network takes any value here and ignores it.
            noise: As from `make_noise`.
            randomize_noise: Where no `noise` is given, whether to draw it, or to take a fixed one: the same for every
                image, network, device and run. Fixed rather than none, since the network was trained with noise.
                By default it is drawn where `in_size` is given.
            return_latents: Whether to return the style vectors, (N, num_latent, num_style_feat), too.

        Returns:
            Without `in_size`: SR faces (N, 3, out_size, out_size) in [0, 1], not clipped. With it: a pair of SR faces
            in [-1, 1] and the style vectors or None.

        Raises:
            OptionError: Faces of a size that the network does not take.
        """
        if in_size is not None:
            return self._restore(x, in_size, noise, randomize_noise is not False, return_latents)
        height, width = x.shape[-2:]
        condition = self.condition(_scale(height, width, self.out_size)).to(x).expand(x.shape[0], 1)
        enlarged = resize.bicubic(x, self.out_size).clamp(0, 1) * 2 - 1
        image, _ = self._restore(enlarged, condition, noise, bool(randomize_noise), False)
        return image / 2 + 0.5

    def condition(self, scale: float) -> Tensor:
        """The condition (1, 1) for a scale.

        Raises:
            OptionError: The network does not know such a scale.
        """
        if not self.blind:
            _check_scale(scale, self.out_size, self.cond_norm)
        return torch.tensor([[scale / self.cond_norm]])

    @classmethod
    def infer_scale(cls, options: dict[str, Any], height: int, width: int) -> int:
        """The scale at which a network of these options, a section of the YAML file, restores such LR faces.

        Raises:
            OptionError: It does not take them.
        """
        out_size = options['out_size']
        scale = _scale(height, width, out_size)
        if not cls.blind:
            _check_scale(scale, out_size, _largest_scale(out_size, options.get('cond_norm')))
        return scale

    def _restore(self, x: Tensor, in_size: Tensor, noise: list[Tensor] | None, randomize: bool,
                 return_latents: bool) -> tuple[Tensor, Tensor | None]:
        """The network of the paper."""
        if x.shape[-2:] != (self.out_size, self.out_size):
            raise OptionError(f'Enlarged faces are {x.shape[-1]}x{x.shape[-2]}, and the network takes '
                              f'{self.out_size}x{self.out_size}. Set `gt_size` or `out_size` so that they agree.')
        if noise is None:
            noise = self.make_noise(x.shape[0]) if randomize else \
                [self.get_buffer(f'fixed_noise{index}') for index in range(len(self.noise_sizes))]
        features, conditions = self._encode(x, torch.ones_like(in_size) if self.blind else in_size)
        styles = self.final_linear(self.final_down2(self.final_down1(features)).flatten(1))  # (N, num_latent * style)
        styles = styles.view(-1, self.num_latent, self.num_style_feat)  # (N, num_latent, style)
        image = self._decode(self.final_conv(features), styles, noise, conditions)
        return image, styles if return_latents else None

    def _encode(self, x: Tensor, in_size: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """The features at 16x16, and the conditions from 16x16 up."""
        features = [self.conv_body_first(x)]
        for down in self.conv_body_down:
            features.append(down(features[-1]))
        layers = zip(self.condition_scale1, self.condition_scale2, self.condition_shift, features, strict=True)
        conditions = [(scale1(in_size), scale2(in_size), shift(feature)) for scale1, scale2, shift, feature in layers]
        return features[-1], conditions[::-1]

    def _decode(self, features: Tensor, styles: Tensor, noise: list[Tensor],
                conditions: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """The image; the last style of each size is also the first of the next, as in StyleGAN2."""
        out = self.style_conv1(features, styles[:, 0], noise[0], conditions[0])
        image = self.to_rgb1(out, styles[:, 1])
        layers = zip(self.style_convs[::2], self.style_convs[1::2], self.to_rgbs, conditions[1:], strict=True)
        for index, (upsample, conv, to_rgb, condition) in enumerate(layers):
            first = 2 * index + 1
            out = upsample(out, styles[:, first], noise[first])
            out = conv(out, styles[:, first + 1], noise[first + 1], condition)
            image = to_rgb(out, styles[:, first + 2], image)
        return image


@ARCH_REGISTRY.register()
class GCFSR_blind(GCFSR):
    """GCFSR for faces of unknown scale: the condition is always 1, and the styles come from twice the features.

    Arguments and calls are GCFSR's, so that both are trained by one recipe; any scale is taken.
    """

    blind = True


@ARCH_REGISTRY.register()
class GCFSRDiscriminator(StyleGAN2Discriminator):
    """GCFSR's discriminator, officially `StyleGAN2Discriminator_no_std`: StyleGAN2's without minibatch statistics.

    Args:
        out_size: Height and width of the images, a power of two from 32 to 1024.
        channel_multiplier: Multiplies the channels from 64x64 on.
        resample_kernel: Filter of StyleGAN2's resampling, (K).
        narrow: Multiplies all channels.

    Raises:
        OptionError: `out_size` is no such power of two, or `narrow` leaves no channels.
    """
    argument_kinds = {'out_size': 'power!'}

    def __init__(self, *, out_size: int, channel_multiplier: int = 2,
                 resample_kernel: tuple[int, ...] = (1, 3, 3, 1), narrow: float = 1) -> None:
        channels = _channels(out_size, channel_multiplier, narrow)
        super().__init__(out_size, channel_multiplier, resample_kernel, narrow=narrow)
        self.final_conv = ConvLayer(channels[4], channels[4], 3)
        filters_as_buffers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, out_size, out_size) in [-1, 1] -> logits (N, 1)."""
        return self.final_linear(self.final_conv(self.conv_body(x)).flatten(1))
