"""How a family of generators is called on LR images: one small object, used in training, validation and test alike."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kd_data.face_scale_dataset import FaceScaleDataset
from kd_models.degradation import USM_KEYS
from kd_utils.options import OptionError
from kd_utils.resize import pad_to_multiple

FACES = FaceScaleDataset.__name__
# Losses that are told the range of their images by `range_norm`, and losses for images in [0, 1] alone.
RANGED = ('PerceptualLoss', 'VGGPerceptualLoss')
UNIT = ('LPIPSLoss', 'MSSSIMLoss')
# What is given the images in the range of the training.
AS_TRAINED = ('pixel', 'ldl', 'response_kd')


class Adapter:
    """Calls a generator on LR images, (N, C, H, W), and returns SR images, (N, C, sH, sW).

    Attributes:
        value_range: The lowest and highest value of the images in training, LR, GT and SR alike. Without inputs, in
            validation, in a test and where networks are measured, images are in [0, 1] for every family.
    """
    value_range: tuple[float, float] = (0, 1)

    def __init__(self, network_opt: dict[str, Any]) -> None:
        self.network_opt = network_opt

    def __call__(self, net: nn.Module, lq: Tensor, **inputs: Any) -> Tensor:
        output = net(lq, **inputs)
        image = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(image, Tensor):
            raise OptionError(f'{type(net).__name__} returns a {type(image).__name__}, not an image. '
                              'Let its forward return the image, or a tuple that begins with it.')
        return image

    def inputs(self, net: nn.Module, lq: Tensor, batch: dict[str, Any]) -> dict[str, Any]:
        """What else the networks are called with in one iteration: the same for student, EMA and teacher.

        Args:
            net: The student.
            lq: LR images of the iteration, (N, C, H, W).
            batch: As the dataset gives it.
        """
        return {}

    def unit(self, images: Tensor) -> Tensor:
        """Images of the training, in [0, 1]."""
        low, high = self.value_range
        return images if (low, high) == (0, 1) else (images - low) / (high - low)

    def check_training(self, net: nn.Module, opt: dict[str, Any], owner: str) -> None:
        """Refuses options with which a network of this family cannot be trained.

        Args:
            net: The student or the teacher.
            opt: All options.
            owner: The YAML key of the network.
        """
        kind = _train_set(opt).get('type')
        if kind == FACES:
            raise OptionError(f'`datasets.train.type`: {FACES} gives enlarged faces in [-1, 1], for which `{owner}`, '
                              f'{type(net).__name__}, is not made. Use PairedImageDataset, or GCFSR.')

    def how_to_fit(self, scale: int) -> str:
        """What to change where a network turns an LR crop into images of another size than the GT crop."""
        return f'Set its scale to {scale}, or name a network of that scale.'


class WindowAdapter(Adapter):
    """Pads to a multiple of the attention window and crops back, as BasicSR's SwinIRModel does in its tests."""

    def __call__(self, net: nn.Module, lq: Tensor, **inputs: Any) -> Tensor:
        height, width = lq.shape[-2:]
        padded = pad_to_multiple(lq, self.network_opt['window_size'])
        output = super().__call__(net, padded, **inputs)
        scale = output.shape[-1] // padded.shape[-1]
        return output[..., :height * scale, :width * scale]


class StyleGAN2Adapter(Adapter):
    """Latents (N, num_style_feat) to images (N, 3, out_size, out_size) in [0, 1], with the network's stored noise."""

    def __call__(self, net: nn.Module, lq: Tensor, **inputs: Any) -> Tensor:
        return net([lq], randomize_noise=False)[0] / 2 + 0.5


class GCFSRAdapter(Adapter):
    """Trains on enlarged faces in [-1, 1] with their scale; validates on bare LR faces, whose scale GCFSR finds.

    The inputs are the `scale` of each face, (N, 1), from which each network makes its own condition, and the noise of
    the iteration: student, EMA and teacher get the same, without which their maps would differ by chance.
    """
    value_range = (-1, 1)

    def __call__(self, net: Any, lq: Tensor, **inputs: Any) -> Tensor:
        if inputs:
            inputs['in_size'] = inputs.pop('scale') / net.cond_norm
        return super().__call__(net, lq, **inputs)

    def inputs(self, net: Any, lq: Tensor, batch: dict[str, Any]) -> dict[str, Any]:
        """`scale` (N, 1) from the batch, and `noise`, drawn here."""
        if 'scale' not in batch:
            raise OptionError(f'The training set gives no `scale` of each face, (N, 1). Use {FACES}, or add it there.')
        return {'scale': batch['scale'].to(lq, non_blocking=True), 'noise': net.make_noise(lq.shape[0])}

    def check_training(self, net: Any, opt: dict[str, Any], owner: str) -> None:
        """All scales must be in the condition's range, and what takes images in [0, 1] must know that they are not."""
        scales = _train_set(opt).get('downsample_list')
        if not scales:
            raise OptionError(f'`{owner}` is a {type(net).__name__}, which learns from enlarged faces of known scale. '
                              f'Set `datasets.train.type: {FACES}`.')
        if max(scales) > net.cond_norm and not net.blind:
            raise OptionError(f'`datasets.train.downsample_list` has the scale {max(scales)}, and `{owner}` knows the '
                              f'scales 1 to {net.cond_norm:g}. Take out what is larger, or set its `cond_norm` to the '
                              'largest scale that it is trained with.')
        lq_size = net.out_size // opt['scale']
        try:
            net.infer_scale(self.network_opt, lq_size, lq_size)
        except OptionError as error:
            raise OptionError(f'`scale: {opt["scale"]}` does not fit `{owner}`. {error}') from None
        _check_ranges(opt)

    def how_to_fit(self, scale: int) -> str:
        """As the base's."""
        return 'Set its `out_size` and `datasets.train.gt_size` to one number.'


def _check_ranges(opt: dict[str, Any]) -> None:
    key = next(filter(opt.get, USM_KEYS.values()), None)
    if key:
        raise OptionError(f'`{key}` sharpens images in [0, 1], and GCFSR is trained in [-1, 1]. Take it out.')
    losses = {name: opt['train'].get(f'{name}_opt') or {} for name in ('perceptual', 'self_distill', *AS_TRAINED)}
    perceptual = losses['perceptual']
    if perceptual and perceptual.get('type', RANGED[0]) in RANGED and not perceptual.get('range_norm'):
        raise OptionError('`train.perceptual_opt` takes images in [0, 1], and GCFSR is trained in [-1, 1]. '
                          'Add `range_norm: true`.')
    if losses['self_distill'].get('range_norm'):
        raise OptionError('`train.self_distill_opt` is given images in [0, 1], those of GCFSR too. '
                          'Take its `range_norm` out.')
    for name in AS_TRAINED:
        if (kind := losses[name].get('type')) in UNIT:
            raise OptionError(f'`train.{name}_opt`: {kind} takes images in [0, 1], and GCFSR is trained in [-1, 1]. '
                              'Use L1Loss, or `perceptual_opt` with `range_norm: true`.')


def _train_set(opt: dict[str, Any]) -> dict[str, Any]:
    return opt['datasets'].get('train') or {}


def build_adapter(network_opt: dict[str, Any]) -> Adapter:
    """The adapter for a `network_g` section: by its type, or windowed where it has a `window_size` (SwinIR, HAT)."""
    if network_opt['type'] in ('GCFSR', 'GCFSR_blind'):
        return GCFSRAdapter(network_opt)
    if network_opt['type'] == 'StyleGAN2Generator':
        return StyleGAN2Adapter(network_opt)
    if isinstance(network_opt.get('window_size'), int):
        return WindowAdapter(network_opt)
    return Adapter(network_opt)
