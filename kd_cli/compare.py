"""`kd-compare`: one table and two pictures of any finished experiments.

    kd-compare teacher=edsr_teacher alone=edsr_alone_s1,edsr_alone_s2 'distilled=edsr_kd_s*' --versus distilled alone

An entry is a label and the experiments behind it: names under which runs were trained and tested, several for several
seeds, with shell wildcards. Written to `--out`: table.md, table.csv, comparison.png (crops), curve.png (validation
against iteration) and comparison.json (every number); with `--html FILE`, one page with all of it and a slider between
any two networks. What is read is what train.py and test.py leave behind:
results/NAME/{options.yml, metrics_<dataset>.json, visualization/} and experiments/NAME/validation.jsonl.
"""
from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.metrics import calculate_metric

from kd_cli.errors import reported
from kd_cli.figures import CROP, draw_crops, draw_curves, widest_difference
from kd_cli.html_report import BICUBIC, curve_chart, share_charts, write_html
from kd_cli.results import (
    Group,
    Pictures,
    Run,
    group_curve,
    load_curves,
    load_groups,
    load_shares,
    metrics_of,
)
from kd_metrics import MetricUnavailable
from kd_models.adapters import build_adapter
from kd_models.probe import probe
from kd_utils.options import OptionError

BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 10000, 0
TIMING_ROUNDS, TIMING_SECONDS = 25, 60.


# ------------------------------------------------------------------------------------------------------------ measuring


def measure_networks(groups: Sequence[Group], size: tuple[int, int], reference: str) -> None:
    """Fills in parameters, multiply-adds and time, for one LR image of `size` (H, W); equal networks are timed once."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    keys = [json.dumps(group.network, sort_keys=True) for group in groups]
    calls: dict[str, tuple[Any, torch.nn.Module, torch.Tensor]] = {}
    for key, group in zip(keys, groups, strict=True):
        adapter, net = build_adapter(group.network), build_network(dict(group.network)).eval()
        shape = (1, group.network.get('num_in_ch', group.network.get('in_chans', 3)), *size)
        measured = probe(net, shape, call=adapter, owner=group.label)
        group.params, group.macs = measured.params, measured.macs
        calls.setdefault(key, (adapter, net.to(device), torch.rand(shape, device=device)))
    rounds = time_side_by_side(list(calls.values()))
    at = list(calls).index(keys[[group.label for group in groups].index(reference)])
    seconds, ratios = np.median(rounds, axis=0), np.median(rounds / rounds[:, at:at + 1], axis=0)
    for key, group in zip(keys, groups, strict=True):
        column = list(calls).index(key)
        group.ms, group.time_ratio = 1000 * float(seconds[column]), float(ratios[column])


@torch.no_grad()
def time_side_by_side(calls: Sequence[tuple[Any, torch.nn.Module, torch.Tensor]]) -> np.ndarray:
    """Seconds of each network in each round, (rounds, networks).

    In a round every network runs once, in an order drawn anew, so that whatever else the machine does meets all of them
    alike; it runs once more just before, untimed, so that none pays for the one that ran before it. Slow networks get
    fewer rounds, at least three. On a CPU one thread is used: several wait for each other at every layer, which on a
    busy machine measures the waiting.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _time_rounds(calls)
    finally:
        torch.set_num_threads(threads)


def _time_rounds(calls: Sequence[tuple[Any, torch.nn.Module, torch.Tensor]]) -> np.ndarray:
    rng, end = np.random.default_rng(0), time.perf_counter() + TIMING_SECONDS
    rounds: list[list[float]] = []
    while len(rounds) < TIMING_ROUNDS and (len(rounds) < 3 or time.perf_counter() < end):
        seconds = [0.] * len(calls)
        for at in rng.permutation(len(calls)):
            _seconds(*calls[at])
            seconds[at] = _seconds(*calls[at])
        rounds.append(seconds)
    return np.array(rounds)


def _seconds(adapter: Any, net: torch.nn.Module, image: torch.Tensor) -> float:
    start = time.perf_counter()
    adapter(net, image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of paired differences, (images, ), by resampling images with a fixed seed."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = rng.integers(len(differences), size=(BOOTSTRAP_DRAWS, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def versus(a: Group, b: Group, metric: str) -> dict[str, Any]:
    """Label `a` minus label `b`, paired by seed and by image.

    Raises:
        OptionError: The two have not the same seeds.
    """
    runs_a, runs_b = ({run.seed: run for run in group.runs} for group in (a, b))
    if runs_a.keys() != runs_b.keys() or len(runs_a) != len(a.runs):
        raise OptionError(f'`{a.label}` has the seeds {_seeds(a)} and `{b.label}` {_seeds(b)}. '
                          'For --versus name runs of the same seeds, each once.')
    low, high = bootstrap_interval(a.per_image(metric) - b.per_image(metric))
    return {'a': a.label, 'b': b.label, 'metric': metric, 'difference': a.mean(metric) - b.mean(metric),
            'interval': [low, high], 'images': len(a.runs[0].images),
            'per_seed': {str(seed): runs_a[seed].mean(metric) - runs_b[seed].mean(metric) for seed in runs_a}}


def intervals(groups: Sequence[Group], baseline: str, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every label minus the baseline, paired by image, means over the seeds: difference and 95 % interval."""
    base = next(group for group in groups if group.label == baseline)
    found: dict[str, Any] = {}
    for group in groups:
        pairs = {metric: group.per_image(metric) - base.per_image(metric) for metric in metrics}
        found[group.label] = {} if group is base else {
            metric: {'difference': float(values.mean()), 'interval': list(bootstrap_interval(values)),
                     'better': metrics[metric].get('better', 'higher')} for metric, values in pairs.items()}
    return {'baseline': baseline, 'networks': found}


def _seeds(group: Group) -> str:
    return ', '.join(str(run.seed) for run in group.runs)


# --------------------------------------------------------------------------------------------------------------- images


def score_bicubic(pictures: Pictures, first: Run) -> dict[str, dict[str, float]]:
    """Image -> metric -> value of bicubic interpolation, with the metrics' own options; those of images, against GT."""
    options = {name: option for name, option in metrics_of(first).items()
               if option.get('reference', 'gt') == 'gt' and name not in first.of_set}
    scores: dict[str, dict[str, float]] = {}
    for image in sorted(first.images):
        gt, img = pictures.gt(image), pictures.bicubic(image)
        if gt is not None and img.shape != gt.shape:
            raise OptionError(f'The bicubic image of {image} is {img.shape[1]}x{img.shape[0]}, the ground truth '
                              f'{gt.shape[1]}x{gt.shape[0]}. Leave out the folder after --bicubic to have it made.')
        data = {'img': img} if gt is None else {'img': img, 'img2': gt}
        scores[image] = {}
        for name, option in list(options.items()):
            try:
                scores[image][name] = float(
                    calculate_metric(data, {k: v for k, v in option.items() if k != 'reference'}))
            except MetricUnavailable as error:
                print(f'No {name} of bicubic interpolation. {error}')
                del options[name]
    return {image: {name: values[name] for name in options} for image, values in scores.items()}


def choose_crops(groups: Sequence[Group], pictures: Pictures) -> list[dict[str, Any]]:
    """The images, first those whose outputs differ most among the labels, each with the crop where they do.

    For every place of a window of CROP pixels, on a grid of the scale, the outputs' variance among the labels (first
    run of each; one label alone is set against bicubic) is averaged over the window; the place with the largest value
    is taken. Nothing is known here of which output is better.
    """
    found = []
    for image in sorted(groups[0].runs[0].images):
        outputs = [pictures.output(group.runs[0], image) for group in groups]
        known = [output for output in outputs if output is not None]
        if len(known) < len(outputs):
            return []
        known += [pictures.bicubic(image)] if len(known) == 1 else []
        top, left, score = widest_difference(known, CROP, pictures.scale)
        found.append((score, image, top, left))
    found.sort(key=lambda crop: -crop[0])
    return [dict(zip(('score', 'image', 'top', 'left'), crop, strict=True)) for crop in found]


def crop_row(crop: Mapping[str, Any], groups: Sequence[Group], pictures: Pictures, metric: str,
             bicubic: Mapping[str, Mapping[str, float]]) -> list[tuple[str, np.ndarray]]:
    """(caption, BGR picture) of a row of comparison.png: the whole image with a frame, then the crops."""
    image, top, left = crop['image'], crop['top'], crop['left']

    def caption(label: str, values: Mapping[str, float]) -> str:
        return f'{label}\n{values[metric]:.2f}' if metric in values else label

    gt = pictures.gt(image)
    captioned = [(caption(BICUBIC, bicubic.get(image, {})), pictures.bicubic(image))]
    for group in groups:
        output = pictures.output(group.runs[0], image)
        captioned += [] if output is None else [(caption(group.label, group.runs[0].images[image]), output)]
    captioned += [('ground truth', gt)] if gt is not None else []
    whole = (captioned[0][1] if gt is None else gt).copy()
    cv2.rectangle(whole, (left, top), (left + CROP, top + CROP), (0, 255, 255), max(2, whole.shape[1] // 150))
    return [(image, whole), *((text, img[top:top + CROP, left:left + CROP]) for text, img in captioned)]


# ---------------------------------------------------------------------------------------------------------------- table


def count_text(value: float) -> str:
    """1234567 -> 1.23 M."""
    for unit, name in ((1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' K')):
        if value >= unit:
            return f'{value / unit:.3g}{name}'
    return f'{value:.0f}'


def metric_text(mean: float, std: float | None = None) -> str:
    digits = 2 if abs(mean) >= 10 else 4
    return f'{mean:.{digits}f}' + ('' if std is None else f' ± {std:.{digits}f}')


def table_rows(groups: Sequence[Group], report: Mapping[str, Any], with_ms: bool) -> list[list[str]]:
    """Header and rows of the table; milliseconds belong to this machine and moment and are not written to files."""
    metrics, bicubic, (height, width) = list(report['metrics']), report['bicubic'], report['size']
    rows = [['network', 'params', f'MACs at {height}x{width}', 'time', *(['ms/image'] if with_ms else []), *metrics,
             'seeds']]
    if bicubic:
        means = bicubic_means(bicubic)
        scores = [metric_text(means[metric]) if metric in means else '-' for metric in metrics]
        rows.append([BICUBIC, '-', '-', '-', *(['-'] if with_ms else []), *scores, '-'])
    for group in groups:
        scores = [metric_text(group.mean(metric), group.std(metric)) for metric in metrics]
        rows.append([group.label, count_text(group.params), count_text(group.macs), f'{group.time_ratio:.2f}',
                     *([f'{group.ms:.1f}'] if with_ms else []), *scores, str(len(group.runs))])
    return rows


def bicubic_means(bicubic: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = next(iter(bicubic.values()), {})
    return {name: float(np.mean([values[name] for values in bicubic.values()])) for name in names}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |'
             for row in rows]
    return '\n'.join([lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]])


def notes(report: Mapping[str, Any]) -> str:
    """What the numbers mean, below the table."""
    height, width = report['size']
    definitions = '; '.join(f'{name}: {option["type"]}' + ''.join(f', {key} {value}' for key, value in option.items()
                                                                  if key != 'type')
                            for name, option in report['metrics'].items())
    passes = 'With x8 self-ensemble, eight passes per image; MACs and time are of one. '
    text = (f'{passes if report["self_ensemble"] else ""}Means over the {report["images"]} images of '
            f'{report["dataset"]}, ± the standard deviation over the seeds where there are several ({definitions}). '
            f'Time for one LR image of {height}x{width}, {report["reference"]} = 1: measured side by side, median of '
            f'interleaved rounds, on {report["device"]}.')
    return '\n\n'.join([text, *map(versus_text, report['versus'])])


def versus_text(result: Mapping[str, Any]) -> str:
    low, high = result['interval']
    by_seed = ', '.join(f'{value:+.3g}' for value in result['per_seed'].values())
    return (f'{result["metric"]}, {result["a"]} minus {result["b"]}: {result["difference"]:+.3g} (by seed: {by_seed}). '
            f'95 % interval, bootstrap over the {result["images"]} images: {low:+.3g} to {high:+.3g}.')


def group_report(group: Group, metrics: Sequence[str]) -> dict[str, Any]:
    """Every number of a label, for comparison.json."""
    return {
        'label': group.label, 'network_g': group.network, 'params': group.params, 'macs': group.macs,
        'time_ratio': group.time_ratio,
        'metrics': {name: {'mean': group.mean(name), 'std': group.std(name)} for name in metrics},
        'runs': [{'name': run.name, 'seed': run.seed, 'mean': {name: run.mean(name) for name in metrics},
                  'images': run.images, 'curve': run.curve} for run in group.runs],
    }


def write_csv(path: Path, report: Mapping[str, Any]) -> None:
    metrics = list(report['metrics'])
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['network', 'params', 'macs', 'time_ratio', 'seeds',
                         *(f'{name}_{part}' for name in metrics for part in ('mean', 'std'))])
        if report['bicubic']:
            means = bicubic_means(report['bicubic'])
            writer.writerow([BICUBIC, '', '', '', '', *(value for name in metrics for value in (means.get(name), ''))])
        for row in report['networks']:
            scores = [row['metrics'][name][part] for name in metrics for part in ('mean', 'std')]
            writer.writerow([row['label'], row['params'], row['macs'], row['time_ratio'], len(row['runs']), *scores])


# --------------------------------------------------------------------------------------------------------- the command


def compare(root: Path, entries: Sequence[str], out: Path, dataset: str | None = None,
            bicubic: Path | bool = False, reference: str | None = None, size: tuple[int, int] = (128, 128),
            crops: int = 4, pair: Sequence[str] | None = None, curve_dataset: str | None = None,
            curve_metric: str | None = None, html: Path | None = None) -> dict[str, Any]:
    """What `kd-compare` does; the arguments are its own.

    Args:
        bicubic: True for a row of bicubic interpolation, a folder to take its images from there.

    Returns:
        dict: The content of comparison.json.

    Raises:
        OptionError: Something named does not exist or cannot be compared.
    """
    if crops < 1:
        raise OptionError(f'--crops {crops} leaves no picture to draw. Write how many images to show, at least 1.')
    groups, dataset = load_groups(root, entries, dataset)
    by_label = {group.label: group for group in groups}
    for label in (*([reference] if reference else []), *(pair or [])):
        if label not in by_label:
            raise OptionError(f'There is no label `{label}` here. Choose from: {", ".join(by_label)}.')
    if html and html.is_dir():
        raise OptionError(f'--html {html} is a folder. Write the name of a file, such as {html / "report.html"}.')
    reference, metrics = reference or groups[0].label, metrics_of(groups[0].runs[0])
    per_image = {metric: option for metric, option in metrics.items() if metric not in groups[0].runs[0].of_set}
    against = [versus(by_label[pair[0]], by_label[pair[1]], metric) for metric in per_image] if pair else []
    curve = load_curves(root, groups, curve_dataset, curve_metric)
    pictures = Pictures(root, groups[0].runs[0], dataset, bicubic if isinstance(bicubic, Path) else None)
    scores = score_bicubic(pictures, groups[0].runs[0]) if bicubic else {}
    places = choose_crops(groups, pictures)
    charts = {'curves': curve_chart(groups, curve), 'shares': share_charts(load_shares(root, groups))} if html else {}
    measure_networks(groups, size, reference)
    report = {'dataset': dataset, 'images': len(groups[0].runs[0].images), 'metrics': metrics, 'size': list(size),
              'reference': reference, 'device': _device_text(), 'versus': against,
              'intervals': intervals(groups, pair[1] if pair else reference, per_image),
              'self_ensemble': bool(groups[0].runs[0].opt['val'].get('self_ensemble')),
              'bicubic': scores, 'networks': [group_report(group, list(metrics)) for group in groups],
              'crops': places[:crops]}
    _write(out, groups, report, pictures, curve)
    if html:
        write_html(html, report, table_rows(groups, report, with_ms=False), notes(report), groups, pictures, places,
                   charts)
        print(f'The page to look at: {html}')
    return report


def _write(out: Path, groups: list[Group], report: dict[str, Any], pictures: Pictures,
           curve: tuple[str, str] | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    print(markdown(table_rows(groups, report, with_ms=True)) + '\n\n' + notes(report))
    written = ['table.md', 'table.csv', 'comparison.json']
    (out / 'table.md').write_text(markdown(table_rows(groups, report, with_ms=False)) + '\n\n' + notes(report) + '\n',
                                  encoding='utf-8')
    write_csv(out / 'table.csv', report)
    (out / 'comparison.json').write_text(json.dumps(report, indent=1) + '\n')
    metric, scores = next(iter(report['metrics'])), report['bicubic']
    if report['crops']:
        draw_crops([crop_row(crop, groups, pictures, metric, scores) for crop in report['crops']],
                   f'Where the outputs differ most; {metric} of the whole image', out / 'comparison.png')
        written.append('comparison.png')
    else:
        print('No comparison.png: the tests saved no images, or not all. Set val.save_img: true in the test files.')
    curves = {group.label: group_curve(group) for group in groups}
    curves = {label: points for label, points in curves.items() if points[0]}
    if curve and curves:
        line = bicubic_means(scores).get(curve[1]) if curve[0] == report['dataset'] else None
        draw_curves(curves, *curve, line, out / 'curve.png')
        written.append('curve.png')
    print(f'\nWritten to {out}: {", ".join(written)}')


def _device_text() -> str:
    return 'the GPU' if torch.cuda.is_available() else 'one CPU thread'


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split('x'))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f'{text} is no size. Write height and width, such as 128x128')
    return height, width


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='kd-compare', description='Compares any finished experiments.')
    parser.add_argument('entries', nargs='+', metavar='LABEL=NAME[,NAME...]',
                        help='experiments, several names for several seeds; * and ? are allowed')
    parser.add_argument('--root', type=Path, default=Path(), help='the folder of experiments/ and results/')
    parser.add_argument('--out', type=Path, help='default: results/compare of the root')
    parser.add_argument('--dataset', help='test set; default: the only one')
    parser.add_argument('--bicubic', nargs='?', const=True, default=False, type=Path, metavar='DIR',
                        help='add bicubic interpolation, made here or taken from a folder of images')
    parser.add_argument('--reference', metavar='LABEL', help='whose time is 1; default: the first')
    parser.add_argument('--versus', nargs=2, metavar=('A', 'B'), help='state the difference A minus B, paired')
    parser.add_argument('--size', type=_size, default=(128, 128), metavar='HxW',
                        help='LR size for MACs and time (default: 128x128)')
    parser.add_argument('--crops', type=int, default=4, metavar='N', help='images in comparison.png (default: 4)')
    parser.add_argument('--html', type=Path, metavar='FILE',
                        help='write a page to look at: table, curves and, for each image, a slider between any two')
    parser.add_argument('--curve-dataset', help='validation set of curve.png; default: the first')
    parser.add_argument('--curve-metric', help='metric of curve.png; default: the first')
    return parser


@reported
def main(argv: Sequence[str] | None = None) -> None:
    """The console script; `argv` is the command line without the program's name."""
    args = _parser().parse_args(argv)
    compare(args.root, args.entries, args.out or args.root / 'results' / 'compare', args.dataset, args.bicubic,
            args.reference, args.size, args.crops, args.versus, args.curve_dataset, args.curve_metric, args.html)


if __name__ == '__main__':
    main()
