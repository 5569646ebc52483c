"""What finished experiments left behind, read for `kd-compare`: options, metrics, validation curves, images."""
from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.data import build_dataset
from basicsr.utils import tensor2img

from kd_cli.prepare import resize
from kd_utils.options import OptionError, load_yaml, nearest


@dataclass
class Run:
    """One tested experiment.

    Attributes:
        name: Its folder in results/, and in experiments/ where it was trained here.
        opt: The options it was tested with.
        seed: `manual_seed` of its training; None where it was not trained here.
        images: Image name -> metric -> value.
        of_set: Metric of the whole set -> value.
        curve: Validation metric by iteration.
    """
    name: str
    opt: dict[str, Any]
    seed: int | None
    images: dict[str, dict[str, float]]
    of_set: dict[str, float] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Over the images; of a metric of the whole set its value."""
        if metric in self.of_set:
            return self.of_set[metric]
        return float(np.mean([values[metric] for values in self.images.values()]))


@dataclass
class Group:
    """The runs behind one label: one network, several seeds."""
    label: str
    runs: list[Run]
    params: int = 0
    macs: int = 0
    ms: float = 0.
    time_ratio: float = 0.

    @property
    def network(self) -> dict[str, Any]:
        return self.runs[0].opt['network_g']

    def mean(self, metric: str) -> float:
        return float(np.mean([run.mean(metric) for run in self.runs]))

    def std(self, metric: str) -> float | None:
        """Sample standard deviation over the runs; None for a single one."""
        return statistics.stdev(run.mean(metric) for run in self.runs) if len(self.runs) > 1 else None

    def per_image(self, metric: str) -> np.ndarray:
        """The metric of each image, averaged over the runs, in the images' sorted order."""
        return np.mean([[run.images[name][metric] for name in sorted(run.images)] for run in self.runs], axis=0)


def find_runs(root: Path, entries: Sequence[str]) -> dict[str, list[str]]:
    """Label -> experiment names, from `LABEL=NAME[,NAME...]` or plain `NAME` entries with shell wildcards.

    Raises:
        OptionError: A name or wildcard fits no experiment, or a label is there twice.
    """
    known = sorted({path.parent.name for folder in ('experiments', 'results')
                    for path in (root / folder).glob('*/options.yml') if '_archived_' not in path.parent.name})
    labels: dict[str, list[str]] = {}
    for entry in entries:
        label, _, names = entry.rpartition('=')
        label = label or names
        if label in labels:
            raise OptionError(f'The label `{label}` is there twice. Write all its experiments as {label}=NAME,NAME.')
        labels[label] = list(dict.fromkeys(name for pattern in names.split(',')
                                           for name in _matches(pattern.strip(), known, root)))
    return labels


def _matches(pattern: str, known: Sequence[str], root: Path) -> list[str]:
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        raise OptionError(f'There is no experiment `{pattern}`, that is a folder with options.yml, in experiments/ or '
                          f'results/ of {root.resolve()}. Name one that was trained and tested, or give its root by '
                          f'--root.{nearest(pattern, known)}')
    return found


def choose_dataset(root: Path, names: Sequence[str], dataset: str | None) -> str:
    """The dataset that all runs were tested on, or the one asked for.

    Raises:
        OptionError: A run has no results on it, or there are several to choose from.
    """
    tested = {name: _tested_datasets(root, name) for name in names}
    common = sorted(set.intersection(*map(set, tested.values())))
    if dataset is None and len(common) > 1:
        raise OptionError(f'The experiments were tested on {", ".join(common)}. Choose one by --dataset.')
    if dataset is None and not common:
        raise OptionError('No dataset is common to all: ' + '; '.join(f'{n}: {", ".join(d)}' for n, d in tested.items())
                          + '. Test all of them with the same `datasets` section.')
    chosen = dataset or common[0]
    for name, datasets in tested.items():
        if chosen not in datasets:
            raise OptionError(f'`{name}` was not tested on `{chosen}`, only on {", ".join(datasets)}. '
                              f'Test it with that dataset.{nearest(chosen, datasets)}')
    return chosen


def _tested_datasets(root: Path, name: str) -> list[str]:
    found = sorted(path.stem.removeprefix('metrics_') for path in (root / 'results' / name).glob('metrics_*.json'))
    if not found and (root / 'results' / name / 'options.yml').exists():
        model_type = load_yaml(root / 'results' / name / 'options.yml').get('model_type')
        raise OptionError(f'The test of `{name}`, with model_type: {model_type}, left no metrics_*.json. Test it with '
                          'model_type: DistillationModel, `val.metrics` and ground truth.')
    if not found:
        raise OptionError(f'`{name}` has no results. Run: python test.py -opt TEST.yml --force_yml name={name} '
                          f'path:pretrain_network_g=experiments/{name}/models/net_g_latest.pth')
    return found


def load_run(root: Path, name: str, dataset: str) -> Run:
    """Reads what the test, and the training where there was one, left behind."""
    results, experiment = root / 'results' / name, root / 'experiments' / name
    images, means = _metrics_in(results / f'metrics_{dataset}.json')
    of_set = {metric: value for metric, value in means.items() if metric not in next(iter(images.values()))}
    trained = load_yaml(experiment / 'options.yml') if (experiment / 'options.yml').exists() else {}
    return Run(name, load_yaml(results / 'options.yml'), trained.get('manual_seed'), images, of_set)


def _metrics_in(path: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Image -> metric -> value, and metric -> mean over the images or value of the set.

    Raises:
        OptionError: The file is damaged.
    """
    content = _parsed(path.read_bytes())
    images: Any = content.get('images') if isinstance(content, dict) else None
    if not isinstance(images, dict) or not images or not _are_metrics(content.get('mean')) \
            or not all(map(_are_numbers, images.values())) or len({frozenset(of) for of in images.values()}) > 1:
        raise OptionError(f'{path} is damaged, perhaps by a test that was killed. Test `{path.parent.name}` again.')
    return images, content['mean']


def _parsed(text: bytes) -> Any:
    """The JSON value; None for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values())


def _are_metrics(value: Any) -> bool:
    return bool(value) and _are_numbers(value)


def load_groups(root: Path, entries: Sequence[str], dataset: str | None) -> tuple[list[Group], str]:
    """The groups that the entries name, and the dataset.

    Raises:
        OptionError: The runs cannot be compared: other images, other metrics, or several networks under one label.
    """
    labels = find_runs(root, entries)
    dataset = choose_dataset(root, [name for names in labels.values() for name in names], dataset)
    groups = [Group(label, [load_run(root, name, dataset) for name in names]) for label, names in labels.items()]
    first = groups[0].runs[0]
    for group in groups:
        for run in group.runs:
            _check_comparable(first, run, dataset)
            if run.opt['network_g'] != group.network:
                raise OptionError(f'`{run.name}` and `{group.runs[0].name}` are different networks. Give them two '
                                  'labels: one label is one network, trained with several seeds.')
    return groups, dataset


def _check_comparable(first: Run, run: Run, dataset: str) -> None:
    other = sorted(set(first.images) ^ set(run.images))
    if other:
        raise OptionError(f'`{first.name}` and `{run.name}` were tested on other images of `{dataset}`: {other[0]} is '
                          'in one of them only. Test both with the same folders.')
    ensembles = [bool(one.opt['val'].get('self_ensemble')) for one in (first, run)]
    if ensembles[0] != ensembles[1]:
        raise OptionError(f'One of `{first.name}` and `{run.name}` was tested with `val.self_ensemble`, the other '
                          'without. Test both alike.')
    for metric, option in metrics_of(first).items():
        if metric in run.opt['val']['metrics'] and metric not in metrics_of(run):
            raise OptionError(f'`{run.name}` has no `{metric}`: its test left it out, and its log says why. '
                              'Test it again.')
        if metrics_of(run).get(metric) != option:
            raise OptionError(f'`{first.name}` and `{run.name}` define `{metric}` differently. '
                              'Test both with the same val.metrics.')


def metrics_of(run: Run) -> dict[str, dict[str, Any]]:
    """The metrics that were measured, by name, with their options."""
    measured = {*next(iter(run.images.values())), *run.of_set}
    return {name: option for name, option in run.opt['val']['metrics'].items() if name in measured}


def load_curves(root: Path, groups: Sequence[Group], dataset: str | None, metric: str | None) -> tuple[str, str] | None:
    """Fills in the runs' validation curves; (dataset, metric), or None where no run was validated while training.

    Raises:
        OptionError: No run has that dataset or metric.
    """
    lines = {run.name: _logged_lines(root / 'experiments' / run.name / 'validation.jsonl', _is_validation)
             for group in groups for run in group.runs}
    known = list(dict.fromkeys((line['dataset'], name) for run in lines.values() for line in run
                               for name in line['metrics']))
    fitting = [pair for pair in known if dataset in (None, pair[0]) and metric in (None, pair[1])]
    if known and not fitting:
        raise OptionError(f'No validation of {dataset or "any dataset"} measured {metric or "anything"}. '
                          f'Choose from: {", ".join(f"{d} {m}" for d, m in known)}.')
    if not fitting:
        return None
    dataset, metric = fitting[0]
    for group in groups:
        for run in group.runs:  # a resumed run repeats iterations; the last one counts
            run.curve = {int(line['iter']): line['metrics'][metric] for line in lines[run.name]
                         if line['dataset'] == dataset and metric in line['metrics']}
    return dataset, metric


def load_shares(root: Path, groups: Sequence[Group]) -> dict[str, list[dict[str, Any]]]:
    """Label -> {'iter', 'shares': {loss: {'norm', 'share', 'cosine'}}} in order, of the first run that logged them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        for run in group.runs:
            lines = _logged_lines(root / 'experiments' / run.name / 'shares.jsonl', _are_shares)
            if lines and group.label not in found:  # a resumed run repeats iterations; the last one counts
                found[group.label] = [line for _, line in sorted({line['iter']: line for line in lines}.items())]
    return found


def _logged_lines(path: Path, is_right: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """The lines that a training has logged; of a killed one, the last may be cut short and is left out.

    Raises:
        OptionError: Another line is damaged.
    """
    if not path.exists():
        return []
    lines = {i: _parsed(text) for i, text in enumerate(path.read_bytes().splitlines(), 1) if text.strip()}
    damaged = [i for i, line in lines.items() if not is_right(line)]
    if damaged and damaged[0] != max(lines):
        raise OptionError(f'Line {damaged[0]} of {path} is damaged. Remove that line.')
    return [line for i, line in lines.items() if i not in damaged]


def _is_validation(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get('iter'), int) and 'dataset' in line \
        and _are_metrics(line.get('metrics'))


def _are_shares(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get('iter'), int) and isinstance(line.get('shares'), dict) \
        and all(_are_metrics(share) and 'share' in share for share in line['shares'].values())


def group_curve(group: Group) -> tuple[list[int], np.ndarray]:
    """Iterations that all runs of a group have, and their values, (runs, iterations)."""
    iterations = sorted(set.intersection(*(set(run.curve) for run in group.runs)))
    return iterations, np.array([[run.curve[i] for i in iterations] for run in group.runs])


class Pictures:
    """The test set and what the networks made of it.

    Args:
        root: The folder of results/.
        run: Any run; its options name the dataset's files.
        dataset: Name of the dataset.
        bicubic: A folder of enlarged LR images; None to enlarge them here, with BasicSR's `imresize`.
    """

    def __init__(self, root: Path, run: Run, dataset: str, bicubic: Path | None = None) -> None:
        self.root, self.dataset, self.bicubic_folder = root, dataset, bicubic
        option = dict(next(opt for opt in run.opt['datasets'].values() if opt.get('name') == dataset))
        for key in [key for key in option if key.startswith('dataroot') and option[key]]:
            if not Path(option[key]).exists():  # relative to the root, where the test ran
                option[key] = str(root / option[key])
        self.data = build_dataset(option)
        self.scale = int(option.get('scale', run.opt['scale']))
        self.index = self._index(run)

    def _index(self, run: Run) -> dict[str, int]:
        """Image name -> position; the second image of a name has its extension too, as in `nondist_validation`.

        Raises:
            OptionError: An image that was tested is not there.
        """
        index: dict[str, int] = {}
        for i in range(len(self.data)):
            path = Path(self.data[i]['lq_path'])
            index[path.stem if path.stem not in index else path.name] = i
        missing = [image for image in run.images if image not in index]
        if missing:
            raise OptionError(f'The LR images of `{self.dataset}` are not those that `{run.name}` was tested on: there '
                              f'is no `{missing[0]}`. Put them back, or test all again.')
        return index

    def lr(self, image: str) -> np.ndarray:
        """The LR image, (h, w, 3) uint8 BGR."""
        return tensor2img([self.data[self.index[image]]['lq']])

    def gt(self, image: str) -> np.ndarray | None:
        """The ground truth, (s*h, s*w, 3) uint8 BGR; None for a dataset without."""
        gt = self.data[self.index[image]].get('gt')
        return None if gt is None else tensor2img([gt])

    def bicubic(self, image: str) -> np.ndarray:
        """The LR image enlarged by bicubic interpolation."""
        if self.bicubic_folder is None:
            return resize(self.lr(image), self.scale)
        return _read(self.bicubic_folder / f'{image}.png', 'Name a folder with one PNG of that name for each image.')

    def output(self, run: Run, image: str) -> np.ndarray | None:
        """What the run's network made of the LR image; None where the test did not save it."""
        suffix = run.opt['val'].get('suffix') or run.name
        path = self.root / 'results' / run.name / 'visualization' / self.dataset / f'{image}_{suffix}.png'
        return _read(path, f'Test `{run.name}` again.') if path.exists() else None


def _read(path: Path, remedy: str) -> np.ndarray:
    img = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if img is None:
        raise OptionError(f'{path} is missing or no image. {remedy}')
    return img
