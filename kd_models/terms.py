"""The losses by their YAML names: what each needs, and how it is computed from a `Step`.

Adding a loss to every method is one class here and one entry in `TERMS`; its place in `TERMS` is its place in the sum.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from basicsr.losses.loss_util import get_refined_artifact_map
from torch import Tensor, nn
from torch.nn import functional as F

from kd_losses.self_distill_loss import augment_alike
from kd_models.step import Features, Step
from kd_models.training import Training
from kd_utils.options import OptionError
from kd_utils.rng import RandomState


class Term:
    """A loss of the training, weighted by its criterion.

    Args:
        name: Its YAML name, `<name>_opt` without the ending.
        criterion: The loss class with its options, which weighs itself.
        training: What is trained; a term keeps the parts that it calls.
        teacher: The teacher that it compares with, for those that read one.

    Attributes:
        default_type: The loss class where `<name>_opt` gives no `type`.
        side: Whose loss it is, `generator` or `discriminator`. A discriminator's compares feature maps, goes with its
            update, is named in no stage, and its trainable criterion belongs to `optim_d`.
        reads: The forwards that it reads besides the student's: `ema`, `teacher`, or others of the model's table.
        reads_features: Whether it compares feature maps; its criterion is then given `layers` and `channels`.
        requires: The options without which it cannot be computed, besides the teacher that a generator's loss reads.
        option_keys: The keys of `<name>_opt` that the term itself takes, by kind of value (kd_utils/schema).
        starts: The first iteration in which it is on.
        lr_factor: The learning rate of its trainable criterion, as a multiple of that of its side's network.
    """
    default_type: ClassVar[str | None] = None
    side: ClassVar[str] = 'generator'
    reads: ClassVar[frozenset[str]] = frozenset()
    reads_features: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    option_keys: ClassVar[Mapping[str, str]] = {}
    starts = 1
    lr_factor = 1.

    def __init__(self, name: str, criterion: Any, training: Training, *, teacher: str = 'teacher') -> None:
        self.name = name
        self.criterion = criterion
        self.teacher = teacher

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Log name -> value; those named `l_...` are summed, others are logged only."""
        raise NotImplementedError

    @property
    def forwards(self) -> set[str]:
        """What it reads, with its teacher by name."""
        return {self.teacher if name == 'teacher' else name for name in self.reads}

    @property
    def log_name(self) -> str:
        """`l_g_<name>` or, of a discriminator's loss `<name>_d`, `l_d_<name>`."""
        return f'l_d_{self.name.removesuffix("_d")}' if self.side == 'discriminator' else f'l_g_{self.name}'

    def fits(self, images: Tensor, training: Training) -> bool:
        """Whether the criterion takes two images (N, C, H, W) and returns a scalar."""
        return self.criterion(images, images).dim() == 0


class PixelTerm(Term):
    """l_g_pix: the student's image against the ground truth."""
    default_type = 'L1Loss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {'l_g_pix': self.criterion(step.output, step.target('pixel'))}


class LDLTerm(Term):
    """l_g_ldl: the pixel loss where the EMA generator is better (Liang et al., CVPR 2022), as in RealESRGANModel."""
    default_type = 'L1Loss'
    reads = frozenset({'ema'})
    requires = ('train.ema_decay', )

    def __call__(self, step: Step) -> dict[str, Tensor]:
        gt, unit = step.target('ldl'), step.unit
        weight = get_refined_artifact_map(unit(gt), unit(step.output), unit(step.ema), 7)
        return {'l_g_ldl': self.criterion(torch.mul(weight, step.output), torch.mul(weight, gt))}


class PerceptualTerm(Term):
    """l_g_percep and l_g_style: distances between VGG features."""
    default_type = 'PerceptualLoss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        percep, style = self.criterion(step.output, step.target('perceptual'))
        return {name: value for name, value in (('l_g_percep', percep), ('l_g_style', style)) if value is not None}

    def fits(self, images: Tensor, training: Training) -> bool:
        """Whether the criterion returns a pair, some of it not None."""
        percep, style = self.criterion(images, images)
        return percep is not None or style is not None


class GANTerm(Term):
    """l_g_gan: the adversarial loss, from the student's discriminator or, where a stage says so, the teacher's."""
    default_type = 'GANLoss'

    def __init__(self, name: str, criterion: nn.Module, training: Training, **keys: Any) -> None:
        super().__init__(name, criterion, training, **keys)
        self.adversary = training.adversary

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {'l_g_gan': self.adversary.generator_loss(step, self.criterion)}

    def fits(self, images: Tensor, training: Training) -> bool:
        """Whether the criterion takes predictions and a label."""
        return self.criterion(images, True, is_disc=True).dim() == 0


class TeacherTerm(Term):
    """A distance between what student and teachers make of one input, which needs no ground truth.

    Args:
        inputs: Which inputs it is computed on: those `given` by the dataset, `upcycled` ones, or `both`, summed.
    """
    reads = frozenset({'teacher'})
    option_keys: ClassVar[Mapping[str, str]] = {'inputs': 'given|upcycled|both'}

    def __init__(self, name: str, criterion: Any, training: Training, *, inputs: str = 'given', **keys: Any) -> None:
        super().__init__(name, criterion, training, **keys)
        self.inputs = inputs

    def __call__(self, step: Step) -> dict[str, Tensor]:
        distances = [] if self.inputs == 'upcycled' else [self.distance(step)]
        if step.upcycled is not None and self.inputs != 'given':
            distances.append(self.distance(step.upcycled))
        return {self.log_name: sum(distances[1:], distances[0])}

    def distance(self, step: Step) -> Tensor:
        """The weighted loss on the input of a step."""
        raise NotImplementedError

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers that it compares with, by name."""
        return (self.teacher, )

    @property
    def forwards(self) -> set[str]:
        """Its teachers on the inputs that it is computed on."""
        given = set(self.teachers) if self.inputs != 'upcycled' else set()
        second = {'upcycled', *(f'upcycled.{name}' for name in self.teachers)} if self.inputs != 'given' else set()
        return given | second


class ResponseKDTerm(TeacherTerm):
    """l_g_response_kd: the student's image against the teacher's (Hinton et al. 2015, on images).

    Args:
        teacher: The teacher, or several: then the loss is the mean of those against each or, by `combine: mean`, that
            against the mean of their images.
    """
    default_type = 'L1Loss'
    option_keys = {**TeacherTerm.option_keys, 'teacher': 'str or words', 'combine': 'each|mean'}

    def __init__(self, name: str, criterion: nn.Module, training: Training, *, teacher: str | list[str] = 'teacher',
                 combine: str = 'each', **keys: Any) -> None:
        self._teachers = (teacher, ) if isinstance(teacher, str) else tuple(teacher)
        super().__init__(name, criterion, training, teacher=self._teachers[0], **keys)
        self.combine = combine

    @property
    def teachers(self) -> tuple[str, ...]:
        """All of them."""
        return self._teachers

    def distance(self, step: Step) -> Tensor:
        images = [step.teachers[name] for name in self.teachers]
        if len(images) == 1:
            return self.criterion(step.output, images[0])
        if self.combine == 'mean':
            return self.criterion(step.output, torch.stack(images).mean(0))
        return torch.stack([self.criterion(step.output, image) for image in images]).mean()


class FeatureTerm(TeacherTerm):
    """A distance between the feature maps of the student and those of a teacher, logged as `log_name`.

    With `side = 'discriminator'` it is one between the two discriminators.
    """
    reads_features = True

    def __init_subclass__(cls) -> None:
        if cls.side == 'discriminator':
            cls.requires = ('network_d', 'teacher.network_d')
            given_to_generators = ('inputs', 'adaptor_warmup')
            cls.option_keys = {key: kind for key, kind in cls.option_keys.items() if key not in given_to_generators}

    def distance(self, step: Step) -> Tensor:
        return self.compare(step.features['student'], step.features[self.teacher])

    def compare(self, student: Features, teacher: Features) -> Tensor:
        """The weighted loss between maps by layer."""
        return self.criterion(student, teacher)

    def fits(self, images: Tensor, training: Training) -> bool:
        """Its constructor has been given layers and channels already."""
        return True


class FeatureKDTerm(FeatureTerm):
    """l_g_feature_kd: the student's feature maps, through their adaptors, against the teacher's.

    Logs `feature_kd_r2`, how much of the teacher's maps the adaptors reproduce, where the class tells it.

    Args:
        adaptor_lr: The adaptors' learning rate as a multiple of that of `optim_g` (or `optim_d`).
        adaptor_warmup: In so many first iterations of each stage only the adaptors learn from this loss.
    """
    default_type = 'MLPFeatureLoss'
    option_keys = {**TeacherTerm.option_keys, 'adaptor_lr': 'ratio', 'adaptor_warmup': 'count'}

    def __init__(self, name: str, criterion: Any, training: Training, *, adaptor_lr: float = 10.,
                 adaptor_warmup: int = 0, **keys: Any) -> None:
        super().__init__(name, criterion, training, **keys)
        self.lr_factor, self.warmup = adaptor_lr, adaptor_warmup

    def __call__(self, step: Step) -> dict[str, Tensor]:
        logs = super().__call__(step)
        explained = getattr(self.criterion, 'explained', None)
        return logs if explained is None else {**logs, f'{self.name}_r2': explained}

    def distance(self, step: Step) -> Tensor:
        student = step.features['student']
        if step.iteration - step.stage.start < self.warmup:
            student = {layer: maps.detach() for layer, maps in student.items()}
        return self.compare(student, step.features[self.teacher])


class FeatureAffinityTerm(FeatureTerm):
    """l_g_feature_affinity: which places of a feature map are alike, the student's against the teacher's (FAKD)."""
    default_type = 'SpatialAffinityLoss'


class FeatureKDOfDiscriminatorTerm(FeatureKDTerm):
    """l_d_feature_kd: the same between the two discriminators, half of it on real images, half on generated ones."""
    side = 'discriminator'


class FeatureAffinityOfDiscriminatorTerm(FeatureAffinityTerm):
    """l_d_feature_affinity: the same between the two discriminators, as `feature_kd_d`."""
    side = 'discriminator'


class ContrastiveTerm(Term):
    """l_g_contrastive: the student's image is to be nearer to the teacher's than to any other (MCAD-KD)."""
    default_type = 'MultiScaleContrastiveLoss'
    reads = frozenset({'teacher'})

    def __call__(self, step: Step) -> dict[str, Tensor]:
        output, teacher, lq = map(step.unit, (step.output, step.teachers[self.teacher], step.lq))
        degraded = None
        if self.criterion.degraded:
            degraded = F.interpolate(lq, size=output.shape[-2:], mode='bicubic').clamp(0, 1)
        parts = self.criterion(output, teacher, degraded, step.sources)
        loss = parts.pop('loss')
        return {'l_g_contrastive': loss, **{f'contrastive_{name}': value for name, value in parts.items()}}

    def fits(self, images: Tensor, training: Training) -> bool:
        """Whether it returns a scalar `loss`; a batch of one image has no negatives and is refused by the criterion."""
        if self.criterion.degraded and training.latent_size:
            raise OptionError(f'`train.{self.name}_opt.negatives` asks for the LR images as negatives, and '
                              '`network_g` makes images of noise. Write `in_batch`.')
        batch = training.opt['datasets']['train']['batch_size_per_gpu'] * training.opt['world_size']
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
    default_type = 'LPIPSLoss'
    reads = frozenset({'ema'})
    requires = ('train.ema_decay', )
    option_keys = {'loss_weight': 'weight', 'augment': 'bool', 'start_iter': 'count'}

    def __init__(self, name: str, criterion: nn.Module, training: Training, *, loss_weight: float = 0.1,
                 augment: bool = False, start_iter: int = 0, **keys: Any) -> None:
        super().__init__(name, criterion, training, **keys)
        self.weight, self.augment, self.starts = loss_weight, augment, start_iter + 1

    def __call__(self, step: Step) -> dict[str, Tensor]:
        learns = self.weight > 0
        # at weight 0 nothing else may notice it, the random numbers of what comes after included
        with torch.set_grad_enabled(learns), torch.random.fork_rng(devices=[], enabled=not learns):
            distance = self._distance(*map(step.unit, (step.output, step.ema)))
        loss = {'l_g_self_distill': self.weight * distance} if learns else {}
        return {**loss, 'self_distill_distance': distance}

    def _distance(self, student: Tensor, ema: Tensor) -> Tensor:
        if self.augment:
            student, ema = augment_alike(student, ema)
        distance = self.criterion(student, ema)
        # PerceptualLoss returns a pair, of which one is None where its weight is 0
        return sum(part for part in distance if part is not None) if isinstance(distance, tuple) else distance

    def fits(self, images: Tensor, training: Training) -> bool:
        """Whether the criterion takes two images and returns a scalar."""
        if _draws_random_numbers(training):
            raise OptionError(f'`train.{self.name}_opt` compares two images of one generator, and '
                              f'{type(training.net_g).__name__} draws random numbers in each pass, so that they '
                              'differ for no fault of its weights. Switch its noise off, or take the loss out.')
        return self._distance(images, images).dim() == 0


@torch.no_grad()
def _draws_random_numbers(training: Training) -> bool:
    """Whether a pass of the generator does."""
    inputs = torch.zeros(training.lq_size, device=training.runtime.device)
    before = RandomState.now()
    with before.replay():
        training.adapter(training.net_g_ema, inputs)
        return RandomState.now() != before


class DiffusionTerm(Term):
    """l_g_diffusion: the denoising loss of a diffusion model, the U-Net's prediction against what it should be."""
    default_type = 'MSELoss'

    def __call__(self, step: Step) -> dict[str, Tensor]:
        losses = [self.criterion(predicted, wanted) for predicted, wanted in step.pairs.values()]
        return {self.log_name: torch.stack(losses).sum()}


class PhaseKDTerm(DiffusionTerm):
    """l_g_phase_kd: the images of a student's phases against the states that its diffusion teacher passes through."""
    default_type = 'L1Loss'
    requires = ('teacher', )


# The order of the sum, so of the gradients' accumulation: BasicSR's own (RealESRGANModel has all four), then ours.
TERMS: dict[str, type[Term]] = {
    'pixel': PixelTerm,
    'ldl': LDLTerm,
    'perceptual': PerceptualTerm,
    'gan': GANTerm,
    'response_kd': ResponseKDTerm,
    'feature_kd': FeatureKDTerm,
    'feature_affinity': FeatureAffinityTerm,
    'contrastive': ContrastiveTerm,
    'self_distill': SelfDistillTerm,
    'feature_kd_d': FeatureKDOfDiscriminatorTerm,
    'feature_affinity_d': FeatureAffinityOfDiscriminatorTerm,
}
STOCK = ('pixel', 'ldl', 'perceptual', 'gan')
