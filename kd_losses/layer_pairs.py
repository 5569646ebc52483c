"""What all losses between feature maps have in common: pairs of layers, a mean over them, a weight."""
from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerPairsLoss(nn.Module):
    """The mean over pairs of layers of a distance between a student's map and a teacher's, times a weight.

    Args:
        layers: Teacher layer -> student layer, module paths. Supplied by the model.
        loss_weight: Weight of the loss.
    """
    supplied: tuple[str, ...] = ('layers', )
    options = ('layers', )

    def __init__(self, *, layers: dict[str, str], loss_weight: float = 1.0) -> None:
        super().__init__()
        self.layers = dict(layers)
        self.loss_weight = loss_weight

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """The weighted loss.

        Args:
            student: The student's maps by its layer, each (N, C_s, H, W).
            teacher: The teacher's maps by its layer, each (N, C_t, H, W); no gradient reaches them.

        Returns:
            Tensor: A scalar.
        """
        distances = [self.distance(of_teacher, student[of_student], teacher[of_teacher].detach())
                     for of_teacher, of_student in self.layers.items()]
        return self.loss_weight * torch.stack(distances).mean()

    def distance(self, layer: str, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance of one pair, a scalar.

        Args:
            layer: The teacher's layer.
            student: The student's map, (N, C_s, H, W).
            teacher: The teacher's map, (N, C_t, H, W), without graph.
        """
        raise NotImplementedError
