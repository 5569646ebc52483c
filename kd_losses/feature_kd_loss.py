"""Feature-map distillation through channel-wise MLPs."""
from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from kd_utils.options import OptionError


@LOSS_REGISTRY.register()
class MLPFeatureLoss(nn.Module):
    """Mean over layers of MSE(MLP_l(F_l^S), sg F_l^T), with MLP_l = Conv1x1(C_h -> C_t) . ReLU . Conv1x1(C_s -> C_h).

    The MLP lifts the student's channels to the teacher's, so that no spatial transform is needed. It is trained with
    the student and dropped afterwards. Source: Liu, Wang and Chu, "A Simple and Generic Framework for Feature
    Distillation via Channel-wise Transformation" (ICCV Workshops 2023); SDAKD (arXiv 2510.03870) adapts such an MLP to
    channel-reduced students.

    Args:
        layers: Teacher layer -> student layer, module paths.
        channels: Teacher layer -> (C_s, C_t). Supplied by the model, which knows the networks.
        hidden: C_h: `teacher` (C_t), `student` (C_s) or a number.
        loss_weight: Weight of the loss.

    Raises:
        OptionError: `hidden` is none of these.
    """
    supplied = ('layers', 'channels')
    options = ('layers',)

    def __init__(self, *, layers: dict[str, str], channels: dict[str, tuple[int, int]],
                 hidden: str | int = 'teacher', loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.layers = dict(layers)
        self.adaptors = nn.ModuleDict({_key(layer): _mlp(*channels[layer], hidden) for layer in layers})

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """The weighted loss.

        Args:
            student: The student's maps by its layer, each (N, C_s, H, W).
            teacher: The teacher's maps by its layer, each (N, C_t, H, W); no gradient reaches them.

        Returns:
            Tensor: A scalar.
        """
        distances = [F.mse_loss(self.adaptors[_key(of_teacher)](student[of_student]), teacher[of_teacher].detach())
                     for of_teacher, of_student in self.layers.items()]
        return self.loss_weight * torch.stack(distances).mean()


def _key(layer: str) -> str:
    return layer.replace('.', '_')  # a ModuleDict takes no dots


def _mlp(c_student: int, c_teacher: int, hidden: str | int) -> nn.Sequential:
    named = {'teacher': c_teacher, 'student': c_student}
    c_hidden = named.get(hidden, hidden) if isinstance(hidden, str) else hidden
    if not isinstance(c_hidden, int) or isinstance(c_hidden, bool) or c_hidden < 1:
        raise OptionError(f'MLPFeatureLoss: hidden is `{hidden}`. Write `teacher`, `student` or a number of channels.')
    return nn.Sequential(nn.Conv2d(c_student, c_hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(c_hidden, c_teacher, 1))
