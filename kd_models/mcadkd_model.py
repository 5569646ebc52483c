"""MCAD-KD: multi-scale contrastive-adversarial distillation (ICCV Workshops 2025).

    L_G = 3.0 |s - y|_1 + 0.5 |s - t|_1 + 0.05 (0.3 L_image + 0.7 L_patch) + 0.01 L_adv(D(s))

with student s, teacher t, ground truth y. D is a U-Net with spectral normalisation, trained on y against s in every
iteration, before the generator. Everything the method needs is in the base; this class knows its defaults.
"""
from __future__ import annotations

from copy import deepcopy
from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY

from kd_models.distillation_model import DistillationModel

LOSSES: dict[str, dict[str, Any]] = {
    'pixel_opt': {'type': 'L1Loss', 'loss_weight': 3.0},
    'response_kd_opt': {'type': 'L1Loss', 'loss_weight': 0.5},
    'contrastive_opt': {'type': 'MultiScaleContrastiveLoss'},
    'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.01},
}
DISCRIMINATOR = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}


@MODEL_REGISTRY.register()
class MCADKDModel(DistillationModel):
    """Trains a student by pixel, response, contrastive and adversarial losses, with the paper's weights by default.

    A part is left out by writing `~`, as in `contrastive_opt: ~`; without `gan_opt` there is no discriminator.
    """

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """The four losses, the discriminator and its optimizer (that of the generator) where the file has none."""
        for name, option in LOSSES.items():
            train_opt.setdefault(name, deepcopy(option))
        if train_opt['gan_opt'] is not None:
            train_opt.setdefault('update_order', 'd_first')
            opt.setdefault('network_d', deepcopy(DISCRIMINATOR))
            train_opt.setdefault('optim_d', deepcopy(train_opt.get('optim_g')))
