"""The discriminator's side: its losses, its update, and the adversarial gradient it gives to the generator."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from basicsr.losses.gan_loss import r1_penalty
from torch import Tensor, nn

from kd_models.features import FeatureReader
from kd_models.runtime import Runtime
from kd_models.step import Features, Step
from kd_models.teacher import Teacher


class FeatureDistance(Protocol):
    """A loss between the feature maps of two discriminators: its name, its log name, its teacher, and its value."""
    name: str
    log_name: str
    teacher: str

    def compare(self, student: Features, teacher: Features) -> Tensor:
        """The weighted loss between maps by layer."""


class Adversary:
    """Generator and discriminator losses of SRGANModel (`standard`) and ESRGANModel (`relativistic`).

    Forwards of the discriminator happen exactly where BasicSR's models have them: in train mode each one advances the
    power iteration of spectral norm.

    Args:
        net_d: The student discriminator; None where only the teacher's judges.
        teachers: The frozen networks by name.
        runtime: How this process computes.
        features: Which layers the discriminators' losses read.
        train_opt: The `train` section: `gan_mode`, where `relativistic` is the relativistic average GAN
            (Jolicoeur-Martineau 2018), `r1_reg_weight` and `net_d_reg_every`.
    """

    def __init__(self, net_d: Any, teachers: Mapping[str, Teacher], runtime: Runtime, features: FeatureReader,
                 train_opt: Mapping[str, Any]) -> None:
        self.net_d = net_d
        self.teachers = teachers
        self.runtime = runtime
        self.features = features
        self.relativistic = train_opt.get('gan_mode') == 'relativistic'
        self.r1_weight = train_opt.get('r1_reg_weight', 0)
        self.r1_every = train_opt.get('net_d_reg_every', 16)

    def _judge_of(self, step: Step) -> nn.Module:
        """The discriminator whose adversarial gradient the generator gets in this stage."""
        return self.net_d if step.stage.discriminator == 'student' else self.teachers['teacher'].net_d

    def generator_loss(self, step: Step, cri_gan: nn.Module) -> Tensor:
        """The generator's adversarial loss; real images are needed by the relativistic one only.

        Args:
            step: The iteration, with the student's images.
            cri_gan: The GAN loss, which weighs itself.
        """
        net_d = self._judge_of(step)
        if not self.relativistic:
            return cri_gan(net_d(step.output), True, is_disc=False)
        with torch.no_grad():
            real = net_d(step.target('gan'))
        fake = net_d(step.output)
        loss_real = cri_gan(real - torch.mean(fake), False, is_disc=False)
        loss_fake = cri_gan(fake - torch.mean(real), True, is_disc=False)
        return (loss_real + loss_fake) / 2

    def update_discriminator(self, step: Step, optimizer: torch.optim.Optimizer, cri_gan: nn.Module,
                             distances: list[FeatureDistance]) -> OrderedDict[str, Tensor]:
        """One update of the student discriminator on `step.output` against the real images.

        Args:
            step: The iteration, with the student's images; its `verdict` is set.
            optimizer: The discriminator's.
            cri_gan: The GAN loss.
            distances: The losses between its feature maps and a teacher's that are on.

        Returns:
            Log name -> value.
        """
        runtime = self.runtime
        real_images, fake_images = step.target('gan'), step.output.detach()
        optimizer.zero_grad()
        if self.relativistic:
            with torch.no_grad():
                reference = torch.mean(self.net_d(fake_images))
        real, kd_of_real = self._judge(real_images, distances)
        l_d_real = cri_gan(real - reference, True, is_disc=True) * 0.5 if self.relativistic \
            else cri_gan(real, True, is_disc=True)
        runtime.backward(_sum(l_d_real, kd_of_real))
        fake, kd_of_fake = self._judge(fake_images, distances)
        l_d_fake = cri_gan(fake - torch.mean(real.detach()), False, is_disc=True) * 0.5 if self.relativistic \
            else cri_gan(fake, False, is_disc=True)
        runtime.backward(_sum(l_d_fake, kd_of_fake))
        step.verdict = self.verdict(real.detach(), fake.detach(), cri_gan)
        logs = OrderedDict(l_d_real=l_d_real, l_d_fake=l_d_fake,
                           out_d_real=torch.mean(real.detach()), out_d_fake=torch.mean(fake.detach()))
        logs.update((name, kd_of_real[name] + kd_of_fake[name]) for name in kd_of_real)
        if self.r1_weight and step.iteration % self.r1_every == 0:
            logs['l_d_r1'] = self.penalize(real_images)
        runtime.step(optimizer)
        return logs

    def verdict(self, real: Tensor, fake: Tensor, cri_gan: Any) -> tuple[Tensor, Tensor]:
        """Logits shifted so that a sign is an opinion: positive where an image is taken for real.

        Args:
            real: Logits of real images, without a graph.
            fake: Logits of generated images, without a graph.
            cri_gan: The GAN loss.
        """
        if self.relativistic:  # real and generated images are judged against each other
            return real - fake.mean(), fake - real.mean()
        # least squares pull towards the two labels, so that the opinion changes half-way between them
        least_squares = getattr(cri_gan, 'gan_type', None) == 'lsgan'
        middle = (cri_gan.real_label_val + cri_gan.fake_label_val) / 2 if least_squares else 0
        return real - middle, fake - middle

    def _judge(self, images: Tensor, distances: list[FeatureDistance]) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's output, and half of each distance: one half for real images, one for generated ones."""
        names = [distance.name for distance in distances]
        prediction, maps = self.features.run('student.net_d', names, lambda: self.net_d(images))
        targets = {name: self._teacher_maps(name, names, images)
                   for name in dict.fromkeys(distance.teacher for distance in distances)}
        return prediction, {distance.log_name: 0.5 * distance.compare(maps, targets[distance.teacher])
                            for distance in distances}

    @torch.no_grad()
    def _teacher_maps(self, teacher: str, losses: list[str], images: Tensor) -> Features:
        net_d = self.teachers[teacher].net_d
        return self.features.run(f'{teacher}.net_d', losses, lambda: net_d(images))[1]

    def penalize(self, real_images: Tensor, net_d: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Adds the gradient of R1, gamma/2 |grad D(y)|^2 times its interval (Mescheder et al. 2018; StyleGAN2).

        A discriminator of patches or pixels has P logits D_p for an image, each a verdict of its own, and gets
        gamma/2 |grad sum_p D_p(y)|^2 / P: the same gamma does for all sizes of images and phases.

        Args:
            real_images: y, (N, C, H, W).
            net_d: D, by default the student discriminator.

        Returns:
            |grad sum_p D_p(y)|^2, the mean over the batch.
        """
        images = real_images.detach().requires_grad_(True)
        logits = (net_d or self.net_d)(images)
        penalty = r1_penalty(logits, images)
        self.runtime.backward(self.r1_weight / 2 * penalty / logits[0].numel() * self.r1_every)
        return penalty.detach()


def _sum(loss: Tensor, others: dict[str, Tensor]) -> Tensor:
    for other in others.values():
        loss = loss + other
    return loss
