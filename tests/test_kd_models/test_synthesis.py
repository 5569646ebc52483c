"""The fast degradation against BasicSR's: the same sharpening, the same steps, noise of the same size, no waiting."""
import random

import numpy as np
import pytest
import torch
from basicsr.data.degradations import random_add_gaussian_noise_pt, random_add_poisson_noise_pt
from basicsr.utils import USMSharp

from benchmarks.operations import Operations
from kd_data.draws import seed_everything
from kd_models.degradation import FastDegradation, build_degradation
from kd_models.synthesis import SeparableUSM, Synthesis, _noisy, _Order
from tests.test_kd_models.test_degradation import DEGRADATION, synthetic

CPU = torch.device('cpu')
# Nothing is left to chance but scales and modes, and whether JPEG comes before the last resizing or after it.
PLAIN = {**DEGRADATION, 'resize_prob': [0, 1, 0], 'resize_prob2': [0, 1, 0], 'resize_range': [0.3, 1],
         'gaussian_noise_prob': 1, 'gaussian_noise_prob2': 1, 'noise_range': [0, 0], 'noise_range2': [0, 0],
         'jpeg_range': [40, 40], 'jpeg_range2': [60, 60], 'scale': 2, 'gt_size': 48, 'is_train': True}


def photo(batch=2, height=64, width=48):
    """Smooth images with a few sharp edges, (N, 3, H, W), in 8 bits."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, height // 8, width // 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode='bicubic').clamp(0, 1)
    images[..., 20:30, 10:30] += 0.3
    return (images.clamp(0, 1) * 255).round() / 255


def test_sharpening_equals_basicsrs():
    images = photo()
    ours, theirs = SeparableUSM()(images), USMSharp()(images)
    assert (theirs - images).abs().max() > 0.02, 'there is something to sharpen'
    # a pixel at the threshold may be on the other side of it, of which the blurred mask sees 0.0025 at most
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(ours.mean(), theirs.mean(), atol=1e-7)


@pytest.mark.parametrize('blurs', [0, 1])
def test_the_steps_are_basicsrs(monkeypatch, blurs):
    """Where nothing is random but the order of the last steps, either order gives BasicSR's image."""
    drawn = np.random.uniform
    monkeypatch.setattr(random, 'choice', lambda modes: 'bicubic')
    monkeypatch.setattr(random, 'uniform', lambda *bounds: bounds[0])  # of the scales
    monkeypatch.setattr(np.random, 'uniform', lambda *bounds: bounds[0] if bounds else drawn())
    opt = {**PLAIN, 'second_blur_prob': blurs, 'queue_size': 200}
    item = {**next(synthetic(1)), 'gt': photo(height=48)}
    found = {}
    for how in ('exact', 'fast'):
        degradation = build_degradation({**opt, 'degradation': how}, CPU)
        images = []
        for seed in range(12):
            seed_everything(seed)
            degradation(item)
            if not any(torch.equal(degradation.lq, image) for image in images):
                images.append(degradation.lq)
        found[how] = sorted(images, key=lambda image: float(image.sum()))
    assert len(found['exact']) == len(found['fast']) == 2
    for ours, theirs in zip(found['fast'], found['exact'], strict=True):
        difference = (ours - theirs).abs() * 255
        assert difference.max() < 1.5 and difference.mean() < 0.02


@pytest.mark.parametrize('gaussian, theirs',
                         [(True, random_add_gaussian_noise_pt), (False, random_add_poisson_noise_pt)])
@pytest.mark.parametrize('grey', [0, 1])
@pytest.mark.parametrize('levels', [1, 3, 100])
def test_noise_is_as_strong_as_basicsrs(gaussian, theirs, grey, levels):
    """And as similar between the channels, for images of few and of many levels."""
    torch.manual_seed(0)
    images = (torch.arange(3 * 256 * 256).view(1, 3, 256, 256) % levels / 255 + 0.3).repeat(2, 1, 1, 1)
    images = (images * 255).round() / 255
    strength = 20. if gaussian else 2.
    ours = _noisy(images, gaussian, torch.full((2, ), float(grey)), torch.full((2, ), strength)) - images
    reference = theirs(images, (strength, strength), grey, clip=True) - images
    assert ours.std() == pytest.approx(float(reference.std()), rel=0.02)
    assert ours.mean() == pytest.approx(float(reference.mean()), abs=3 * float(ours.std()) / 256)
    correlation = [float(torch.corrcoef(noise[0].flatten(1))[0, 1]) for noise in (ours, reference)]
    assert correlation == pytest.approx([grey, grey], abs=0.02)
    assert not torch.equal(ours[0], ours[1])


def test_each_image_has_its_own_strength_and_colour():
    images = torch.full((2, 3, 64, 64), 0.5)
    noise = _noisy(images, True, torch.tensor([1., 0.]), torch.tensor([5., 25.])) - images
    assert torch.equal(noise[0, 0], noise[0, 2]) and not torch.equal(noise[1, 0], noise[1, 2])
    assert noise.std((1, 2, 3)).mul(255).tolist() == pytest.approx([5, 25], rel=0.1)


def test_decisions_are_as_frequent_as_asked():
    """Resizing, kinds of noise, and the ranges of what is drawn for each image."""
    seed_everything(0)
    orders = [_Order.draw(DEGRADATION, '', 2) for _ in range(3000)]
    scales = np.array([order.scale for order in orders])
    assert [(scales > 1).mean(), (scales < 1).mean(), (scales == 1).mean()] == pytest.approx([.2, .7, .1], abs=0.03)
    assert 0.15 <= scales.min() < 0.16 and 1.49 < scales.max() <= 1.5
    assert np.mean([order.gaussian for order in orders]) == pytest.approx(0.5, abs=0.03)
    grey, _, factor = torch.stack([order.of_images for order in orders]).transpose(0, 1)
    assert float(grey.mean()) == pytest.approx(0.4, abs=0.03)
    assert float(factor.min()) == pytest.approx(0.1, abs=0.005), 'quality 95'
    assert float(factor.max()) == pytest.approx(50 / 30, abs=0.02), 'quality 30'
    for gaussian, bounds in ((True, [1, 30]), (False, [0.05, 3])):
        strength = torch.stack([order.of_images[1] for order in orders if order.gaussian == gaussian])
        assert [float(strength.min()), float(strength.max())] == pytest.approx(bounds, rel=0.05, abs=0.05)


def test_it_is_a_function_of_the_seed():
    images, item = photo(height=96, width=80), next(synthetic(1))
    kernels = item['kernel1'], item['kernel2'], item['sinc_kernel']
    synthesis = Synthesis({**DEGRADATION, 'scale': 2}, CPU)
    made = []
    for seed in (1, 1, 2):
        seed_everything(seed)
        made.append(synthesis(images, kernels))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert made[0].shape == (2, 3, 48, 40)
    assert torch.equal((made[0] * 255).round() / 255, made[0])


def test_no_device_is_waited_for():
    """Nothing is read back, in filling the pool and beyond it; BasicSR's own does, so that the count can fail."""
    opt = {**DEGRADATION, 'scale': 2, 'is_train': True}
    data = list(synthetic(4, size=96))
    counts = {}
    for how in ('exact', 'fast'):
        seed_everything(0)
        degradation = build_degradation({**opt, 'degradation': how}, CPU)
        with Operations() as operations:
            for item in data:
                degradation({name: value.clone() for name, value in item.items()})
        counts[how] = len(operations.reads)
    assert counts['fast'] == 0 < counts['exact']


def test_everything_is_on_the_device():
    """On the meta device an operation that mixes in a tensor of the CPU raises, and so does a value that is read."""
    degradation = FastDegradation({**DEGRADATION, 'scale': 2, 'is_train': True}, torch.device('meta'))
    for seed, item in enumerate(synthetic(6, size=96)):
        seed_everything(seed)
        degradation(item)
        assert degradation.lq.device.type == degradation.gt.device.type == 'meta'
        assert degradation.lq.shape == (2, 3, 16, 16) and degradation.gt.shape == (2, 3, 32, 32)


def test_the_pool_gives_each_pair_once():
    """No pair is lost or doubled, and those drawn are not always the oldest."""
    degradation = FastDegradation({**DEGRADATION, 'scale': 2, 'queue_size': 8}, CPU)
    seed_everything(0)
    given, drawn = [], []
    for batch in range(12):
        names = torch.tensor([2. * batch, 2. * batch + 1])
        gt, lq = (names.view(2, 1, 1, 1).expand(2, 3, size, size) for size in (32, 16))
        gt, lq = degradation._exchanged(gt, lq)
        assert torch.equal(gt.amax((1, 2, 3)), lq.amax((1, 2, 3))) and gt.is_contiguous() and lq.is_contiguous()
        given += names.tolist()
        drawn += gt.amax((1, 2, 3)).tolist() if batch >= 4 else []
    kept = degradation.queue_gt[:, 0, 0, 0].tolist()
    assert sorted(drawn + kept) == given
    assert drawn != sorted(drawn)
