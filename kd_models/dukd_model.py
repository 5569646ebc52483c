"""DUKD: a student taught on upcycled inputs too, with consistent labels under augmentation (arXiv 2309.14162).

    L = |S(x) - y|_1 + w_kd |S(x) - T(x)|_1 + w_dukd |F^-1(S(F(x'))) - T(x')|_1

with the upcycled x' and augmentation F of `upcycling.py`. Everything the method needs is in the base; this class knows
its defaults.
"""
from __future__ import annotations

from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY

from kd_models.distillation_model import DistillationModel


@MODEL_REGISTRY.register()
class DUKDModel(DistillationModel):
    """Pixel loss, and response distillation on the given and the upcycled inputs, where the YAML has none of its own.

    `response_kd_opt` counts on both inputs with one weight.
    """

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """The two losses, and `upcycling` with its defaults."""
        train_opt.setdefault('pixel_opt', {'type': 'L1Loss', 'loss_weight': 1.0})
        train_opt.setdefault('response_kd_opt', {'type': 'L1Loss', 'loss_weight': 1.0, 'inputs': 'both'})
        train_opt.setdefault('upcycling', {})
