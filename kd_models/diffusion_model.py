"""The diffusion model that Adv-KD distils: DDPM training, DDIM sampling (Ho et al. 2020; Song et al. 2021).

    L = | f(x_t, c, t) - target |_2^2,   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,   t ~ U{0 .. T-1}

    target   eps    or   v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0    or   x_0

with x_0 the residual HR - bicubic, or the image, and c the enlarged LR image (`DiffusionUNet`). v is the default
(Salimans and Ho, ICLR 2022): from eps the error of x_0 is amplified by sqrt((1 - abar) / abar), 157 at t = 999, where a
sampler of ten steps begins.
"""
from __future__ import annotations

from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY

from kd_arch.diffusion_arch import DiffusionUNet
from kd_models.step import Step
from kd_models.terms import DiffusionTerm
from kd_models.training import Training
from kd_models.unconditional import OptionallyUnconditionalModel
from kd_utils.options import OptionError
from kd_utils.schema import is_another

UNREAD = ('gan_mode', 'net_d_iters', 'net_d_init_iters', 'update_order', 'optim_d')


def predict(training: Training, step: Step, name: str) -> None:
    """The U-Net at one timestep per image, drawn anew in each iteration."""
    net, gt = training.net_g, step.target('gt')
    condition = net.condition(step.lq)
    noise = torch.randn_like(gt)
    t = torch.randint(net.timesteps, (len(gt), ), device=gt.device)
    x, wanted = net.diffuse(net.encode(gt, condition).clamp(-1, 1), noise, t)
    step.output = net.predict(x, t, condition)
    step.pairs = {0: (step.output, wanted)}


@MODEL_REGISTRY.register()
class DiffusionSRModel(OptionallyUnconditionalModel):
    """Trains a `DiffusionUNet`; validation and tests sample with the moving average of its weights.

    One training iteration evaluates the U-Net once; one validation image takes `network_g.steps` evaluations.
    """
    known_terms = {'diffusion': DiffusionTerm}
    forwards = {'student': predict}

    @classmethod
    def complete(cls, opt: dict[str, Any]) -> list[str]:
        """Also a progress bar, since sampling takes its time."""
        if isinstance(opt.get('val'), dict):
            opt['val'].setdefault('pbar', True)
        return super().complete(opt)

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """The denoising loss and the moving average."""
        cls.refuse_unread(train_opt, ('diffusion', ), UNREAD)
        if is_another(opt, 'network_g', DiffusionUNet):
            raise OptionError(f'`network_g.type`: {opt["network_g"]["type"]} is no diffusion model. Use DiffusionUNet.')
        if opt.get('network_d'):
            raise OptionError(f'`network_d` is not read by {cls.__name__}. Take it out.')
        train_opt.setdefault('diffusion_opt', {})
        train_opt.setdefault('ema_decay', 0.9999)
