"""The discriminator's side: its distillation counts half for real and half for generated images, and its verdict."""
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from kd_models.alarm import READINGS
from tests.support import UNET, batches, gan_options, save_teacher, train

DISTILLED = {'feature_kd_d_opt': {'type': 'MLPFeatureLoss', 'loss_weight': 2.0}}


@pytest.mark.parametrize('mode', ['standard', 'relativistic'])
def test_features_of_real_and_generated_images_count_half_each(tmp_path, mode):
    """The logged distance is their mean, and each gets half of the gradient."""
    model = build_model(gan_options(tmp_path, {**DISTILLED, 'gan_mode': mode},
                                    teacher=save_teacher(tmp_path, network_d={**UNET, 'num_feat': 6})))
    distances, gradients = [], []

    def watch(loss, inputs, distance):
        distances.append(float(distance))
        distance.register_hook(lambda gradient: gradients.append(float(gradient)))
    model.aux['feature_kd_d'].register_forward_hook(watch)
    log, = train(model, batches(1))
    real, fake = distances
    assert real != fake and log['l_d_feature_kd'] == pytest.approx((real + fake) / 2, rel=1e-6)
    assert gradients == [0.5, 0.5]


class BrightnessD(nn.Module):
    """One logit per image, its mean brightness plus an offset."""

    def __init__(self, offset=0.):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, x):
        return x.mean((1, 2, 3)) + self.offset


@pytest.mark.parametrize('offset', [-10., 0., 10.])
@pytest.mark.parametrize('mode', ['standard', 'relativistic'])
def test_the_verdict_is_that_of_the_mode(tmp_path, monkeypatch, warnings_logged, mode, offset):
    """Real images are brighter than generated ones: all are told apart by comparison, half of them by the sign."""
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'BrightnessD', BrightnessD)
    model = build_model(gan_options(tmp_path, {'gan_mode': mode, 'optim_d': {'type': 'SGD', 'lr': 1e-6}},
                                    network_d={'type': 'BrightnessD', 'offset': offset}))
    data = batches(READINGS)
    for item in data:
        item['lq'] *= 0.2
        item['gt'] = 0.8 + 0.2 * item['gt']
    for log in train(model, data):
        assert log['out_d_real'] > log['out_d_fake'] + 0.3
    told = [text for text in warnings_logged if text.startswith('The discriminator tells 100.0% of real and generated')]
    assert len(told) == (mode == 'relativistic')
