"""Models that make images from noise instead of LR images."""
from __future__ import annotations

from typing import Any

from kd_arch.denoising_phase_arch import PhaseDecoder
from kd_arch.diffusion_arch import OF_PIPELINE, OF_SUPER_RESOLUTION, DiffusionUNet
from kd_models.distillation_model import DistillationModel
from kd_utils.options import OptionError
from kd_utils.schema import arch_of, check_arguments, get, require


def complete_unconditional(opt: dict[str, Any], num_style_feat: int) -> None:
    """What the options of an unconditional model take for granted; its latents have `num_style_feat` numbers.

    Raises:
        OptionError: They ask for what needs LR images.
    """
    opt.setdefault('scale', 1)  # of no meaning here
    if get(opt, 'val.self_ensemble'):
        raise OptionError('`val.self_ensemble` turns LR images, and there are none. Take it out.')
    datasets = opt.get('datasets')
    for dataset in datasets.values() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict) and dataset.get('type') == 'SampleDataset':
            dataset.setdefault('num_style_feat', num_style_feat)


class OptionallyUnconditionalModel(DistillationModel):
    """Where `network_g` has a `size`, its input is noise x_T, (N, 3 * size * size), from a `SampleDataset`."""

    @classmethod
    def complete(cls, opt: dict[str, Any]) -> list[str]:
        """Also the length of the latents."""
        check_arguments(opt, 'network_g', 'teacher.network_g')
        for key in ('network_g', 'teacher.network_g'):
            _refuse_unread(opt, key)
        size = get(opt, 'network_g.size')
        if size is None and (arch_of(opt, 'network_g') is PhaseDecoder or get(opt, 'network_g.pretrained')):
            raise OptionError('`network_g.size` is missing. Write the side of its images.')
        if size is not None:
            require('network_g.size', 'size', size)
            if opt.get('scale', 1) != 1:
                raise OptionError('`scale` is of super-resolution, and `network_g.size` of a model without LR images. '
                                  'Take one of the two out.')
            complete_unconditional(opt, 3 * size**2)
        return super().complete(opt)

    @classmethod
    def latent_size(cls, opt: dict[str, Any]) -> int | None:
        """3 * size * size with a `size`."""
        size = get(opt, 'network_g.size')
        return 3 * size**2 if isinstance(size, int) else None

    @property
    def size(self) -> int | None:
        """Side of the images; None in super-resolution."""
        return self.opt['network_g'].get('size')

    def gt_size(self) -> tuple[int, ...]:
        """Shape of a training batch of one, (1, 3, size, size)."""
        return (1, 3, self.size, self.size) if self.size else super().gt_size()

    def lq_size(self) -> tuple[int, ...]:
        """Shape of the input of one, (1, 3 * size * size)."""
        return (1, 3 * self.size**2) if self.size else super().lq_size()

    def feed_data(self, data: dict[str, Any]) -> None:
        """As the base's; unconditional batches have `gt` in [0, 1] or the noise `lq`, not both."""
        if self.size and 'gt' in data and data['gt'].shape[1:] != self.gt_size()[1:]:
            size = 'x'.join(map(str, data['gt'].shape[2:]))
            raise OptionError(f'The images of datasets.train are {size}, and `network_g.size` is {self.size}. '
                              'Prepare images of that size, or change it.')
        super().feed_data({**data, 'lq': data['gt']} if self.size and 'lq' not in data else data)


def _refuse_unread(opt: dict[str, Any], key: str) -> None:
    """What a diffusion network without LR images leaves unread."""
    network = get(opt, key)
    if arch_of(opt, key) is not DiffusionUNet:
        return
    source = next((name for name in ('pretrained', 'size') if network.get(name)), None)
    unread = {'pretrained': OF_SUPER_RESOLUTION + OF_PIPELINE, 'size': OF_SUPER_RESOLUTION, None: ()}[source]
    for name in unread:
        if network.get(name):
            raise OptionError(f'`{key}.{name}` is not read where there is `{key}.{source}`. Take one of the two out.')
