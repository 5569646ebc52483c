"""SD-GAN in the paper's own setting: unconditional StyleGAN2 with self-distillation (arXiv 2605.08577).

    L_G = softplus(-D(G(z))) + w d(A(G(z; n)), A(sg[G_ema(z; n)])),    path length every 4 iterations
    L_D = softplus(-D(y)) + softplus(D(G(z'))),                        R1 every 16 iterations

One iteration is that of BasicSR's StyleGAN2Model: D on fresh fakes, then G on fresh latents, then the EMA. The EMA gets
the generator's latents z, style mixing and noise n.
"""
from __future__ import annotations

import random
from collections import OrderedDict
from os import path as osp
from typing import Any

import cv2
import torch
from basicsr.losses.gan_loss import g_path_regularize
from basicsr.utils import tensor2img
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from kd_models.distillation_model import DistillationModel
from kd_models.sdstylegan2_options import GRID, IDLE, UNREAD, complete_data, complete_recipe
from kd_models.stages import Stage
from kd_models.step import Step
from kd_models.unconditional import complete_unconditional
from kd_models.update import losses_on
from kd_models.validation import write_image
from kd_utils.options import OptionError
from kd_utils.rng import RandomState
from kd_utils.schema import get


@MODEL_REGISTRY.register()
class SDStyleGAN2Model(DistillationModel):
    """BasicSR's StyleGAN2Model with self-distillation, on any device; images are in [-1, 1] while training.

    Validation and tests take their latents from a `SampleDataset` and add a grid of the first samples. At weight 0, or
    with `self_distill_opt: ~`, one iteration is StyleGAN2Model's bit for bit.
    """
    degrades = False
    option_keys = {'train.path_reg_weight': 'weight', 'train.net_g_reg_every': 'size',
                   'train.path_batch_shrink': 'size', 'train.mixing_prob': 'prob', 'val.num_val_samples': 'size'}

    @classmethod
    def complete(cls, opt: dict[str, Any]) -> list[str]:
        """BasicSR's values where the file has none, and a SampleDataset for a validation that has no data."""
        complete_data(opt)
        complete_unconditional(opt, cls.latent_size(opt))
        return super().complete(opt)

    @classmethod
    def latent_size(cls, opt: dict[str, Any]) -> int:
        """Always; 512 by default, as the generator has it."""
        return get(opt, 'network_g.num_style_feat') or 512

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """BasicSR's values for StyleGAN2."""
        asking = [key for key, idle in IDLE.items() if train_opt.get(key) != idle]
        cls.refuse_unread(train_opt, ('gan', 'self_distill'), (*UNREAD, *asking))
        complete_recipe(train_opt)

    def init_training_settings(self) -> None:
        """The base's, and the state of the path length regularisation."""
        super().init_training_settings()
        self.mean_path_length: Tensor | float = 0

    def lq_size(self) -> tuple[int, ...]:
        """Shape of one latent, (1, num_style_feat)."""
        return (1, self.latent_size(self.opt))

    def gt_size(self) -> tuple[int, ...]:
        """Shape of one image, (1, 3, out_size, out_size)."""
        size = self.opt['network_g']['out_size']
        return (1, 3, size, size)

    # ---------------------------------------------------------------- one iteration

    def feed_data(self, data: dict[str, Any]) -> None:
        """Takes real images `gt` (N, 3, H, W) in [-1, 1] in training, latents `lq` elsewhere."""
        for name in {'gt', 'lq'} & set(data):
            setattr(self, name, data[name].to(self.device, non_blocking=True))
        if 'gt' in data and self.gt.shape[1:] != self.gt_size()[1:]:
            size = 'x'.join(map(str, self.gt.shape[2:]))
            raise OptionError(f'The images of datasets.train are {size}, and `network_g.out_size` is '
                              f'{self.gt_size()[-1]}. Prepare images of that size, or change it.')

    def optimize_parameters(self, current_iter: int) -> None:
        """One update of the discriminator, one of the generator, and the EMA."""
        stage = self.enter_stage(current_iter)
        self.loss_tensors: OrderedDict[str, Tensor] = OrderedDict()
        with self.runtime.iteration():
            self._update_d(current_iter)
            self._update_g(current_iter, stage)
        self.runtime.guard.watch(self.loss_tensors)
        if self.ema_decay > 0:
            self.model_ema(self._ema_decay_at(current_iter))
        self.loss_tensors = OrderedDict((name, value.detach()) for name, value in self.loss_tensors.items())

    def _styles(self, batch: int) -> list[Tensor]:
        """One latent (N, num_style_feat) per image or, with `mixing_prob`, two to be mixed."""
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, self.net_g.num_style_feat, device=self.device)

        mixed = random.random() < self.opt['train']['mixing_prob']
        return list(draw(2, batch).unbind(0)) if mixed else [draw(batch)]

    def _update_d(self, iteration: int) -> None:
        net_d, optimizer = self.training.net_d, self.optimizers[1]
        cri_gan: Any = self.terms['gan'].criterion
        net_d.requires_grad_(True)
        optimizer.zero_grad()
        with torch.no_grad():
            images = self.net_g(self._styles(len(self.gt)))[0]
        fake = net_d(images)
        real = net_d(self.gt)
        loss = cri_gan(real, True, is_disc=True) + cri_gan(fake, False, is_disc=True)
        self.runtime.backward(loss)
        self.verdict = real.detach(), fake.detach()
        self.loss_tensors.update(l_d=loss, real_score=real.detach().mean(), fake_score=fake.detach().mean())
        if self.adversary.r1_weight and iteration % self.adversary.r1_every == 0:
            self.loss_tensors['l_d_r1'] = self.adversary.penalize(self.gt)
        self.runtime.step(optimizer)

    def _update_g(self, iteration: int, stage: Stage) -> None:
        net_d, optimizer = self.training.net_d, self.optimizers[0]
        net_d.requires_grad_(False)
        optimizer.zero_grad()
        styles = self._styles(len(self.gt))
        before = RandomState.now()
        fake = self.net_g(styles)[0]
        loss = self.terms['gan'].criterion(net_d(fake), True, is_disc=False)
        self.loss_tensors['l_g'] = loss
        if 'self_distill' in losses_on(self.terms, stage, iteration):
            loss = loss + self._self_distill(styles, fake, before, Step(iteration, stage, styles[0], {}))
        self.runtime.backward(loss)
        train_opt = self.opt['train']
        if train_opt['path_reg_weight'] and iteration % train_opt['net_g_reg_every'] == 0:
            self._regularize_path()
        self.runtime.step(optimizer)
        self.lq, self.output = styles[0], fake.detach() / 2 + 0.5

    def _self_distill(self, styles: list[Tensor], fake: Tensor, before: RandomState, step: Step) -> Tensor | float:
        """The loss against the EMA's images of the same latents, mixing and noise: those drawn from `before` on."""
        with torch.no_grad(), before.replay():
            ema = self.net_g_ema(styles)[0]
        step.output, step.ema = fake / 2 + 0.5, ema / 2 + 0.5
        logs = self.terms['self_distill'](step)
        self.loss_tensors.update(logs)
        return logs.get('l_g_self_distill', 0)

    def _regularize_path(self) -> None:
        """Adds the gradient of path length regularisation (Karras et al. 2020, section 3.2)."""
        train_opt = self.opt['train']
        styles = self._styles(max(1, len(self.gt) // train_opt['path_batch_shrink']))
        fake, latents = self.net_g(styles, return_latents=True)
        penalty, length, mean = g_path_regularize(fake, latents, self.mean_path_length)
        mean = self.runtime.mean(mean)
        self.mean_path_length = torch.where(mean.isfinite(), mean, self.mean_path_length)  # an update may be skipped
        loss = train_opt['path_reg_weight'] * train_opt['net_g_reg_every'] * penalty
        self.runtime.backward(loss)
        self.loss_tensors.update(l_g_path=loss, path_length=length)

    # ---------------------------------------------------------------- validation, checkpoints

    def test(self) -> None:
        """As the base's; the first samples are kept for the grid."""
        super().test()
        if len(self._grid) < GRID:
            self._grid.append(self.output.cpu())

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """The base's validation, and a picture of the first samples."""
        self._grid: list[Tensor] = []
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        if not self._grid:
            return  # interrupted
        grid = tensor2img(torch.cat(self._grid))
        name = dataloader.dataset.opt['name']
        write_image(grid, osp.join(self.opt['path']['visualization'], f'{name}_{current_iter}.png'))
        if tb_logger:
            tb_logger.add_image(name, cv2.cvtColor(grid, cv2.COLOR_BGR2RGB), current_iter, dataformats='HWC')

    def own_state(self) -> dict[str, Any]:
        """The running mean of the path length."""
        return {'mean_path_length': self.mean_path_length}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restores it."""
        mean = state.get('mean_path_length', 0)
        self.mean_path_length = mean.to(self.device) if torch.is_tensor(mean) else mean
