"""SD-GAN: the EMA of the generator teaches the generator (arXiv 2605.08577).

    L_G = L_sup + w_gan L_adv(D(G(x))) + w d(A(G(x)), A(sg[G_ema(x)]))

with d a perceptual distance, LPIPS by default, A an optional random transform of both images, and sg the stop of the
gradient. L_D is unchanged. Everything the method needs is in the base; this class knows its default. The paper's
setting is unconditional, `SDStyleGAN2Model`; its use in super-resolution is ours (docs/methods/sdgan.md).
"""
from __future__ import annotations

from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY

from kd_models.distillation_model import DistillationModel


@MODEL_REGISTRY.register()
class SDGANModel(DistillationModel):
    """SRGANModel, ESRGANModel (`gan_mode: relativistic`) or RealESRGANModel with self-distillation.

    `self_distill_opt` is on even where the file does not have it; `~` switches it off, and the model is then the stock
    one.
    """

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """Self-distillation by LPIPS."""
        train_opt.setdefault('self_distill_opt', {})
