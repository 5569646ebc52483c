"""Perceptual distances of an image to its reference."""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from kd_losses.perceptual_loss import VGGPerceptualLoss
from kd_losses.self_distill_loss import LPIPSLoss
from kd_metrics import MetricUnavailable
from kd_metrics.images import device, rgb
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError
from kd_utils.rng import own_random_numbers


@METRIC_REGISTRY.register()
def calculate_lpips(img: np.ndarray, img2: np.ndarray, crop_border: int, net: str = 'vgg', weights: str | None = None,
                    input_order: str = 'HWC', **kwargs: Any) -> float:
    """LPIPS v0.1 (Zhang et al., CVPR 2018), by the `lpips` package; lower is better.

    Args:
        img: Image in [0, 255], BGR.
        img2: Image of the same shape.
        crop_border: Pixels left out at each edge.
        net: Backbone: `vgg`, `alex` or `squeeze`.
        weights: torchvision's file of the backbone; None to have it downloaded.
        input_order: `HWC` or `CHW`.
        kwargs: Not read, as in BasicSR.

    Returns:
        float: The distance, 0 for equal images.

    Raises:
        MetricUnavailable: The weights cannot be had, or the image is too small.
    """
    return _distance(LPIPSLoss, img, img2, crop_border, input_order, net=net, weights=weights)


@METRIC_REGISTRY.register()
def calculate_vgg_distance(img: np.ndarray, img2: np.ndarray, crop_border: int, weights: str,
                           layer_weights: dict[str, float] | None = None, criterion: str = 'l2',
                           input_order: str = 'HWC', **kwargs: Any) -> float:
    """Weighted distance of VGG19 feature maps, sum_l w_l ||phi_l(x) - phi_l(y)||; lower is better.

    It needs no download. It is not LPIPS: the maps are not normalised, and nothing is fitted to human judgements.

    Args:
        img: Image in [0, 255], BGR.
        img2: Image of the same shape.
        crop_border: Pixels left out at each edge.
        weights: File of VGG19, as for `VGGPerceptualLoss`.
        layer_weights: Layer -> w_l; `conv3_1` alone by default.
        criterion: `l2`, mean of squares, `l1` or `fro`.
        input_order: `HWC` or `CHW`.
        kwargs: Not read, as in BasicSR.

    Returns:
        float: The distance, 0 for equal images.

    Raises:
        MetricUnavailable: The file does not hold what is needed.
    """
    layers = tuple((layer_weights or {'conv3_1': 1.}).items())
    return _distance(_vgg, img, img2, crop_border, input_order, weights=weights, layers=layers, criterion=criterion)


def _vgg(weights: str, layers: tuple[tuple[str, float], ...], criterion: str) -> VGGPerceptualLoss:
    return VGGPerceptualLoss(weights=weights, layer_weights=dict(layers), criterion=criterion)


@torch.no_grad()
def _distance(factory: Any, img: np.ndarray, img2: np.ndarray, crop_border: int, input_order: str,
              **options: Any) -> float:
    try:
        loss = _network(factory, **options)
        value = loss(*(rgb(image, crop_border, input_order) / 255 for image in (img, img2)))
    except (OptionError, CheckpointError) as error:
        raise MetricUnavailable(str(error)) from None
    return float(value[0] if isinstance(value, tuple) else value)


@cache
def _network(factory: Any, **options: Any) -> torch.nn.Module:
    """The network of a metric, built once per process, without touching the random numbers of training."""
    with own_random_numbers(device()):
        return factory(**options).to(device())
