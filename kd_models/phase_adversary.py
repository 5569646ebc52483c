"""The discriminators of Adv-KD: one for each phase, on the teacher's states against the student's images."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_models.adversary import Adversary, FeatureDistance
from kd_models.features import FeatureReader
from kd_models.runtime import Runtime
from kd_models.step import Step
from kd_models.teacher import Teacher

PhaseCritic = Callable[[Tensor], Tensor]


def gradient_penalty(critic: PhaseCritic, real: Tensor, fake: Tensor) -> Tensor:
    """GP = mean_b (|grad_x D(x)|_2 - 1)^2 with x = a y + (1 - a) s, a ~ U(0, 1) per image (Gulrajani et al. 2017).

    The norm is over all of an image; BasicSR's `gradient_penalty_loss` has one norm over the channels of each pixel.

    Args:
        critic: D, from images to logits.
        real: y, (N, C, H, W).
        fake: s, (N, C, H, W).
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    mixed = (share * real + (1 - share) * fake).requires_grad_(True)
    slopes, = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (slopes.flatten(1).norm(dim=1) - 1).square().mean()


class PhaseAdversary(Adversary):
    """L_S = sum_k softplus(-D_k(s_k, c)), L_D = sum_k softplus(-D_k(Y_k, c)) + softplus(D_k(s_k, c)) + penalties.

    The phases are those of `step.pairs`, c is `step.condition`. The arguments are the base's; besides, `train_opt` may
    have `gp_reg_weight` and `weight_clip`.
    """

    def __init__(self, net_d: Any, teachers: Mapping[str, Teacher], runtime: Runtime, features: FeatureReader,
                 train_opt: Mapping[str, Any]) -> None:
        super().__init__(net_d, teachers, runtime, features, train_opt)
        self.gp_weight = train_opt.get('gp_reg_weight', 0)
        self.weight_clip = train_opt.get('weight_clip', 0)

    def _critic(self, step: Step, phase: int) -> PhaseCritic:
        """D_k(., c)."""
        return lambda images: self.net_d(images, **step.condition, phase=phase)

    def generator_loss(self, step: Step, cri_gan: nn.Module) -> Tensor:
        """The sum over the phases that are on."""
        losses = [cri_gan(self._critic(step, phase)(image), True, is_disc=False)
                  for phase, (image, _) in step.pairs.items()]
        return torch.stack(losses).sum()

    def update_discriminator(self, step: Step, optimizer: torch.optim.Optimizer, cri_gan: nn.Module,
                             distances: list[FeatureDistance]) -> OrderedDict[str, Tensor]:
        """One update of the discriminators of the phases that are on; see the base."""
        optimizer.zero_grad()
        logs: OrderedDict[str, Any] = OrderedDict()
        real_logits, fake_logits = [], []
        for phase, (image, wanted) in step.pairs.items():
            critic = self._critic(step, phase)
            real, fake = critic(wanted), critic(image.detach())
            l_d_real, l_d_fake = cri_gan(real, True, is_disc=True), cri_gan(fake, False, is_disc=True)
            self.runtime.backward(l_d_real + l_d_fake)
            losses = {'l_d_real': l_d_real.detach(), 'l_d_fake': l_d_fake.detach(),
                      **self._penalties(critic, wanted, image.detach(), step.iteration)}
            for name, value in losses.items():
                logs[name] = logs.get(name, 0) + value
            real_logits.append(real.detach().flatten())
            fake_logits.append(fake.detach().flatten())
        self.runtime.step(optimizer)
        self._clip(step)
        real, fake = torch.cat(real_logits), torch.cat(fake_logits)
        step.verdict = self.verdict(real, fake, cri_gan)
        logs.update(out_d_real=real.mean(), out_d_fake=fake.mean())
        return logs

    def _penalties(self, critic: PhaseCritic, real: Tensor, fake: Tensor, iteration: int) -> dict[str, Tensor]:
        logs = {}
        if self.gp_weight:
            penalty = gradient_penalty(critic, real, fake)
            self.runtime.backward(self.gp_weight * penalty)
            logs['l_d_gp'] = penalty.detach()
        if self.r1_weight and iteration % self.r1_every == 0:
            logs['l_d_r1'] = self.penalize(real, critic)
        return logs

    @torch.no_grad()
    def _clip(self, step: Step) -> None:
        """Clamps the weights of the discriminators just updated (Arjovsky et al. 2017)."""
        if self.weight_clip:
            for phase in step.pairs:
                for p in self.net_d[phase].parameters():
                    p.clamp_(-self.weight_clip, self.weight_clip)
