"""What is about to be trained: that the networks answer alike, and what each costs."""
from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kd_models.probe import Probe, probe
from kd_utils.options import OptionError
from kd_utils.schema import get

if TYPE_CHECKING:
    from kd_models.distillation_model import DistillationModel


def measure_networks(model: DistillationModel) -> dict[str, Probe]:
    """Measures student and teacher for one training crop.

    Raises:
        OptionError: A generator is not made for the training images, or does not turn an LR crop into a GT crop, or a
            discriminator does not take one, or not a batch of them.
    """
    lq_size, gt_size, teacher = model.lq_size(), model.gt_size(), model.teacher
    _check_training_images(model)
    rows = {'student net_g': probe(model.net_g, lq_size, (), model.adapter, 'network_g')}
    if teacher is not None:
        rows['teacher net_g'] = probe(teacher.net_g, lq_size, (), teacher.adapter, 'teacher.network_g')
    for name, row in rows.items():
        if row.shape != gt_size:
            raise OptionError(f'{name} turns an LR crop of {_by(lq_size)} into {_by(row.shape)}, not into the GT crop '
                              f'of {_by(gt_size)}. {model.adapter.how_to_fit(model.opt["scale"])}')
    for name, net in (('student net_d', model.net_d), ('teacher net_d', getattr(teacher, 'net_d', None))):
        if net is not None:
            rows[name] = probe(net, gt_size, (), None, name)
            _check_batch(name, net, (get(model.opt, 'datasets.train.batch_size_per_gpu') or 1, *gt_size[1:]))
    return rows


def _check_batch(name: str, net: nn.Module, size: tuple[int, ...]) -> None:
    """Refuses a batch that a discriminator cannot divide into the groups that it compares, as StyleGAN2's does."""
    try:
        probe(net, size, (), None, name)
    except OptionError:
        raise OptionError(f'{name} ({type(net).__name__}) takes one image, but not {size[0]} at once. Change '
                          '`datasets.train.batch_size_per_gpu`; StyleGAN2Discriminator takes up to `stddev_group` '
                          'images, 4, or a multiple of it.') from None


def _check_training_images(model: DistillationModel) -> None:
    """Student and teacher get the same images, of as many channels as they take."""
    channels = model.lq_size()[1]
    if get(model.opt, 'datasets.train.color') == 'y' and channels != 1:
        raise OptionError(f'`datasets.train.color: y` gives images of one channel, and `network_g` takes {channels}. '
                          'Take `color` out, or set the channels of the network to 1.')
    model.adapter.check_training(model.net_g, model.opt, 'network_g')
    if model.teacher is None:
        return
    of_teacher, of_student = model.teacher.adapter.value_range, model.adapter.value_range
    if of_teacher != of_student:
        raise OptionError(f'`teacher.network_g` is trained on images in {list(of_teacher)}, and `network_g` on images '
                          f'in {list(of_student)}. Name networks of one family.')
    model.teacher.adapter.check_training(model.teacher.net_g, model.opt, 'teacher.network_g')


def networks_table(rows: dict[str, Probe]) -> str:
    """Parameters, multiply-adds, size on disk, and the teacher's as a multiple of the student's."""
    heads = {'': 14, 'params': 14, 'MACs': 12, 'input': 10, 'fp32 on disk': 16, 'teacher/student: params, MACs': 32}
    lines = ['\t' + ''.join(f'{text:>{width}}' for text, width in heads.items())]
    for name, row in rows.items():
        student = rows.get(name.replace('teacher', 'student'), row)
        ratio = '' if row is student else f'{row.params / student.params:.1f}x, {row.macs / max(student.macs, 1):.1f}x'
        lines.append(f'\t{name:14}{row.params:>14,}{row.macs / 1e9:>10.3f} G{_by(row.size):>10}'
                     f'{row.megabytes:>12.2f} MiB{ratio:>32}')
    return '\n'.join(lines)


def trained_and_frozen(model: DistillationModel) -> str:
    """One line: how many tensors of each module are trained, and what is frozen."""
    counts = {name: sum(p.requires_grad for p in net.parameters()) for name, net in model.trained().items()}
    frozen = [f'teacher net_{label}' for label in 'gd' if getattr(model.teacher, f'net_{label}', None) is not None]
    if not model.stages.update_generator():
        del counts['net_g']
        frozen.append('net_g')
    if model.net_d is not None and 'net_d' not in counts:
        frozen.append('net_d, which nothing trains')
    trained = ', '.join(f'{name} {count}' for name, count in counts.items())
    return f'Trained tensors: {trained}. Frozen: {", ".join(frozen) or "none"}.'


def _by(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape[-2:]))
