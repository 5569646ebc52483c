"""Feature-map distillation through channel-wise MLPs."""
from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from kd_losses.layer_pairs import LayerPairsLoss
from kd_utils.options import OptionError


@LOSS_REGISTRY.register()
class MLPFeatureLoss(LayerPairsLoss):
    """Mean over layers of MSE(M_l(N(F_l^S)), N(sg F_l^T)), with M_l = Conv1x1(C_h -> C_t) . ReLU . Conv1x1(C_s -> C_h).

    The MLP M lifts the student's channels to the teacher's, so that no spatial transform is needed. It is trained with
    the student and dropped afterwards. Source: Liu, Wang and Chu, "A Simple and Generic Framework for Feature
    Distillation via Channel-wise Transformation" (ICCV Workshops 2023); SDAKD (arXiv 2510.03870) adapts such an MLP to
    channel-reduced students.

    N brings each channel to mean 0 and deviation 1 by running statistics, which are part of the training's state. Maps
    of teacher and student may differ in energy by a factor of 100; without N the adaptors spend the run on that factor
    (docs/methods/sdakd.md).

    Args:
        layers: Teacher layer -> student layer, module paths.
        channels: Teacher layer -> (C_s, C_t). Supplied by the model, which knows the networks.
        hidden: C_h: `teacher` (C_t), `student` (C_s) or a number.
        normalize: `channel`, or `none` for N(F) = F.
        loss_weight: Weight of the loss.

    Raises:
        OptionError: `hidden` is none of these.
    """
    supplied = ('layers', 'channels')
    argument_kinds = {'normalize': 'channel|none'}

    def __init__(self, *, layers: dict[str, str], channels: dict[str, tuple[int, int]],
                 hidden: str | int = 'teacher', normalize: str = 'channel', loss_weight: float = 1.0) -> None:
        super().__init__(layers=layers, loss_weight=loss_weight)
        self.adaptors = nn.ModuleDict({_key(layer): _mlp(*channels[layer], hidden) for layer in layers})
        sides = channels if normalize == 'channel' else {}
        self.of_student = nn.ModuleDict({_key(layer): Standardized(c_s) for layer, (c_s, _) in sides.items()})
        self.of_teacher = nn.ModuleDict({_key(layer): Standardized(c_t) for layer, (_, c_t) in sides.items()})
        self._explained: dict[str, Tensor] = {}

    def distance(self, layer: str, student: Tensor, teacher: Tensor) -> Tensor:
        """The MSE of one pair."""
        key = _key(layer)
        if key in self.of_student:
            student, teacher = self.of_student[key](student), self.of_teacher[key](teacher)
        distance = F.mse_loss(self.adaptors[key](student), teacher)
        self._explained[layer] = 1 - distance.detach() / _variance(teacher)
        return distance

    @property
    def explained(self) -> Tensor:
        """R^2 of the last call, the share of the teacher's variance that the adaptors reproduce, the mean over layers.

        1 at best, negative where the teacher's mean would do better. A scalar without graph.
        """
        return torch.stack(list(self._explained.values())).mean()


class Standardized(nn.Module):
    """Maps with mean 0 and deviation 1 in each channel, by running statistics, through which no gradient flows.

    The statistics are the plain mean over the first batches, then an exponential one with `momentum`. They are updated
    in train mode.

    Args:
        channels: C.
        momentum: Weight of a new batch in the long run.
    """
    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, channels: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer('mean', torch.zeros(channels))
        self.register_buffer('square', torch.ones(channels))
        self.register_buffer('batches', torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        """Standardized maps, (N, C, H, W) as they came."""
        if self.training:
            self._update(maps.detach().float())
        deviation = (self.square - self.mean.square()).clamp_min(1e-12).sqrt()
        return (maps - self.mean.view(1, -1, 1, 1)) / (deviation.view(1, -1, 1, 1) + 1e-6)

    @torch.no_grad()
    def _update(self, maps: Tensor) -> None:
        self.batches += 1
        share = (1 / self.batches).clamp_min(self.momentum)
        self.mean.lerp_(maps.mean((0, 2, 3)), share)
        self.square.lerp_(maps.square().mean((0, 2, 3)), share)

    def reset_parameters(self) -> None:
        """Forgets the statistics."""
        self.mean.zero_()
        self.square.fill_(1)
        self.batches.zero_()


def _variance(target: Tensor) -> Tensor:
    """Over all places, the mean over the channels; at least a little, for channels that are constant."""
    return target.float().var((0, 2, 3), correction=0).mean().clamp_min(1e-12)


def _key(layer: str) -> str:
    return layer.replace('.', '_')  # a ModuleDict takes no dots


def _mlp(c_student: int, c_teacher: int, hidden: str | int) -> nn.Sequential:
    named = {'teacher': c_teacher, 'student': c_student}
    c_hidden = named.get(hidden, hidden) if isinstance(hidden, str) else hidden
    if not isinstance(c_hidden, int) or isinstance(c_hidden, bool) or c_hidden < 1:
        raise OptionError(f'MLPFeatureLoss: hidden is `{hidden}`. Write `teacher`, `student` or a number of channels.')
    return nn.Sequential(nn.Conv2d(c_student, c_hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(c_hidden, c_teacher, 1))
