"""The discriminator's side: its losses, its update, and the adversarial gradient it gives to the generator."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from basicsr.losses.gan_loss import r1_penalty
from torch import Tensor, nn

from kd_models.stages import Stage
from kd_models.step import Features, Step
from kd_models.taps import Taps

if TYPE_CHECKING:
    from kd_models.distillation_model import DistillationModel


class Adversary:
    """Generator and discriminator losses of SRGANModel (`standard`) and ESRGANModel (`relativistic`).

    Forwards of the discriminator happen exactly where BasicSR's models have them: in train mode each one advances the
    power iteration of spectral norm.

    Args:
        model: The model; its `net_d`, `cri_gan`, `teacher` and `runtime` are used.
        relativistic: Relativistic average GAN (Jolicoeur-Martineau 2018) instead of the standard one.
    """

    def __init__(self, model: DistillationModel, relativistic: bool) -> None:
        self.model = model
        self.relativistic = relativistic
        train_opt = model.opt['train']
        self.r1_weight = train_opt.get('r1_reg_weight', 0)
        self.r1_every = train_opt.get('net_d_reg_every', 16)
        self.taps: Taps | None = None          # the student discriminator's, set with feature_kd_d
        self.teacher_taps: Taps | None = None
        self.stage: Stage | None = None
        self.judged: tuple[Tensor, Tensor] | None = None  # the last logits of real and generated images

    def _critic(self) -> nn.Module:
        """The discriminator whose adversarial gradient the generator gets in this stage."""
        if self.stage is not None and self.stage.discriminator == 'teacher':
            assert self.model.teacher is not None
            return self.model.teacher.net_d
        return self.model.net_d

    def generator_loss(self, step: Step) -> Tensor:
        """The generator's adversarial loss; real images are needed by the relativistic one only."""
        critic, cri_gan = self._critic(), self.model.cri_gan
        if not self.relativistic:
            return cri_gan(critic(step.output), True, is_disc=False)
        with torch.no_grad():
            real = critic(step.target('gan'))
        fake = critic(step.output)
        loss_real = cri_gan(real - torch.mean(fake), False, is_disc=False)
        loss_fake = cri_gan(fake - torch.mean(real), True, is_disc=False)
        return (loss_real + loss_fake) / 2

    def update_discriminator(self, step: Step, iteration: int, distill: bool) -> OrderedDict[str, Tensor]:
        """One update of the student discriminator on `step.output` against the real images.

        Args:
            step: The iteration's images.
            iteration: For the lazy R1 penalty.
            distill: Whether feature_kd_d is on in this stage.

        Returns:
            Log name -> value.
        """
        model, logs = self.model, OrderedDict[str, Tensor]()
        optimizer, runtime = model.optimizer_d, model.runtime
        real_images, fake_images = step.target('gan'), step.output.detach()
        optimizer.zero_grad()
        if self.relativistic:
            with torch.no_grad():
                reference = torch.mean(model.net_d(fake_images))
        real, real_kd = self._judge(real_images, distill)
        l_d_real = model.cri_gan(real - reference, True, is_disc=True) * 0.5 if self.relativistic \
            else model.cri_gan(real, True, is_disc=True)
        runtime.backward(l_d_real if real_kd is None else l_d_real + real_kd)
        fake, fake_kd = self._judge(fake_images, distill)
        l_d_fake = model.cri_gan(fake - torch.mean(real.detach()), False, is_disc=True) * 0.5 if self.relativistic \
            else model.cri_gan(fake, False, is_disc=True)
        runtime.backward(l_d_fake if fake_kd is None else l_d_fake + fake_kd)
        self._remember(real.detach(), fake.detach())
        logs.update(l_d_real=l_d_real, l_d_fake=l_d_fake,
                    out_d_real=torch.mean(real.detach()), out_d_fake=torch.mean(fake.detach()))
        if real_kd is not None and fake_kd is not None:
            logs['l_d_feature_kd'] = real_kd + fake_kd
        if self.r1_weight and iteration % self.r1_every == 0:
            logs['l_d_r1'] = self.penalize(real_images)
        runtime.step(optimizer)
        return logs

    def _remember(self, real: Tensor, fake: Tensor) -> None:
        """Logits of which the sign is the verdict; relativistic ones are judged against each other."""
        cri_gan = self.model.cri_gan
        # least squares pull towards the two labels, so that the verdict changes half-way between them
        least_squares = getattr(cri_gan, 'gan_type', None) == 'lsgan'
        middle = (cri_gan.real_label_val + cri_gan.fake_label_val) / 2 if least_squares else 0
        self.judged = (real - fake.mean(), fake - real.mean()) if self.relativistic else (real - middle, fake - middle)

    def _judge(self, images: Tensor, distill: bool) -> tuple[Tensor, Tensor | None]:
        """The discriminator's output and, with feature_kd_d, half its distance to the teacher's features."""
        net_d = self.model.net_d
        if not distill:
            return net_d(images), None
        assert self.taps is not None and self.teacher_taps is not None and self.model.teacher is not None
        prediction, features = self.taps.run(lambda: net_d(images))
        targets: Features = self.model.teacher.discriminate(images, self.teacher_taps)
        return prediction, 0.5 * self.model.cri_feature_kd_d(features, targets)

    def penalize(self, real_images: Tensor, critic: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Adds the gradient of R1, gamma/2 |grad D(y)|^2 times its interval (Mescheder et al. 2018; StyleGAN2).

        A discriminator of patches or pixels has P logits D_p for an image, each a verdict of its own, and gets
        gamma/2 |grad sum_p D_p(y)|^2 / P: the same gamma does for all sizes of images and phases.

        Args:
            real_images: y, (N, C, H, W).
            critic: D, by default the student discriminator.

        Returns:
            |grad sum_p D_p(y)|^2, the mean over the batch.
        """
        images = real_images.detach().requires_grad_(True)
        logits = (critic or self.model.net_d)(images)
        penalty = r1_penalty(logits, images)
        self.model.runtime.backward(self.r1_weight / 2 * penalty / logits[0].numel() * self.r1_every)
        return penalty.detach()
