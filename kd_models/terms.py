"""The generator's losses by their YAML names: what each needs from a `Step`, and how it is computed from it.

Adding a loss to every method is one class here and one entry in `TERMS`; its place in `TERMS` is its place in the sum.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from basicsr.losses.loss_util import get_refined_artifact_map
from torch import Tensor, nn
from torch.nn import functional as F

from kd_models.step import Step

if TYPE_CHECKING:
    from kd_models.distillation_model import DistillationModel


class Term:
    """A loss of the generator, weighted by its criterion.

    Attributes:
        needs: The forwards it reads, of `teacher`, `teacher_features`, `ema`; the student's always runs.
        default_type: The loss class where `<name>_opt` gives no `type`.
    """
    needs: frozenset[str] = frozenset()
    default_type: str | None = None

    def __init__(self, name: str, criterion: nn.Module, model: DistillationModel) -> None:
        self.name = name
        self.criterion = criterion
        self.model = model

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Log name -> value; those named `l_...` are summed, others are logged only."""
        raise NotImplementedError

    def fits(self, images: Tensor) -> bool:
        """Whether the criterion takes two images (N, C, H, W) and returns a scalar."""
        return self.criterion(images, images).dim() == 0


class PixelTerm(Term):
    """l_g_pix: the student's image against the ground truth."""
    default_type = 'L1Loss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {'l_g_pix': self.criterion(step.output, step.target('pixel'))}


class LDLTerm(Term):
    """l_g_ldl: the pixel loss where the EMA generator is better (Liang et al., CVPR 2022), as in RealESRGANModel."""
    needs = frozenset({'ema'})
    default_type = 'L1Loss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        gt = step.target('ldl')
        weight = get_refined_artifact_map(gt, step.output, step.ema, 7)
        return {'l_g_ldl': self.criterion(torch.mul(weight, step.output), torch.mul(weight, gt))}


class PerceptualTerm(Term):
    """l_g_percep and l_g_style: distances between VGG features."""
    default_type = 'PerceptualLoss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        percep, style = self.criterion(step.output, step.target('perceptual'))
        return {name: value for name, value in (('l_g_percep', percep), ('l_g_style', style)) if value is not None}

    def fits(self, images: Tensor) -> bool:
        """Whether the criterion returns a pair, some of it not None."""
        percep, style = self.criterion(images, images)
        return percep is not None or style is not None


class GANTerm(Term):
    """l_g_gan: the adversarial loss, from the student's discriminator or, where a stage says so, the teacher's."""
    default_type = 'GANLoss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {'l_g_gan': self.model.adversary.generator_loss(step)}

    def fits(self, images: Tensor) -> bool:
        """Whether the criterion takes predictions and a label."""
        return self.criterion(images, True, is_disc=True).dim() == 0


class ResponseKDTerm(Term):
    """l_g_response_kd: the student's image against the teacher's (Hinton et al. 2015, on images)."""
    needs = frozenset({'teacher'})
    default_type = 'L1Loss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {'l_g_response_kd': self.criterion(step.output, step.teacher)}


class FeatureKDTerm(Term):
    """l_g_feature_kd: the student's feature maps, through their adaptors, against the teacher's."""
    needs = frozenset({'teacher', 'teacher_features'})
    default_type = 'MLPFeatureLoss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {'l_g_feature_kd': self.criterion(step.student_features, step.teacher_features)}

    def fits(self, images: Tensor) -> bool:
        """Its constructor has been given layers and channels already."""
        return True


class ContrastiveTerm(Term):
    """l_g_contrastive: the student's image is to be nearer to the teacher's than to any other (MCAD-KD)."""
    needs = frozenset({'teacher'})
    default_type = 'MultiScaleContrastiveLoss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        degraded = None
        if self.criterion.degraded:
            degraded = F.interpolate(step.lq, size=step.output.shape[-2:], mode='bicubic').clamp(0, 1)
        parts = self.criterion(step.output, step.teacher, degraded)
        loss = parts.pop('loss')
        return {'l_g_contrastive': loss, **{f'contrastive_{name}': value for name, value in parts.items()}}

    def fits(self, images: Tensor) -> bool:
        """Whether it returns a scalar `loss`; a batch of one image has no negatives and is refused by the criterion."""
        batch = self.model.opt['datasets']['train']['batch_size_per_gpu'] * self.model.opt['world_size']
        return self.criterion(*[images.repeat(min(batch, 2), 1, 1, 1)] * 3)['loss'].dim() == 0


# The order of the sum, so of the gradients' accumulation: BasicSR's own (RealESRGANModel has all four), then ours.
TERMS: dict[str, type[Term]] = {
    'pixel': PixelTerm,
    'ldl': LDLTerm,
    'perceptual': PerceptualTerm,
    'gan': GANTerm,
    'response_kd': ResponseKDTerm,
    'feature_kd': FeatureKDTerm,
    'contrastive': ContrastiveTerm,
}
STOCK = ('pixel', 'ldl', 'perceptual', 'gan')
