"""Which places of a feature map are alike: distillation of spatial affinities."""
from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from kd_losses.layer_pairs import LayerPairsLoss
from kd_utils.precision import full_precision
from kd_utils.resize import as_square


@LOSS_REGISTRY.register()
class SpatialAffinityLoss(LayerPairsLoss):
    """Mean over layers of |A(F_l^S) - A(sg F_l^T)|_1 / (H W)^2, with A(F) = F~^T F~ and F~ = F / |F|_2 per place.

    F~ is (C, H W): each column is the feature vector of one place, of length 1, so that A, (H W, H W), has the cosines
    of all pairs of places. Channels do not appear in it, so that maps of any width are compared without adaptors, and
    nothing is trained. Source: He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image
    Super-Resolution" (ICIP 2020).

    Args:
        layers: Teacher layer -> student layer, module paths. Supplied by the model.
        loss_weight: Weight of the loss.
        largest_side: Maps with a longer side are averaged down to it, both networks' alike: A grows with the fourth
            power of the side, to 64 MiB per image at 64x64. By default 48, the side of the paper's LR crops.
    """

    def __init__(self, *, layers: dict[str, str], loss_weight: float = 1.0, largest_side: int = 48) -> None:
        super().__init__(layers=layers, loss_weight=loss_weight)
        self.largest_side = largest_side

    def distance(self, layer: str, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean difference of the two affinities."""
        return F.l1_loss(self._affinity(student), self._affinity(teacher))

    def _affinity(self, maps: Tensor) -> Tensor:
        """A, (N, H W, H W), of maps (N, C, H, W), or tokens (N, C, L, 1) of a square."""
        maps = as_square(maps)
        height, width = (min(side, self.largest_side) for side in maps.shape[-2:])
        if (height, width) != maps.shape[-2:]:
            maps = F.adaptive_avg_pool2d(maps, (height, width))
        with full_precision(maps.device):
            places = F.normalize(maps.float().flatten(2), dim=1)  # (N, C, H W)
            return places.transpose(1, 2) @ places
