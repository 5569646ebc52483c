"""The page of `kd-compare --html`: one file that needs no network, with a slider between any two networks."""
from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kd_cli.figures import CROP, settled_range
from kd_cli.results import Group, Pictures, group_curve

TEMPLATE = Path(__file__).with_suffix('.html')
ROOM = 100_000_000  # bytes of pictures in one page; a telephone's browser still opens it
WEBP_SIDE = 16383  # pixels, the format's limit
BICUBIC, GROUND_TRUTH = 'bicubic', 'ground truth'


def write_html(path: Path, report: Mapping[str, Any], rows: Sequence[Sequence[str]], text: str,
               groups: Sequence[Group], pictures: Pictures, places: Sequence[Mapping[str, Any]],
               charts: Mapping[str, Any]) -> None:
    """Writes the page.

    Args:
        path: The HTML file.
        report: The content of comparison.json.
        rows: The table, header first.
        text: What stands below the table, paragraphs separated by empty lines.
        groups: The labels with their runs; the outputs of each first run are shown.
        pictures: The images.
        places: What `choose_crops` found, for all images; none if outputs were not saved.
        charts: What `curve_chart` and `share_charts` return, as `curves` and `shares`.
    """
    viewer, blocks, left_out = _viewer(report, groups, pictures, places)
    parts = {'TITLE': escape(f'Comparison on {report["dataset"]}'),
             'TABLE': _table(rows, report['intervals'], report['metrics']),
             'NOTES': ''.join(f'<p class="quiet"><small>{escape(part)}</small></p>' for part in text.split('\n\n')),
             'LEFT_OUT': escape(left_out), 'PICTURES': '\n'.join(blocks),
             'DATA': json.dumps(_finite({**viewer, **charts}), allow_nan=False).replace('<', '\\u003c')}
    page = TEMPLATE.read_text(encoding='utf-8')
    before, *pieces = page.split('@@')  # @@NAME@@: what is filled in may have any text in it
    filled = [parts[piece] if i % 2 == 0 else piece for i, piece in enumerate(pieces)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + ''.join(filled), encoding='utf-8')


def worst_and_best(differences: Mapping[str, float | None], sign: int) -> list[str]:
    """Images in the order worst, best, second worst, second best ...; those without a number last.

    The page orders the images so for the two networks that its reader chooses. Here it decides which images are in it.

    Args:
        differences: Image -> how far the metric of one network is above another's.
        sign: -1 where lower is better, else 1.
    """
    known = {image: sign * value for image, value in differences.items() if value is not None and math.isfinite(value)}
    order = sorted(known, key=lambda image: known[image])
    half = (len(order) + 1) // 2
    best = order[:half - 1:-1]
    both = [image for i in range(half) for image in (order[i], *best[i:i + 1])]
    return both + [image for image in differences if image not in known]


def curve_chart(groups: Sequence[Group], curve: tuple[str, str] | None) -> dict[str, Any] | None:
    """The validation curves: mean, lowest and highest value over the runs of each label; None where there are none."""
    curves = {group.label: group_curve(group) for group in groups}
    curves = {label: points for label, points in curves.items() if points[0]}
    if curve is None or not curves:
        return None
    lines = [{'label': label, 'x': iterations, 'y': values.mean(axis=0), 'low': values.min(axis=0),
              'high': values.max(axis=0)} for label, (iterations, values) in curves.items()]
    return {'title': f'{curve[1]} on {curve[0]}', 'lines': lines,
            'range': settled_range([values for _, values in curves.values()], None)}


def share_charts(shares: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A chart for each label: the share of each loss at each iteration; the legend has the last share and cosine.

    Args:
        shares: Label -> logged shares of the gradient, as `load_shares` returns them.
    """
    return [{'label': label, 'lines': [_share_line(loss, logged) for loss in logged[-1]['shares']]}
            for label, logged in shares.items() if logged]


def _share_line(loss: str, logged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last, known = logged[-1]['shares'][loss], [line for line in logged if loss in line['shares']]
    cosine = last.get('cosine')
    text = f', cosine {cosine:+.2f}'.replace('-', '−') if cosine is not None else ''
    return {'label': f'{loss} {100 * last["share"]:.0f} %{text}', 'x': [line['iter'] for line in known],
            'y': [line['shares'][loss]['share'] for line in known]}


def _viewer(report: Mapping[str, Any], groups: Sequence[Group], pictures: Pictures,
            places: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str], str]:
    """What the slider is told, its pictures as HTML, and a sentence on images that are not there."""
    better = {metric: option.get('better', 'higher') for metric, option in report['metrics'].items()
              if metric not in groups[0].runs[0].of_set}
    middles = {place['image']: [place['left'] + CROP / 2, place['top'] + CROP / 2] for place in places}
    scores = {image: _scores(image, groups, report['bicubic']) for image in middles}
    metric, pair = next(iter(better), ''), _first_pair(groups, report['versus'])
    differences = {image: _difference(of, pair, metric) for image, of in scores.items()}
    ranked = worst_and_best(differences, -1 if better.get(metric) == 'lower' else 1)
    blocks, sizes = _embedded(ranked, groups, pictures)
    images = [{'name': image, 'size': size, 'scores': scores[image], 'middle': middles[image]}
              for image, size in zip(ranked, sizes, strict=False)]
    labels = _outputs(ranked[0], groups, pictures) if ranked else {}
    viewer = {'labels': list(labels), 'pair': pair, 'better': better, 'images': images}
    return viewer, blocks, _left_out(ranked[len(images):])


def _scores(image: str, groups: Sequence[Group],
            bicubic: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    return {BICUBIC: bicubic.get(image, {}), **{group.label: group.runs[0].images[image] for group in groups}}


def _first_pair(groups: Sequence[Group], versus: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the slider shows at first, left and right: those of --versus, else the first and the last label."""
    if versus:
        return [versus[0]['b'], versus[0]['a']]
    return [groups[0].label if len(groups) > 1 else BICUBIC, groups[-1].label]


def _difference(scores: Mapping[str, Mapping[str, float]], pair: Sequence[str], metric: str) -> float | None:
    """Right minus left; where the left one was not measured, the right one."""
    left, right = (scores[label].get(metric) for label in pair)
    return right - left if left is not None and right is not None else right


def _outputs(image: str, groups: Sequence[Group], pictures: Pictures) -> dict[str, np.ndarray]:
    """Label -> BGR picture, in the order of the page's lists."""
    outputs = {BICUBIC: pictures.bicubic(image),
               **{group.label: pictures.output(group.runs[0], image) for group in groups},
               GROUND_TRUTH: pictures.gt(image)}
    return {label: picture for label, picture in outputs.items() if picture is not None}


def _embedded(ranked: Sequence[str], groups: Sequence[Group],
              pictures: Pictures) -> tuple[list[str], list[tuple[int, int]]]:
    """The pictures of the first images as HTML, as many as there is room for, and the images' sizes (W, H)."""
    blocks: list[str] = []
    sizes: list[tuple[int, int]] = []
    room = ROOM
    for i, image in enumerate(ranked):
        outputs = list(_outputs(image, groups, pictures).values())
        urls = [_data_url(output) for output in outputs]
        room -= sum(map(len, urls))
        if room < 0 and sizes:
            break
        blocks += [f'<script type="text/plain" id="picture-{i}-{j}">{url}</script>' for j, url in enumerate(urls)]
        sizes.append((outputs[-1].shape[1], outputs[-1].shape[0]))
    return blocks, sizes


def _data_url(img: np.ndarray) -> str:
    """The picture without loss."""
    kind, options = ('webp', [cv2.IMWRITE_WEBP_QUALITY, 101]) if max(img.shape) <= WEBP_SIDE else ('png', [])
    encoded = cv2.imencode(f'.{kind}', img, options)[1].tobytes()
    return f'data:image/{kind};base64,{base64.b64encode(encoded).decode()}'


def _left_out(images: Sequence[str]) -> str:
    if not images:
        return ''
    return (f'For their size {len(images)} more images are not in this page: {", ".join(images)}. '
            'They are those with the most ordinary numbers.')


def _table(rows: Sequence[Sequence[str]], intervals: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The table of `table_rows`, below each mean its difference to the baseline, and what that is."""
    header = rows[0]
    # on a telephone only the first columns are in sight
    order = [0, *sorted(range(1, len(header)), key=lambda i: header[i] not in metrics)]
    html = '<tr>' + ''.join(f'<th scope="col">{escape(header[i])}</th>' for i in order) + '</tr>'
    for row in rows[1:]:
        differences = intervals['networks'].get(row[0], {})
        html += '<tr>' + ''.join(f'<td>{escape(row[i])}{_interval(differences.get(header[i]))}</td>'
                                 for i in order) + '</tr>'
    note = (f'<p class="quiet"><small>Below a mean: minus {escape(intervals["baseline"])}, with the 95 % interval by '
            'bootstrap over the images; ▲ better, ▼ worse, where the interval excludes 0.</small></p>')
    return f'<div class="wide"><table>{html}</table></div>' + note * any(intervals['networks'].values())


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ''
    low, high = found['interval']
    better = 'down' if (high < 0) != (found['better'] == 'lower') else 'up'
    mark = {'up': '▲ ', 'down': '▼ '}[better] if low > 0 or high < 0 else ''
    return (f'<small class="{better if mark else ""}">{mark}{found["difference"]:+.3g}<br>'
            f'[{low:+.3g}, {high:+.3g}]</small>').replace('-', '−')


def _finite(value: Any) -> Any:
    """The value for JSON: arrays as lists, a number that is none or infinite as null."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_finite(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
