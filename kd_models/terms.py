"""The generator's losses by their YAML names: what each needs from a `Step`, and how it is computed from it.

Adding a loss to every method is one class here and one entry in `TERMS`; its place in `TERMS` is its place in the sum.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from basicsr.losses.loss_util import get_refined_artifact_map
from torch import Tensor, nn
from torch.nn import functional as F

from kd_losses.self_distill_loss import augment_alike
from kd_models.step import Step
from kd_utils.options import OptionError
from kd_utils.rng import RandomState

if TYPE_CHECKING:
    from kd_models.distillation_model import DistillationModel


class Term:
    """A loss of the generator, weighted by its criterion.

    Attributes:
        needs: The forwards it reads, of `teacher`, `teacher_features`, `ema`; the student's always runs.
        default_type: The loss class where `<name>_opt` gives no `type`.
        starts: The first iteration in which it is on.
    """
    needs: frozenset[str] = frozenset()
    default_type: str | None = None
    starts = 1

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
        gt, unit = step.target('ldl'), self.model.adapter.unit
        weight = get_refined_artifact_map(unit(gt), unit(step.output), unit(step.ema), 7)
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
        output, teacher, lq = map(self.model.adapter.unit, (step.output, step.teacher, step.lq))
        degraded = None
        if self.criterion.degraded:
            degraded = F.interpolate(lq, size=output.shape[-2:], mode='bicubic').clamp(0, 1)
        parts = self.criterion(output, teacher, degraded, self.model.sources)
        loss = parts.pop('loss')
        return {'l_g_contrastive': loss, **{f'contrastive_{name}': value for name, value in parts.items()}}

    def fits(self, images: Tensor) -> bool:
        """Whether it returns a scalar `loss`; a batch of one image has no negatives and is refused by the criterion."""
        if self.criterion.degraded and self.model.latent_size(self.model.opt):
            raise OptionError(f'`train.{self.name}_opt.negatives` asks for the LR images as negatives, and '
                              '`network_g` makes images of noise. Write `in_batch`.')
        batch = self.model.opt['datasets']['train']['batch_size_per_gpu'] * self.model.opt['world_size']
        return self.criterion(*[images.repeat(min(batch, 2), 1, 1, 1)] * 3)['loss'].dim() == 0


class SelfDistillTerm(Term):
    """l_g_self_distill: the student's image against its EMA's, L = w d(A(G(x)), A(sg[G_ema(x)])) (SD-GAN).

    Args:
        loss_weight: w, whatever the class of the distance d. At 0 the distance is computed without gradient and logged.
        augment: Whether both images go through one random geometric transform A.
        start_iter: The iteration after which it is on.

    Raises:
        OptionError: The generator draws random numbers that its EMA would not get.
    """
    needs = frozenset({'ema'})
    default_type = 'LPIPSLoss'

    def __init__(self, name: str, criterion: nn.Module, model: DistillationModel, *, loss_weight: float = 0.1,
                 augment: bool = False, start_iter: int = 0) -> None:
        super().__init__(name, criterion, model)
        self.weight, self.augment, self.starts = loss_weight, augment, start_iter + 1

    def __call__(self, step: Step) -> dict[str, Tensor]:
        learns = self.weight > 0
        # at weight 0 nothing else may notice it, the random numbers of what comes after included
        with torch.set_grad_enabled(learns), torch.random.fork_rng(devices=[], enabled=not learns):
            distance = self._distance(*map(self.model.adapter.unit, (step.output, step.ema)))
        loss = {'l_g_self_distill': self.weight * distance} if learns else {}
        return {**loss, 'self_distill_distance': distance}

    def _distance(self, student: Tensor, ema: Tensor) -> Tensor:
        if self.augment:
            student, ema = augment_alike(student, ema)
        distance = self.criterion(student, ema)
        # PerceptualLoss returns a pair, of which one is None where its weight is 0
        return sum(part for part in distance if part is not None) if isinstance(distance, tuple) else distance

    def fits(self, images: Tensor) -> bool:
        """Whether the criterion takes two images and returns a scalar."""
        if self._draws_random_numbers():
            raise OptionError(f'`train.{self.name}_opt` compares two images of one generator, and '
                              f'{type(self.model.net_g).__name__} draws random numbers in each pass, so that they '
                              'differ for no fault of its weights. Switch its noise off, or take the loss out.')
        return self._distance(images, images).dim() == 0

    @torch.no_grad()
    def _draws_random_numbers(self) -> bool:
        model = self.model
        lq = torch.zeros(model.lq_size(), device=model.device)
        before = RandomState.now()
        with before.replay():
            model.adapter(model.net_g_ema, lq)
            return RandomState.now() != before


class DiffusionTerm(Term):
    """l_g_diffusion: the denoising loss of a diffusion model, the U-Net's prediction against what it should be."""
    default_type = 'MSELoss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        losses = [self.criterion(predicted, wanted) for predicted, wanted in step.pairs.values()]
        return {f'l_g_{self.name}': torch.stack(losses).sum()}


class PhaseKDTerm(DiffusionTerm):
    """l_g_phase_kd: the images of a student's phases against the states that its diffusion teacher passes through."""
    default_type = 'L1Loss'


# The order of the sum, so of the gradients' accumulation: BasicSR's own (RealESRGANModel has all four), then ours.
TERMS: dict[str, type[Term]] = {
    'pixel': PixelTerm,
    'ldl': LDLTerm,
    'perceptual': PerceptualTerm,
    'gan': GANTerm,
    'response_kd': ResponseKDTerm,
    'feature_kd': FeatureKDTerm,
    'contrastive': ContrastiveTerm,
    'self_distill': SelfDistillTerm,
}
STOCK = ('pixel', 'ldl', 'perceptual', 'gan')
