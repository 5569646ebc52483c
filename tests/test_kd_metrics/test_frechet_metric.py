"""The Frechet distance against closed forms, and the metrics of a whole set."""
import importlib.util
import os
import pickle
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from kd_metrics import MetricUnavailable, frechet_metric
from kd_metrics.frechet_metric import FID, RandomFID, frechet_distance, random_network


@pytest.fixture(autouse=True)
def nothing_is_kept():
    for function in (frechet_metric._inception, frechet_metric._folder_features, frechet_metric._warn_of_bias):
        function.cache_clear()


def gaussian(rng, count: int, mean, root) -> np.ndarray:
    """Samples whose mean is `mean` and whose covariance is `root root^T`, exactly."""
    x = rng.standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.asarray(root).T + mean


def test_closed_form_of_commuting_covariances():
    rng = np.random.default_rng(0)
    a = gaussian(rng, 50, [0, 0, 1], np.diag([1, 2, 3]))
    b = gaussian(rng, 70, [1, -2, 1], np.diag([4, 2, 1]))
    assert frechet_distance(a, b) == pytest.approx(5 + 9 + 0 + 4, rel=1e-10)


def test_equals_the_matrix_root_of_any_covariances():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((n, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6) for n in (40, 25))
    cov_a, cov_b = (np.cov(x, rowvar=False) for x in (a, b))
    expected = ((a.mean(0) - b.mean(0))**2).sum() + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)  # symmetric


@pytest.mark.parametrize('count', [2, 5, 100])
def test_zero_for_equal_sets_however_few(count):
    a = np.random.default_rng(2).standard_normal((count, 32)) * 1e3
    assert frechet_distance(a, a[::-1]) < 1e-6 * (a**2).sum() / count


def test_fewer_images_than_features():
    """Two points each: rank one covariances, whose root is known."""
    a, b = np.zeros((2, 8)), np.zeros((2, 8))
    a[:, 0], b[:, 0], b[:, 1] = (-1, 1), (-3, 3), (5, 5)  # variances 2 and 18 along one axis, means 5 apart
    assert frechet_distance(a, b) == pytest.approx(25 + (np.sqrt(18) - np.sqrt(2))**2, rel=1e-12)
    b[:, 0], b[:, 2] = 0, (-3, 3)  # along different axes: nothing in common
    assert frechet_distance(a, b) == pytest.approx(25 + 18 + 2, rel=1e-12)


def test_single_precision_features_are_measured_in_double():
    rng = np.random.default_rng(3)
    a, b = (1000 + rng.standard_normal((30, 4)) * 1e-2 for _ in range(2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a - 1000, b - 1000), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------ the set


def pictures(count: int, blur: float = 0.) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    images = [cv2.GaussianBlur(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8), (0, 0), 1.) for _ in range(count)]
    return [cv2.GaussianBlur(image, (0, 0), blur) for image in images] if blur else images


def measure(metric, images, references=None) -> float:
    for image, reference in zip(images, references or [None] * len(images), strict=True):
        metric.update(image, reference)
    return metric.compute()


def test_random_fid_grows_with_the_difference():
    real = pictures(6)
    assert measure(RandomFID(), real, real) == pytest.approx(0, abs=1e-9)
    little, much = (measure(RandomFID(), pictures(6, blur), real) for blur in (0.5, 2.))
    assert 0 < little < much
    assert measure(RandomFID(seed=1), pictures(6, 2.), real) != pytest.approx(much, rel=1e-3)


def test_random_network_is_the_same_everywhere():
    state = torch.get_rng_state()
    random_network.cache_clear()
    first, again = random_network(0), None
    random_network.cache_clear()
    again = random_network(0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(p.requires_grad for p in first.parameters())
    weight = next(first.parameters()).flatten()[:3].cpu()
    np.testing.assert_allclose(weight, np.random.RandomState(0).standard_normal(3) * np.sqrt(2 / 27), rtol=1e-6)


def test_sets_of_one_image_or_without_real_ones_are_unavailable():
    real = pictures(1)
    with pytest.raises(MetricUnavailable, match='needs two images at least, and the set has 1, with 1 real'):
        measure(RandomFID(), real, real)
    with pytest.raises(MetricUnavailable, match='There is no ground truth .* `real:`'):
        RandomFID().update(real[0])


def test_real_images_of_a_folder(tmp_path):
    for i, image in enumerate(pictures(5)):
        cv2.imwrite(str(tmp_path / f'{i}.png'), image)
    (tmp_path / 'notes.txt').write_text('no image')
    blurred = pictures(5, 1.)
    assert measure(RandomFID(real=str(tmp_path)), blurred) == \
        pytest.approx(measure(RandomFID(), blurred, pictures(5)), rel=1e-9)
    (tmp_path / 'x.png').write_text('no image')
    frechet_metric._folder_features.cache_clear()
    with pytest.raises(MetricUnavailable, match='x.png cannot be read'):
        measure(RandomFID(real=str(tmp_path)), blurred)


def test_few_images_are_warned_of_once(monkeypatch):
    said = []
    monkeypatch.setattr(frechet_metric, 'get_root_logger', lambda: types.SimpleNamespace(warning=said.append))
    for _ in range(2):
        measure(RandomFID(), pictures(3), pictures(3))
    assert len(said) == 1 and 'RandomFID of 3 images in 256 dimensions is biased upwards' in said[0]


# ---------------------------------------------------------------------------------------------------------------- FID


def fake_torch_fidelity(monkeypatch, extractor) -> None:
    """A module with that extractor in place of the package's."""
    module = types.ModuleType('torch_fidelity.feature_extractor_inceptionv3')
    module.FeatureExtractorInceptionV3 = extractor
    monkeypatch.setitem(sys.modules, 'torch_fidelity', types.ModuleType('torch_fidelity'))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_fid_gives_bytes_to_the_inception_and_takes_its_features(monkeypatch):
    class Extractor(nn.Module):
        def __init__(self, name, features, weights):
            super().__init__()
            assert features == ['2048'] and weights is None

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (x.float().mean((2, 3)), )  # the mean colour, RGB

    fake_torch_fidelity(monkeypatch, Extractor)
    real, shifted = pictures(4), [image + np.uint8([0, 0, 20]) * (image < 200) for image in pictures(4)]
    colours = [np.stack([image.mean((0, 1))[::-1] for image in images]) for images in (shifted, real)]
    assert measure(FID(), shifted, real) == pytest.approx(frechet_distance(*colours), rel=1e-4)


def test_fid_without_weights_is_unavailable(monkeypatch, tmp_path):
    class Extractor(nn.Module):
        def __init__(self, name, features, weights):
            super().__init__()
            raise OSError('no route') if weights is None else KeyError(weights)

    fake_torch_fidelity(monkeypatch, Extractor)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(MetricUnavailable, match=f'.no route.*weights-inception-2015-12-05.*into {tmp_path}'):
        FID()


def test_a_file_of_something_else_is_named_in_one_line(monkeypatch, tmp_path):
    class Extractor(nn.Module):
        def __init__(self, name, features, weights):
            super().__init__()
            self.load_state_dict({'conv': torch.zeros(1), 'bias': torch.zeros(1)})

    fake_torch_fidelity(monkeypatch, Extractor)
    torch.save({}, tmp_path / 'weights.pth')
    with pytest.raises(MetricUnavailable, match='`weights: FILE`') as unavailable:
        FID(weights=str(tmp_path / 'weights.pth'))
    assert '\n' not in str(unavailable.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ('evil', )


def test_weights_that_carry_code_are_not_loaded(monkeypatch, tmp_path):
    fake_torch_fidelity(monkeypatch, lambda *args: torch.load(args[2], weights_only=False))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights.pth').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(MetricUnavailable):
        FID(weights=str(tmp_path / 'weights.pth'))
    assert not (tmp_path / 'evil').exists()


@pytest.mark.skipif(importlib.util.find_spec('torch_fidelity') is None, reason='torch-fidelity is not installed')
def test_fid_with_the_real_inception(monkeypatch, tmp_path):
    from torch_fidelity import feature_extractor_inceptionv3 as module
    torch.manual_seed(0)
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, 'load_state_dict', lambda self, state: None)
    torch.save({}, tmp_path / 'weights.pth')
    metric = FID(weights=str(tmp_path / 'weights.pth'))
    assert measure(metric, pictures(2, 1.), pictures(2)) > 0 and metric.features[0].shape == (2048, )
