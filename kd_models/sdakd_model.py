"""SDAKD: a small generator trained against a discriminator of its own size, in three stages (arXiv 2510.03870).

    supervised    L_sup = w_pix |G_S(x) - y|_1 + w_per L_percep
    distill       L_sup + w_G L_FM(G);              D_S warms up by L_D + w_D L_FM(D), without gradient into G_S
    adversarial   L_sup + w_G L_FM(G) + w_gan L_G;  D_S by L_D + w_D L_FM(D)

with student generator G_S and discriminator D_S, and L_FM the feature-map distillation of `MLPFeatureLoss`.
Re-implemented from the abstract and secondary summaries: the paper's layers, weights and iterations are not known
(docs/methods/sdakd.md).
"""
from __future__ import annotations

from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY

from kd_models.distillation_model import DistillationModel
from kd_models.terms import TERMS
from kd_utils.schema import OptionError, get, require

ADVERSARIAL = ('gan', 'ldl')  # ldl weighs the artifacts of a GAN


@MODEL_REGISTRY.register()
class SDAKDModel(DistillationModel):
    """Trains generator and discriminator in the three stages, distilling the feature maps of both in the last two.

    The stages are `train.stages`; without them, these. Without `teacher.network_d` the discriminator is
    trained but not distilled.
    """

    @classmethod
    def complete_training(cls, opt: dict[str, Any], train_opt: dict[str, Any]) -> None:
        """Feature distillation of the generator, and of the discriminator where there are two, and the three stages."""
        train_opt.setdefault('feature_kd_opt', {'type': 'MLPFeatureLoss', 'loss_weight': 1.0})
        if opt.get('network_d') and get(opt, 'teacher.network_d'):
            train_opt.setdefault('feature_kd_d_opt', {'type': 'MLPFeatureLoss', 'loss_weight': 1.0})
        if not train_opt.get('stages') and train_opt.get('total_iter') is not None:
            require('train.total_iter', 'iters', train_opt['total_iter'])
            for key, section in (('network_d', opt), ('gan_opt', train_opt)):
                if not section.get(key):
                    raise OptionError('SDAKDModel trains a student discriminator in its last two stages, and '
                                      f'`{key}` is missing. Add it, or write `train.stages` of your own.')
            train_opt['stages'] = three_stages(train_opt)


def three_stages(train_opt: dict[str, Any]) -> list[dict[str, Any]]:
    """An eighth of the iterations each for the first two stages, the rest for the third.

    Args:
        train_opt: The `train` section; the losses that it configures are on from the stage that they belong to.
    """
    configured = [name for name, term in TERMS.items()
                  if term.side == 'generator' and train_opt.get(f'{name}_opt') is not None]
    distilled = [name for name in configured if name not in ADVERSARIAL]
    supervised = [name for name in distilled if 'teacher' not in TERMS[name].reads]
    total = int(train_opt['total_iter'])
    if total < 3:
        raise OptionError(f'`train.total_iter` is {total}, and SDAKDModel has three stages. Write 3 or more.')
    warm_up = max(total // 8, 1)
    return [{'name': 'supervised', 'iters': warm_up, 'losses': supervised},
            {'name': 'distill', 'iters': warm_up, 'losses': distilled, 'train_d': True, 'optimizer': 'fresh'},
            {'name': 'adversarial', 'iters': total - 2 * warm_up, 'losses': configured, 'optimizer': 'fresh'}]
