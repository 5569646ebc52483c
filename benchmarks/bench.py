"""What this package costs beside BasicSR and beside steps written by hand, and what its faster modes save.

    make bench                                       on one thread of a CPU, under five minutes
    python -m benchmarks.bench --only steps crops    some of the sections, in a checkout
    bash benchmarks/gpu.sh                           on a GPU, with times

prints a table of ratios. Those of a row are measured alternately in one run, on a CPU in CPU time, and the median over
the rounds is shown. Beside it stands the target; the exit code is 1 where one is missed. Networks have random weights.
"""
from __future__ import annotations

# ruff: noqa: I001
import kd_models  # noqa: F401  first: it makes basicsr importable

import argparse
import contextlib
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data import build_dataloader
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.operations import Operations
from benchmarks.steps import Batch, cases
from kd_data.building import build_dataset, paired_paths
from kd_data.draws import seed_everything
from kd_losses.contrastive_loss import MultiScaleContrastiveLoss
from kd_models.degradation import build_degradation, build_sharpener
from kd_utils.options import OptionError, check_options, load_yaml

SHIPPED = 'train/SDGAN/sdgan_realesrgan_x4.yml'  # Real-ESRGAN's own keys


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: What is compared with what.
        value: The ratio or number.
        target: The largest value that is meant to be; None where there is none.
        milliseconds: Of each side, where they are shown.
    """
    what: str
    value: float
    target: float | None = None
    milliseconds: Mapping[str, float] | None = None

    @property
    def missed(self) -> bool:
        """Whether the target is missed."""
        return self.target is not None and not self.value <= self.target


class Bench:
    """The sections of the table.

    Args:
        device: Where it is measured.
        seconds: How long a comparison goes on, after a round that does not count.
        folder: For what is written.
    """

    def __init__(self, device: torch.device, seconds: float, folder: Path) -> None:
        self.device, self.seconds, self.folder = device, seconds, folder
        self.num_gpu = int(device.type == 'cuda')
        self.cases = cases(small=not self.num_gpu)

    # ------------------------------------------------------------------------------------------------- measuring

    def _time(self, work: Callable[[], Any]) -> float:
        """Seconds: of the CPU, which other programs do not lengthen, or on a GPU of the wall."""
        clock = time.perf_counter if self.num_gpu else time.process_time
        if self.num_gpu:
            torch.cuda.synchronize()
        start = clock()
        work()
        if self.num_gpu:
            torch.cuda.synchronize()
        return clock() - start

    def alternate(self, works: Mapping[str, Callable[[], Any]], rounds: int = 3) -> dict[str, list[float]]:
        """Seconds of each round, in which all take their turn, each round in another order."""
        times: dict[str, list[float]] = {name: [] for name in works}
        end = None
        for number in itertools.count():
            for name in random.Random(number).sample(list(works), len(works)):
                seed_everything(number)
                times[name].append(self._time(works[name]))
            end = end or time.perf_counter() + self.seconds
            if number >= rounds and time.perf_counter() > end:
                return {name: seconds[1:] for name, seconds in times.items()}
        raise AssertionError('unreachable')

    def compare(self, what: str, works: Mapping[str, Callable[[], Any]], targets: Mapping[str, float | None],
                rounds: int = 3) -> Iterator[Row]:
        """A row for the first of `works` against each of the others, with its target."""
        times = self.alternate(works, rounds)
        first, *others = works
        for other in others:
            ratio = statistics.median(a / b for a, b in zip(times[first], times[other], strict=True))
            shown = {name: 1000 * statistics.median(times[name]) for name in (first, other)}
            yield Row(f'{what}: {first} / {other}', ratio, targets.get(other), shown)

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes that `work` holds at most besides what was there."""
        self._held(work)  # what it leaves behind is there from now on
        return self._held(work)

    def _held(self, work: Callable[[], Any]) -> int:
        if self.num_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            work()
        events = [event for event in recorded.profiler.kineto_results.events() if event.name() == '[memory]']
        held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
        return max(held, default=0)

    def _operations(self, work: Callable[[], Any]) -> Operations:
        """What `work` asks torch for; on a GPU `reads` has what torch itself takes for a wait."""
        with Operations() as operations:
            work()
        if self.num_gpu:
            torch.cuda.set_sync_debug_mode('warn')
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                work()
            torch.cuda.set_sync_debug_mode('default')
            operations.reads = [str(warning.message) for warning in caught if 'synchroniz' in str(warning.message)]
        return operations

    # -------------------------------------------------------------------------------------------------- sections

    def steps(self) -> Iterator[Row]:
        """The training step: ours, BasicSR's, and one by hand; what it asks torch for, and what it holds."""
        targets = {'SRModel': 1.06}
        for name in ('SRModel', 'SRGANModel', 'SDAKD compact', 'MCAD-KD'):
            case = self.cases[name]
            model, ours = case.ours(self.folder, num_gpu=self.num_gpu)
            works = {'ours': ours, 'by hand': case.by_hand(model)}
            if case.stock:
                works['BasicSR'] = case.of_basicsr(self.folder, self.num_gpu)[1]
            data = case.data(model.opt, self.device)
            bound = {key: _bound(work, data) for key, work in works.items()}
            yield from self.compare(name, bound, {'by hand': 1.03, 'BasicSR': targets.get(name, 1.03)})
            counts = {key: self._operations(bound[key]) for key in ('ours', 'by hand')}
            yield Row(f'{name}: operations, ours / by hand ({counts["ours"].count} / {counts["by hand"].count})',
                      counts['ours'].count / counts['by hand'].count)
            # on a CPU Adam reads counters of its own
            yield Row(f'{name}: waits for the device in a step',
                      len(counts['ours'].reads) - len(counts['by hand'].reads), 0)
            peaks = [self.peak(bound[key]) for key in ('ours', 'by hand')]
            yield Row(f'{name}: peak memory of a step, ours / by hand', peaks[0] / peaks[1], 1.05)

    def precision(self) -> Iterator[Row]:
        """Half precision and its memory format against fp32, of our own step."""
        changes = {'train': {'precision': 'bf16', 'channels_last': True}}
        for name, target in (('SDAKD compact', 0.6), ('MCAD-KD', 0.5), ('SDAKD RRDB', 0.72)):
            case = self.cases[name]
            if not _known(case.options(self.folder, **changes)):
                continue
            works = {}
            for key, changed in (('bf16, channels_last', changes), ('fp32', {})):
                model, step = case.ours(self.folder, num_gpu=self.num_gpu, **changed)
                works[key] = _bound(step, case.data(model.opt, self.device))
            yield from self.compare(name, works, {'fp32': target})

    def degradation(self) -> Iterator[Row]:
        """Real-ESRGAN's LR images of crops of 400x400, with sharpened targets."""
        opt = {**load_yaml(SHIPPED), 'is_train': True, 'queue_size': 12}
        item, works = _degradable(12 if self.num_gpu else 2, self.device), {}
        for how in ('fast', 'exact'):
            degradation = build_degradation({**opt, 'degradation': how}, self.device)
            sharpener = build_sharpener({**opt, 'degradation': how}).to(self.device)

            def degrade(degradation: Any = degradation, sharpener: Any = sharpener) -> None:
                degradation(dict(item))
                if degradation.gt_usm is None:
                    sharpener(degradation.gt)

            works[how] = degrade
        yield from self.compare('degradation', works, {'exact': 0.12})
        yield Row('degradation: waits for the device for a batch', len(self._operations(works['fast']).reads), 0)

    def crops(self) -> Iterator[Row]:
        """The patches of the contrastive loss with their gradient, at two sizes of the batch."""
        loss, works = MultiScaleContrastiveLoss(), {}
        for batch in (32, 8):
            student, teacher = torch.rand(2, batch, 3, 128, 128, device=self.device)
            student.requires_grad_()
            same = torch.eye(batch, dtype=torch.bool, device=self.device)

            def crop(images: list[Tensor] = [student, teacher], same: Tensor = same) -> None:  # noqa: B006
                views, _ = loss._patches(images, same)
                torch.autograd.grad(views[0].sum(), images[0])

            works[f'batch of {batch}'] = crop
        yield from self.compare('patch crops', works, {'batch of 8': 5})

    def pairing(self) -> Iterator[Row]:
        """The start with many files: pairing takes as long as there are files."""
        works = {}
        for count in (60_000, 20_000):
            folders = [_many(self.folder / f'{count}_{name}', count) for name in ('lq', 'gt')]
            works[f'{count:,} files'] = lambda folders=folders: paired_paths(folders, ('lq', 'gt'), '{}')
        yield from self.compare('pairing', works, {'20,000 files': 3.5})

    def validation(self) -> Iterator[Row]:
        """Our validation with PSNR, against a loop that only runs the network and measures."""
        case = self.cases['SRModel']
        val = {'val_freq': 1, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}}
        opt = {**case.options(self.folder, num_gpu=self.num_gpu), 'val': val}
        model, _ = case._model(opt)
        loader = _validation_set(self.folder / 'validation', opt['scale'])

        def bare() -> None:
            model.net_g.eval()
            values = []
            with torch.no_grad():
                for item in loader:
                    output = model.net_g(item['lq'].to(self.device))
                    images = tensor2img([output.cpu()]), tensor2img([item['gt']])
                    values.append(calculate_metric({'img': images[0], 'img2': images[1]}, dict(val['metrics']['psnr'])))
            model.net_g.train()

        works = {'ours': lambda: model.validation(loader, 1, None, False), 'a bare loop': bare}
        yield from self.compare('validation', works, {})


def _bound(work: Callable[[Batch], None], data: Batch) -> Callable[[], None]:
    return lambda: work(dict(data))


def _known(opt: dict[str, Any]) -> bool:
    """Whether this version of the package has these keys."""
    try:
        check_options(opt, {})
    except OptionError as error:
        if 'Unknown key' not in str(error):
            raise
        return False
    return True


def _degradable(count: int, device: torch.device) -> dict[str, Tensor]:
    """A batch as RealESRGANDataset gives it: images in 8 bits, and kernels that blur."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 400, 400), generator=generator).float() / 255
    kernels = torch.rand(3, count, 21, 21, generator=generator)
    kernels /= kernels.sum((2, 3), keepdim=True)
    item = {'gt': images, 'kernel1': kernels[0], 'kernel2': kernels[1], 'sinc_kernel': kernels[2]}
    return {name: value.to(device) for name, value in item.items()}


def _many(folder: Path, count: int) -> str:
    """A folder of empty files, which are links to a few."""
    folder.mkdir()
    for number in range(count):
        path = folder / f'{number:07}.png'
        if number % 10_000 == 0:
            path.touch()
            first = path
        else:
            os.link(first, path)
    return str(folder)


def _validation_set(folder: Path, scale: int) -> Any:
    """A loader of eight pairs of 192x192 and smaller images."""
    for name, side in (('gt', 192), ('lq', 192 // scale)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            image = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
            cv2.imwrite(str(folder / name / f'{number}.png'), image)
    opt = {'name': 'random', 'type': 'PairedImageDataset', 'dataroot_gt': str(folder / 'gt'), 'phase': 'val',
           'dataroot_lq': str(folder / 'lq'), 'io_backend': {'type': 'disk'}, 'scale': scale}
    return build_dataloader(build_dataset(opt), opt, num_gpu=0)


SECTIONS = ('steps', 'precision', 'degradation', 'crops', 'pairing', 'validation')


def table(rows: list[Row], milliseconds: bool) -> str:
    """The rows as Markdown; times of both sides where asked for."""
    heads = ['', 'measured', 'at most', *['milliseconds'] * milliseconds]
    lines = ['| ' + ' | '.join(heads) + ' |', '| ' + ' | '.join(['---'] * len(heads)) + ' |']
    for row in rows:
        target = '' if row.target is None else f'{row.target:g}' + ', **missed**' * row.missed
        times = ' / '.join(f'{value:.1f}' for value in (row.milliseconds or {}).values())
        cells = [row.what, f'{row.value:.0f}' if row.value == int(row.value) else f'{row.value:.3f}', target]
        lines.append('| ' + ' | '.join(cells + [times] * milliseconds) + ' |')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command; `argv` is the command line without the program's name. Returns the exit code."""
    parser = argparse.ArgumentParser(description='What training steps and the data for them cost.')
    parser.add_argument('--only', nargs='+', choices=SECTIONS, default=SECTIONS, metavar='SECTION',
                        help=f'some of: {", ".join(SECTIONS)}')
    parser.add_argument('--seconds', type=float, default=12, help='for each comparison (default: 12)')
    parser.add_argument('--gpu', action='store_true', help='on a GPU, with times')
    args = parser.parse_args(argv)
    if args.gpu and not torch.cuda.is_available():
        parser.error('there is no GPU here. Leave --gpu out.')
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # as the training loop does
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        bench = Bench(torch.device('cuda' if args.gpu else 'cpu'), args.seconds, Path(folder))
        for section in args.only:
            print(f'{section} ...', flush=True)
            rows += getattr(bench, section)()
    where = torch.cuda.get_device_name() if args.gpu else 'one thread of a CPU'
    print(f'torch {torch.__version__}, {where}\n\n{table(rows, args.gpu)}')
    return int(any(row.missed for row in rows))


if __name__ == '__main__':
    sys.exit(main())
