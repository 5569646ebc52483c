"""Frechet distances between the features of a set of images and those of real ones."""
from __future__ import annotations

import os
from functools import cache
from os import path as osp

import cv2
import numpy as np
import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from kd_metrics import MetricUnavailable
from kd_metrics.images import device, rgb
from kd_utils import checkpoint
from kd_utils.options import IMAGES
from kd_utils.rng import own_random_numbers


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features.

        |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)

    (Dowson and Landau 1982; Heusel et al. 2017). With A, B the centred features over sqrt(n - 1), so that C = A^T A,
    the eigenvalues of C_a C_b are the squared singular values of A B^T: the last trace is the sum of the singular
    values. No matrix root is taken, so sets with fewer images than features, whose covariances are singular, need no
    regularisation. They do bias the distance upwards.

    Args:
        a: Features, (N, D), N >= 2.
        b: Features, (M, D), M >= 2.

    Returns:
        float: The distance, computed in float64.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    factors, spread = [], 0.
    for features in (a, b):
        centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
        spread += float((centred**2).sum())
        factors.append(np.asarray(np.linalg.qr(centred, mode='r')))  # at most (D, D), with the same C
    shared = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return max(0., float(((a.mean(0) - b.mean(0))**2).sum()) + spread - 2 * float(shared))


class FrechetMetric:
    """A set-level metric: the Frechet distance of all images to all references in the features of a network.

    Args:
        real: A folder of real images; None for the references of the validation.

    Attributes:
        network: Maps an image (1, 3, H, W), RGB in [0, 255], to its features (1, D).
    """
    network: nn.Module

    def __init__(self, real: str | None) -> None:
        self.folder = real
        self.features: list[np.ndarray] = []
        self.references: list[np.ndarray] = []

    def update(self, img: np.ndarray, img2: np.ndarray | None = None) -> None:
        """Adds an image, (H, W, 3) uint8 BGR, and its reference.

        Raises:
            MetricUnavailable: There are no real images to compare with.
        """
        self.features.append(_features(self.network, img))
        if self.folder is not None:
            return
        if img2 is None:
            raise MetricUnavailable('There is no ground truth to compare with. Name a folder of real images, `real:`.')
        self.references.append(_features(self.network, img2))

    def compute(self) -> float:
        """The distance.

        Raises:
            MetricUnavailable: There are fewer than two images or two real ones, or `real` has none.
        """
        real = _folder_features(self.network, self.folder) if self.folder is not None else self.references
        fewest = min(len(self.features), len(real))
        if fewest < 2:
            raise MetricUnavailable('A covariance needs two images at least, and the set has '
                                    f'{len(self.features)}, with {len(real)} real ones. Use a larger set.')
        dimensions = self.features[0].size
        if fewest <= dimensions:
            _warn_of_bias(type(self).__name__, fewest, dimensions)
        return frechet_distance(np.stack(self.features), np.stack(real))


@METRIC_REGISTRY.register()
class FID(FrechetMetric):
    """Frechet Inception Distance (Heusel et al. 2017), with the Inception and the resizing of torch-fidelity.

    The features are the 2048 of the last pooling, images are resized to 299x299. Lower is better.

    Args:
        real: A folder of real images; None for the references of the validation.
        weights: torch-fidelity's file of the Inception; None to have it downloaded.

    Raises:
        MetricUnavailable: The weights cannot be had.
    """
    package = 'torch_fidelity'

    def __init__(self, *, real: str | None = None, weights: str | None = None) -> None:
        super().__init__(real)
        self.network = _inception(weights)


@METRIC_REGISTRY.register()
class RandomFID(FrechetMetric):
    """The Frechet distance in the features of a small network with random weights; lower is better.

    No training data can have leaked into it, so it tells whether a gain in FID is one of the ImageNet features that a
    perceptual loss has seen. The idea is of Naeem et al. 2020 (random embeddings) and StyleGAN-XL (a random
    Inception); the network here is our own, so values compare with each other only. It does not resize.

    Args:
        real: A folder of real images; None for the references of the validation.
        seed: Seed of the weights, the same on every machine.
    """
    argument_kinds = {'seed': 'count'}

    def __init__(self, *, real: str | None = None, seed: int = 0) -> None:
        super().__init__(real)
        self.network = random_network(seed)


@cache
def random_network(seed: int) -> nn.Module:
    """Four convolutions 3x3 of stride 2 to 32, 64, 128 and 256 channels, ReLU, He initialisation, mean over pixels."""
    draw, layers = np.random.RandomState(seed), []  # its stream is the same in all versions of NumPy
    with own_random_numbers(device()):
        for c_in, c_out in ((3, 32), (32, 64), (64, 128), (128, 256)):
            conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False)
            weight = draw.standard_normal(conv.weight.shape) * np.sqrt(2 / (9 * c_in))
            conv.weight = nn.Parameter(torch.from_numpy(weight).float(), requires_grad=False)
            layers += [conv, nn.ReLU()]
    return nn.Sequential(_Centred(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device())


class _Centred(nn.Module):

    def forward(self, x: Tensor) -> Tensor:
        return x / 127.5 - 1


class _Inception(nn.Module):

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        self.extractor = FeatureExtractorInceptionV3('fid', ['2048'], weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.extractor(x.round().clamp(0, 255).byte())[0]


@cache
def _inception(weights: str | None) -> nn.Module:
    try:
        if weights is not None:
            checkpoint.load(weights)  # torch-fidelity would run code that a file carries
        with own_random_numbers(device()):
            return _Inception(weights).to(device())
    except Exception as error:  # noqa: BLE001  a file of something else may raise anything
        where = osp.join(torch.hub.get_dir(), 'checkpoints')
        reason = str(getattr(error, 'reason', error)).partition('\n')[0]  # not all keys that another file lacks
        raise MetricUnavailable(
            f'FID could not get the weights of its Inception ({reason}). Download '
            'weights-inception-2015-12-05-6726825d.pth from https://github.com/toshas/torch-fidelity/releases '
            f'elsewhere and put it into {where}, or name it by `weights: FILE`.') from None


@torch.no_grad()
def _features(network: nn.Module, img: np.ndarray) -> np.ndarray:
    return network(rgb(img))[0].double().cpu().numpy()  # (D, )


@cache
def _folder_features(network: nn.Module, folder: str) -> list[np.ndarray]:
    """The features of all images of a folder, computed once per process."""
    features = []
    for name in sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGES)):
        img = cv2.imread(osp.join(folder, name), cv2.IMREAD_COLOR)
        if img is None:
            raise MetricUnavailable(f'{osp.join(folder, name)} cannot be read as an image. Take it out of the folder.')
        features.append(_features(network, img))
    return features


@cache
def _warn_of_bias(metric: str, images: int, dimensions: int) -> None:
    """Once for each kind of set."""
    get_root_logger().warning(f'{metric} of {images} images in {dimensions} dimensions is biased upwards: compare it '
                              'between runs on the same set only.')
