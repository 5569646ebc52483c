"""One iteration's images."""
import torch

from kd_models.stages import Stage
from kd_models.step import Step


def test_a_loss_has_its_own_ground_truth_or_the_plain_one():
    gt, sharp = torch.zeros(1), torch.ones(1)
    step = Step(1, Stage('a', 1, 2, ('pixel', )), torch.rand(1, 3, 4, 4), {'gt': gt, 'pixel': sharp})
    assert step.target('pixel') is sharp and step.target('gan') is gt


def test_images_are_in_0_to_1_if_nobody_says_otherwise():
    step = Step(1, Stage('a', 1, 2, ('pixel', )), torch.rand(1, 3, 4, 4), {})
    assert step.unit(step.lq) is step.lq and step.inputs == step.condition == {}
