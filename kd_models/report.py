"""What is about to be trained: that the networks answer alike, and what each costs."""
from __future__ import annotations

from torch import nn

from kd_models.probe import Probe, probe
from kd_models.training import Training
from kd_utils.options import OptionError
from kd_utils.schema import get


def measure_networks(training: Training) -> dict[str, Probe]:
    """Measures student and teachers for one training crop, by the names of the networks.

    Raises:
        OptionError: A generator is not made for the training images, or does not turn an LR crop into a GT crop, or a
            discriminator does not take one, or not a batch of them.
    """
    lq_size, gt_size = training.lq_size, training.gt_size
    _check_training_images(training)
    rows = {'student net_g': probe(training.net_g, lq_size, (), training.adapter, 'network_g')}
    for name, teacher in training.teachers.items():
        rows[f'{name} net_g'] = probe(teacher.net_g, lq_size, (), teacher.adapter, f'{_key(name)}.network_g')
    for name, row in rows.items():
        if row.shape != gt_size:
            raise OptionError(f'{name} turns an LR crop of {_by(lq_size)} into {_by(row.shape)}, not into the GT crop '
                              f'of {_by(gt_size)}. {training.adapter.how_to_fit(training.opt["scale"])}')
    discriminators = {'student net_d': training.net_d,
                      **{f'{name} net_d': teacher.net_d for name, teacher in training.teachers.items()}}
    for name, net in discriminators.items():
        if net is not None:
            rows[name] = probe(net, gt_size, (), None, name)
            _check_batch(name, net, (get(training.opt, 'datasets.train.batch_size_per_gpu') or 1, *gt_size[1:]))
    return rows


def _key(teacher: str) -> str:
    """Where the options describe a teacher: `teacher`, or `teachers.NAME` for `teacher.NAME`."""
    return teacher.replace('teacher.', 'teachers.', 1)


def _check_batch(name: str, net: nn.Module, size: tuple[int, ...]) -> None:
    """Refuses a batch that a discriminator cannot divide into the groups that it compares, as StyleGAN2's does."""
    try:
        probe(net, size, (), None, name)
    except OptionError:
        raise OptionError(f'{name} ({type(net).__name__}) takes one image, but not {size[0]} at once. Change '
                          '`datasets.train.batch_size_per_gpu`; StyleGAN2Discriminator takes up to `stddev_group` '
                          'images, 4, or a multiple of it.') from None


def _check_training_images(training: Training) -> None:
    """Student and teachers get the same images, of as many channels as they take."""
    channels = training.lq_size[1]
    if get(training.opt, 'datasets.train.color') == 'y' and channels != 1:
        raise OptionError(f'`datasets.train.color: y` gives images of one channel, and `network_g` takes {channels}. '
                          'Take `color` out, or set the channels of the network to 1.')
    training.adapter.check_training(training.net_g, training.opt, 'network_g')
    for name, teacher in training.teachers.items():
        key, of_teacher, of_student = _key(name), teacher.adapter.value_range, training.adapter.value_range
        if of_teacher != of_student:
            raise OptionError(f'`{key}.network_g` is trained on images in {list(of_teacher)}, and `network_g` on '
                              f'images in {list(of_student)}. Name networks of one family.')
        teacher.adapter.check_training(teacher.net_g, training.opt, f'{key}.network_g')


def networks_table(rows: dict[str, Probe]) -> str:
    """Parameters, multiply-adds, size on disk, and each teacher's as a multiple of the student's."""
    width = max(14, *(len(name) + 1 for name in rows))
    heads = {'': width, 'params': 14, 'MACs': 12, 'input': 10, 'fp32 on disk': 16, 'teacher/student: params, MACs': 32}
    lines = ['\t' + ''.join(f'{text:>{space}}' for text, space in heads.items())]
    for name, row in rows.items():
        student = rows.get(f'student {name.rpartition(" ")[2]}', row)
        ratio = '' if row is student else f'{row.params / student.params:.1f}x, {row.macs / max(student.macs, 1):.1f}x'
        lines.append(f'\t{name:{width}}{row.params:>14,}{row.macs / 1e9:>10.3f} G{_by(row.size):>10}'
                     f'{row.megabytes:>12.2f} MiB{ratio:>32}')
    return '\n'.join(lines)


def trained_and_frozen(training: Training) -> str:
    """One line: how many tensors of each module are trained, and what is frozen."""
    counts = {name: sum(p.requires_grad for p in net.parameters()) for name, net in training.trained.items()}
    frozen = [f'{name} net_{label}' for name, teacher in training.teachers.items() for label in 'gd'
              if getattr(teacher, f'net_{label}') is not None]
    if not training.stages.update_generator():
        del counts['net_g']
        frozen.append('net_g')
    if training.net_d is not None and 'net_d' not in counts:
        frozen.append('net_d, which nothing trains')
    trained = ', '.join(f'{name} {count}' for name, count in counts.items())
    return f'Trained tensors: {trained}. Frozen: {", ".join(frozen) or "none"}.'


def _by(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape[-2:]))
