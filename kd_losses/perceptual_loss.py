"""A perceptual loss whose VGG19 comes from a file, for machines that cannot download."""
from __future__ import annotations

from collections import OrderedDict

import torch
from basicsr.archs.vgg_arch import NAMES
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torchvision.models import vgg19

from kd_utils import checkpoint
from kd_utils.options import OptionError, nearest
from kd_utils.precision import full_precision

_LAYERS = NAMES['vgg19']
_VGG_PAGE = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'


@LOSS_REGISTRY.register()
class VGGPerceptualLoss(PerceptualLoss):
    """BasicSR's PerceptualLoss with the VGG19 weights read from `weights`.

    L = perceptual_weight * sum_l w_l ||phi_l(x) - phi_l(y)||_1 (Johnson et al. 2016), and the same on Gram matrices
    for `style_weight`. Two kinds of files are read: torchvision's `vgg19-dcbb9e9d.pth`, and the normalised VGG19 of
    style transfer (layers named `conv1_1` ..., its first layer `conv0` makes the input's colours).

    Args:
        weights: The file.
        layer_weights: Layer name such as `conv3_1` or `relu2_2` -> weight.
        use_input_norm: Normalise with ImageNet's mean and std; not for files with a `conv0`, which do that themselves.
        range_norm: Whether the images are in [-1, 1] instead of [0, 1].
        perceptual_weight: Weight of the loss.
        style_weight: Weight of the style loss; 0 leaves it out.
        criterion: `l1`, `l2` or `fro`.

    Raises:
        OptionError: An unknown layer or criterion, or a file that does not reach the deepest layer.
        CheckpointError: The file is missing or damaged.
    """

    def __init__(self, *, weights: str, layer_weights: dict[str, float], use_input_norm: bool = True,
                 range_norm: bool = False, perceptual_weight: float = 1.0, style_weight: float = 0.,
                 criterion: str = 'l1') -> None:
        nn.Module.__init__(self)  # the parent's constructor would download
        criteria = {'l1': nn.L1Loss(), 'l2': nn.MSELoss(), 'fro': None}
        if criterion not in criteria:
            raise OptionError(f'VGGPerceptualLoss: criterion is `{criterion}`. Write one of: {", ".join(criteria)}.')
        self.perceptual_weight = perceptual_weight
        self.style_weight = style_weight
        self.layer_weights = layer_weights
        self.criterion_type = criterion
        self.criterion = criteria[criterion]
        self.vgg = VGG19Features(weights, list(layer_weights), use_input_norm, range_norm)

    def _gram_mat(self, x: Tensor) -> Tensor:
        with full_precision(x.device):  # sums over all pixels
            return super()._gram_mat(x.float())


class VGG19Features(nn.Module):
    """VGG19's feature maps by layer name, frozen.

    Args:
        weights: See `VGGPerceptualLoss`.
        layers: Names of the maps wanted.
        use_input_norm: ImageNet normalisation of the input.
        range_norm: Whether the input is in [-1, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str, layers: list[str], use_input_norm: bool, range_norm: bool) -> None:
        super().__init__()
        for layer in layers:
            if layer not in _LAYERS:
                raise OptionError(f'VGG19 has no layer `{layer}`.{nearest(layer, _LAYERS)} '
                                  f'Write names such as conv3_4 or relu2_2 in `layer_weights`.')
        self.wanted = set(layers)
        self.range_norm = range_norm
        state = checkpoint.network_state(weights, key=None)
        deepest = max(_LAYERS.index(layer) for layer in layers)
        build = _normalised if 'conv0.weight' in state else _torchvision
        try:
            self.net = build(state, deepest)
        except (KeyError, RuntimeError):
            raise OptionError(f'{weights} does not hold VGG19 up to {_LAYERS[deepest]}. Name shallower layers in '
                              f'`layer_weights`, or use {_VGG_PAGE}') from None
        self.requires_grad_(False).eval()
        normalise = use_input_norm and 'conv0.weight' not in state
        mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if normalise else ((0.,) * 3, (1.,) * 3)
        self.register_buffer('mean', torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer('std', torch.tensor(std).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> VGG19Features:
        """Stays in eval."""
        return super().train(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps of the wanted layers for images (N, 3, H, W), each (N, C, h, w)."""
        if self.range_norm:
            x = (x + 1) / 2
        x = (x - self.mean) / self.std
        maps = {}
        for name, layer in self.net.named_children():
            x = layer(x)
            if name in self.wanted:
                maps[name] = x
        return maps


def _torchvision(state: dict[str, Tensor], deepest: int) -> nn.Sequential:
    """torchvision's own layers, numbered `features.N`, without in-place activations."""
    with torch.device('meta'):  # 144 million random numbers less
        features = vgg19(weights=None).features[:deepest + 1]
    features.load_state_dict({name.removeprefix('features.'): value for name, value in state.items()
                              if name.startswith('features.') and int(name.split('.')[1]) <= deepest}, assign=True)
    layers = [nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in features]
    return nn.Sequential(OrderedDict(zip(_LAYERS, layers, strict=False)))


def _normalised(state: dict[str, Tensor], deepest: int) -> nn.Sequential:
    """The normalised VGG19: reflection padding, pooling that rounds up, and `conv0` in front."""
    net: OrderedDict[str, nn.Module] = OrderedDict()
    for name in ['conv0', *_LAYERS[:deepest + 1]]:
        if name.startswith('conv'):
            net[name] = _conv(state[f'{name}.weight'], state[f'{name}.bias'])
        else:
            net[name] = nn.ReLU() if name.startswith('relu') else nn.MaxPool2d(2, ceil_mode=True)
    return nn.Sequential(net)


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    c_out, c_in, size, _ = weight.shape
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, padding_mode='reflect' if size > 1 else 'zeros')
    conv.load_state_dict({'weight': weight, 'bias': bias})
    return conv
