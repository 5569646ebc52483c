"""Pixel-space diffusion models as BasicSR networks: called with LR images, they sample SR images.

The U-Net, the noise schedule and the sampler's step are those of Hugging Face diffusers (extra `advkd`), which is
imported when such a network is built. Conditioning follows SR3 (Saharia et al., TPAMI 2022): the U-Net sees the noisy
image and the bicubic enlargement of the LR image side by side.
"""
from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from kd_arch.sampler import Sampler, Trajectory
from kd_utils.options import OptionError
from kd_utils.resize import bicubic, pad_to_multiple


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise OptionError('A diffusion model needs the package diffusers, which is not installed. '
                          "Run `pip install 'basicsr-kd[advkd]'`.") from None
    return diffusers


# Options of super-resolution only, and those that a pipeline brings.
OF_SUPER_RESOLUTION = ('scale', 'residual', 'tile', 'tile_pad')
OF_PIPELINE = ('block_out_channels', 'layers_per_block', 'norm_num_groups', 'dropout', 'add_attention', 'timesteps',
               'prediction_type')


def linear_betas(timesteps: int) -> np.ndarray:
    """Variances of the noise of each timestep, (T, ): DDPM's (Ho et al. 2020), for other T scaled to the same sum."""
    scale = 1000 / timesteps
    return np.minimum(np.linspace(scale * 1e-4, scale * 0.02, timesteps), 0.999)


@ARCH_REGISTRY.register()
class DiffusionUNet(nn.Module):
    """A denoising diffusion model x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps with its DDIM sampler.

    Images outside are in [0, 1]; what is diffused, x_0, is in [-1, 1]:

        residual       x_0 = clamp(2 (y - c)),  y = x_0 / 2 + c     (SRDiff, Li et al. 2022)
        otherwise      x_0 = 2 y - 1,           y = x_0 / 2 + 1/2

    with y the image and c the LR image enlarged by MATLAB's bicubic. `forward` is the sampler, S = `steps` evaluations
    of the U-Net, so that validation, tests and the teacher of a student call it like any other network.

    Args:
        scale: Factor of super-resolution.
        size: Side of the images of an unconditional model, which has no `scale`; None for super-resolution, and where
            `pretrained` brings it.
        block_out_channels: Channels of the U-Net by level; each level halves the image.
        layers_per_block: Residual blocks of a level.
        norm_num_groups: Groups of group normalisation; they divide all channels.
        dropout: Probability of dropout.
        add_attention: Attention at the lowest level; its cost grows with the square of the pixels there.
        timesteps: T.
        prediction_type: What the U-Net is trained to predict, `v_prediction`, `epsilon` or `sample`.
        residual: Whether HR - bicubic is diffused instead of HR. Unconditional models have none.
        steps: S, a divisor of T.
        seed: Of the noise with which `forward` begins.
        tile: Super-resolution by tiles of so many LR pixels; 0 for whole images.
        tile_pad: LR pixels by which a tile is enlarged on each side and its output cut back.
        pretrained: Name or folder of an unconditional diffusers pipeline (DDPM or DDIM), which brings its own U-Net,
            schedule, prediction type and size.

    Raises:
        OptionError: diffusers is missing, or the options do not fit each other.
    """
    argument_kinds = {'prediction_type': 'epsilon|v_prediction|sample', 'dropout': 'decay', 'scale': 'size',
                      'size': 'size?', 'steps': 'size', 'timesteps': 'size', 'seed': 'count', 'tile': 'count',
                      'tile_pad': 'count'}

    def __init__(self, *, scale: int = 4, size: int | None = None, block_out_channels: tuple = (64, 128, 256, 256),
                 layers_per_block: int = 2, norm_num_groups: int = 32, dropout: float = 0., add_attention: bool = False,
                 timesteps: int = 1000, prediction_type: str = 'v_prediction', residual: bool = True, steps: int = 10,
                 seed: int = 0, tile: int = 0, tile_pad: int = 16, pretrained: str | None = None) -> None:
        super().__init__()
        self.scale, self.seed, self.tile, self.tile_pad = scale, seed, tile, tile_pad
        self.unet: Any
        if pretrained is None:
            self.unet = _unet(3 if size else 6, block_out_channels, layers_per_block=layers_per_block,
                              norm_num_groups=norm_num_groups, dropout=dropout, add_attention=add_attention)
            scheduler = _diffusers().DDIMScheduler(
                num_train_timesteps=timesteps, trained_betas=linear_betas(timesteps), prediction_type=prediction_type,
                timestep_spacing='trailing', clip_sample=True, set_alpha_to_one=True)
        else:
            self.unet, scheduler = _pretrained(pretrained)
            size = _size_of(self.unet, pretrained, size)
        self.size = size
        self.residual = residual and not size
        self.multiple = 2**(len(self.unet.config.block_out_channels) - 1)
        self.sampler = Sampler(scheduler, steps)

    @property
    def timesteps(self) -> int:
        """T."""
        return self.sampler.scheduler.config.num_train_timesteps

    def condition(self, lq: Tensor) -> Tensor | None:
        """c (N, 3, sH, sW) for LR images (N, 3, H, W); None where the model has no condition."""
        height, width = lq.shape[-2:]
        return None if self.size else bicubic(lq, (self.scale * height, self.scale * width))

    def encode(self, images: Tensor, condition: Tensor | None) -> Tensor:
        """x_0 of images in [0, 1], not clamped."""
        return 2 * (images - condition) if self.residual and condition is not None else 2 * images - 1

    def decode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Images in [0, 1] of x_0."""
        offset = condition if self.residual and condition is not None else 0.5
        return (x / 2 + offset).clamp(0, 1)

    def diffuse(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t of x_0 = `x` for timesteps `t` (N, ), and what the U-Net is to predict there."""
        scheduler = self.sampler.scheduler
        wanted = {'epsilon': lambda: noise, 'sample': lambda: x, 'v_prediction': lambda: scheduler.get_velocity(
            x, noise, t)}[scheduler.config.prediction_type]()
        return scheduler.add_noise(x, noise, t), wanted

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The U-Net's prediction (N, 3, H, W) at x_t, for a timestep or one per image."""
        inputs = x if condition is None else torch.cat((x, 2 * condition - 1), 1)
        output = self.unet(pad_to_multiple(inputs, self.multiple), t).sample
        return output[..., :x.shape[-2], :x.shape[-1]]

    def trajectory(self, noise: Tensor, condition: Tensor | None, last: int | None = None) -> Trajectory:
        """The S steps from `noise` (N, 3, H, W) to an image, or the first `last` of them."""
        return self.sampler(lambda x, t: self.predict(x, t, condition), noise, last)

    def forward(self, lq: Tensor) -> Tensor:
        """Samples images in [0, 1].

        Args:
            lq: LR images (N, 3, H, W) in [0, 1]; of an unconditional model the noise, (N, 3 * size * size).
        """
        if self.size:
            return self._sample(lq.view(-1, 3, self.size, self.size), None)
        height, width = lq.shape[-2:]
        generator = torch.Generator().manual_seed(self.seed)  # of the CPU, so that all devices draw the same
        noise = torch.randn(len(lq), 3, self.scale * height, self.scale * width, generator=generator).to(lq)
        return self._sample_tiles(lq, noise) if self.tile else self._sample(noise, self.condition(lq))

    def _sample(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        return self.decode(self.trajectory(noise, condition).states[-1], condition)

    def _sample_tiles(self, lq: Tensor, noise: Tensor) -> Tensor:
        """Each tile sees its part of one noise, so that neighbours agree."""
        s, tile, (height, width) = self.scale, self.tile, lq.shape[-2:]
        output = torch.empty_like(noise)
        for y, x in product(range(0, height, tile), range(0, width, tile)):
            top, left = max(y - self.tile_pad, 0), max(x - self.tile_pad, 0)
            bottom, right = min(y + tile + self.tile_pad, height), min(x + tile + self.tile_pad, width)
            part = self._sample(noise[..., s * top:s * bottom, s * left:s * right],
                                self.condition(lq[..., top:bottom, left:right]))
            output[..., s * y:s * (y + tile), s * x:s * (x + tile)] = \
                part[..., s * (y - top):s * (y - top + tile), s * (x - left):s * (x - left + tile)]
        return output


def _unet(channels: int, block_out_channels: tuple, *, norm_num_groups: int, **options: Any) -> nn.Module:
    indivisible = [width for width in block_out_channels if width % norm_num_groups]
    if indivisible:
        raise OptionError(f'`norm_num_groups` is {norm_num_groups}, which does not divide the {indivisible[0]} '
                          'channels of `block_out_channels`. Write a divisor of all of them.')
    levels = len(block_out_channels)
    return _diffusers().UNet2DModel(
        in_channels=channels, out_channels=3, block_out_channels=tuple(block_out_channels),
        down_block_types=('DownBlock2D', ) * levels, up_block_types=('UpBlock2D', ) * levels,
        norm_num_groups=norm_num_groups, **options)


def _pretrained(source: str) -> tuple[nn.Module, Any]:
    """U-Net and DDIM scheduler of a diffusers pipeline."""
    diffusers = _diffusers()
    try:
        pipeline = diffusers.DDPMPipeline.from_pretrained(source, low_cpu_mem_usage=False)  # True needs `accelerate`
    except (OSError, ValueError) as error:
        raise OptionError(f'`pretrained`: `{source}` cannot be read as a diffusers pipeline '
                          f'({str(error).splitlines()[0]}). Name a folder that save_pretrained wrote, or a public name '
                          'such as google/ddpm-celebahq-256, which is downloaded.') from None
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing='trailing',
                                                    set_alpha_to_one=True)
    return pipeline.unet, scheduler


def _size_of(unet: Any, source: str, size: int | None) -> int:
    """Side of a pipeline's images, which `size` repeats or leaves open."""
    own = unet.config.sample_size
    if not isinstance(own, int) or unet.config.in_channels != 3:
        raise OptionError(f'`pretrained`: the images of `{source}` have {unet.config.in_channels} channels and the '
                          f'size {own}. Name a pipeline of colour images with one number as `sample_size`.')
    if size not in (None, own):
        raise OptionError(f'`size` is {size}, and the images of `{source}` are {own}x{own}. Write {own}.')
    return own
