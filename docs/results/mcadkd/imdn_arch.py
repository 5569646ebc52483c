"""IMDN (Hui et al., ACM MM 2019) as a user would bring a teacher of their own: one file, registered in BasicSR.

Written from the paper's description, with the names of its published weights.
"""
from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F


@ARCH_REGISTRY.register()
class IMDN(nn.Module):
    """Information multi-distillation network: (N, 3, H, W) in [0, 1] to (N, 3, sH, sW).

    Args:
        num_feat: Channels.
        upscale: Scale.
    """

    def __init__(self, num_feat: int = 64, upscale: int = 2) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, num_feat, 3, padding=1)
        for i in range(1, 7):
            setattr(self, f'IMDB{i}', DistillationBlock(num_feat))
        self.c = nn.Sequential(nn.Conv2d(6 * num_feat, num_feat, 1), nn.LeakyReLU(0.05))
        self.LR_conv = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(num_feat, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, x: Tensor) -> Tensor:
        first = feat = self.fea_conv(x)
        outputs = []
        for i in range(1, 7):
            feat = getattr(self, f'IMDB{i}')(feat)
            outputs.append(feat)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outputs, dim=1))) + first)


class DistillationBlock(nn.Module):
    """Splits a quarter of the channels off after each convolution, and fuses the four parts by channel attention."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.kept = num_feat // 4
        rest = num_feat - self.kept
        self.c1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.c2 = nn.Conv2d(rest, num_feat, 3, padding=1)
        self.c3 = nn.Conv2d(rest, num_feat, 3, padding=1)
        self.c4 = nn.Conv2d(rest, self.kept, 3, padding=1)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.cca = ContrastAttention(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        parts, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            feat = F.leaky_relu(conv(rest), 0.05)
            part, rest = feat[:, :self.kept], feat[:, self.kept:]
            parts.append(part)
        parts.append(self.c4(rest))
        return self.c5(self.cca(torch.cat(parts, dim=1))) + x


class ContrastAttention(nn.Module):
    """Channel attention on standard deviation plus mean."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(nn.Conv2d(num_feat, num_feat // 16, 1), nn.ReLU(),
                                     nn.Conv2d(num_feat // 16, num_feat, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        contrast = ((x - mean)**2).mean((2, 3), keepdim=True).sqrt() + mean
        return x * self.conv_du(contrast)
