"""The pictures of `kd-compare`."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np

matplotlib.use('Agg')  # no display is needed

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

DPI = 150
CROP = 48  # side of a crop in the pictures, in HR pixels


def widest_difference(images: Sequence[np.ndarray], size: int, step: int) -> tuple[int, int, float]:
    """The square window in which images differ most.

    Args:
        images: Two or more of one shape, (H, W, C) uint8.
        size: Side of the window.
        step: The corners considered are multiples of it.

    Returns:
        Top and left of the window, and the mean over its pixels of the variance among the images.
    """
    variance = np.var(np.stack(images).astype(np.float32), axis=0).mean(axis=-1)  # (H, W)
    sums = cv2.integral(variance.astype(np.float64))  # (H + 1, W + 1)
    height, width = (min(size, side) for side in variance.shape)
    means = (sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width])
    means = means[::step, ::step] / (height * width)
    top, left = np.unravel_index(int(means.argmax()), means.shape)
    return int(top) * step, int(left) * step, float(means.max())


def draw_crops(rows: Sequence[Sequence[tuple[str, np.ndarray]]], title: str, path: Path) -> None:
    """Writes rows of captioned BGR pictures; the first of a row is a whole image, the others are crops, enlarged."""
    side, columns = 1.7, len(rows[0])  # inches
    figure, axes = plt.subplots(len(rows), columns, squeeze=False, layout='constrained',
                                figsize=(side * (columns + .5), side * 1.3 * len(rows)),
                                width_ratios=[1.5] + [1.] * (columns - 1))
    for row, row_axes in zip(rows, axes, strict=True):
        for i, ((caption, img), axis) in enumerate(zip(row, row_axes, strict=True)):
            axis.imshow(cv2.cvtColor(img, cv2.COLOR_BGR2RGB), interpolation='nearest' if i else 'antialiased')
            axis.set_title(caption, fontsize=9)
            axis.axis('off')
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def settled_range(curves: Sequence[np.ndarray], bicubic: float | None) -> tuple[float, float]:
    """The range that shows the differences: of all values after the first third of each curve, with a margin."""
    shown = np.concatenate([values[:, values.shape[1] // 3:].ravel() for values in curves]
                           + ([[bicubic]] if bicubic is not None else []))
    shown = shown[np.isfinite(shown)]  # a training that diverged has nan
    if not len(shown):
        return 0., 1.
    margin = 0.08 * float(np.ptp(shown)) or 0.5
    return float(shown.min()) - margin, float(shown.max()) + margin


def draw_curves(curves: Mapping[str, tuple[Sequence[int], np.ndarray]], dataset: str, metric: str,
                bicubic: float | None, path: Path) -> None:
    """Writes the validation metric against the iteration: mean over the seeds and the range from lowest to highest.

    The first iterations may lie outside of the picture.

    Args:
        curves: Label -> iterations and values, (seeds, iterations).
        dataset: Name of the validation set.
        metric: Name of the metric.
        bicubic: A horizontal line for comparison.
        path: The PNG file.
    """
    figure, axis = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for label, (iterations, values) in curves.items():
        seeds = f' ({len(values)} seeds)' if len(values) > 1 else ''
        line, = axis.plot(iterations, values.mean(axis=0), marker='o', markersize=3, label=label + seeds)
        if len(values) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axis.fill_between(iterations, low, high, color=line.get_color(), alpha=.2, linewidth=0)
    if bicubic is not None:
        axis.axhline(bicubic, color='grey', linestyle='--', label='bicubic')
    axis.set_ylim(*settled_range([values for _, values in curves.values()], bicubic))
    axis.set(xlabel='iteration', ylabel=metric, title=f'{metric} on {dataset} while training')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=.3)
    axis.legend()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
