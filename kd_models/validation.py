"""Validation and tests: BasicSR's, with each image's metrics kept and the teacher as a possible reference."""
from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from itertools import chain, count
from os import path as osp
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from tqdm import tqdm

from kd_metrics import MetricUnavailable
from kd_models.adapters import Adapter
from kd_models.teacher import Teacher
from kd_utils.checkpoint import CheckpointWriteError
from kd_utils.schema import teacher_key, teacher_name


class ValidatedModel(SRModel):
    """The part of a model that looks at its generator: `test` and `nondist_validation` of BasicSR's SRModel.

    Attributes:
        adapter: How the generator is called.
        teachers: The frozen networks by name, `teacher` for that of the section `teacher`.
        validated: The last training iteration that was validated, `iter`, and its `metrics` by set and name.
        interrupted: Asked before each image; a validation that is interrupted is not reported, and not `validated`.
    """
    net_g: Any
    adapter: Adapter
    teachers: dict[str, Teacher]
    validated: dict[str, Any]

    def __init__(self, opt: dict[str, Any]) -> None:
        self.validated = {}
        self.interrupted: Callable[[], bool] = lambda: False
        super().__init__(opt)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher of the section `teacher`; None where there is none."""
        return self.teachers.get('teacher')

    def test(self) -> None:
        """`self.output` from `self.lq`, by the EMA generator where there is one."""
        net: Any = getattr(self, 'net_g_ema', self.net_g)
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = self._self_ensemble(net) if self._ensembles() else self.adapter(net, self.lq)
        net.train(training)

    def _ensembles(self) -> bool:
        return bool((self.opt.get('val') or {}).get('self_ensemble'))

    def _self_ensemble(self, net: Any) -> torch.Tensor:
        """The mean over the input's eight flips and rotations (Timofte et al. 2016), in eight passes."""
        total: Any = 0
        for turns in range(4):
            for flip in (False, True):
                x = torch.rot90(self.lq, turns, (2, 3))
                y = self.adapter(net, x.flip(3) if flip else x)
                total = total + torch.rot90(y.flip(3) if flip else y, -turns, (2, 3))
        return total / 8

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """BasicSR's validation; it keeps each image's metrics, has metrics of the whole set, and leaves out those
        that cannot be computed."""
        dataset = dataloader.dataset.opt['name']
        if self._metrics():
            self._initialize_best_metric_results(dataset)
        measured = _Measured(dataset, self._metrics(), self._left_out())
        for data in tqdm(dataloader, unit='image', disable=not self.opt['val'].get('pbar', False), leave=False):
            if self.interrupted():
                return
            name = _unused_name(data['lq_path'][0], measured.images)
            if hasattr(self, 'gt'):
                del self.gt  # of the training batch or the image before
            self.feed_data(data)
            self.test()
            image = tensor2img([self.output.cpu()])
            if save_img:
                write_image(image, self._image_path(dataset, name, current_iter))
            measured.add(name, image, self._reference)
        self._report_metrics(measured, current_iter, tb_logger)

    def _initialize_best_metric_results(self, dataset_name: str) -> None:
        """As BasicSR's; a resumed run may have metrics that its state has not."""
        super()._initialize_best_metric_results(dataset_name)
        for metric, option in self._metrics().items():
            better = option.get('better', 'higher')
            worst = float('-inf') if better == 'higher' else float('inf')
            self.best_metric_results[dataset_name].setdefault(metric, {'better': better, 'val': worst, 'iter': -1})

    def _metrics(self) -> dict[str, dict[str, Any]]:
        return (self.opt.get('val') or {}).get('metrics') or {}

    def _left_out(self) -> dict[tuple[str, str], str]:
        """(dataset, metric) -> why it is left out for the rest of the run."""
        return self.__dict__.setdefault('_metrics_left_out', {})

    def _reference(self, source: str) -> np.ndarray | None:
        if source == 'gt':
            return tensor2img([self.gt.cpu()]) if hasattr(self, 'gt') else None
        return tensor2img([self.teachers[teacher_name(teacher_key(source))].generate(self.lq)[0].cpu()])

    def _image_path(self, dataset: str, name: str, current_iter: int | str) -> str:
        root = self.opt['path']['visualization']
        if self.opt['is_train']:
            return osp.join(root, name, f'{name}_{current_iter}.png')
        return osp.join(root, dataset, f'{name}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _report_metrics(self, measured: _Measured, current_iter: int | str, tb_logger: Any) -> None:
        dataset = measured.dataset
        if self._ensembles():
            get_root_logger().warning(f'{dataset}: x8 self-ensemble is on, eight passes per image.')
        self.metric_results = measured.means()
        if self.validated.get('iter') != current_iter:
            self.validated = {'iter': current_iter, 'metrics': {}}
        self.validated['metrics'][dataset] = dict(self.metric_results)
        if not self.metric_results:
            return
        for metric, value in self.metric_results.items():
            self._update_best_metric_result(dataset, metric, value, current_iter)
        self._log_validation_metric_values(current_iter, dataset, tb_logger)
        self._write_metrics(dataset, measured.images, current_iter)

    def _write_metrics(self, dataset: str, images: dict[str, dict[str, float]], current_iter: int | str) -> None:
        """For `kd-compare`: a line per validation while training, a file with each image's values in a test."""
        if self.opt['is_train']:
            line = {'iter': current_iter, 'dataset': dataset, 'metrics': self.metric_results}
            line.update({'self_ensemble': True} if self._ensembles() else {})
            _append_line(osp.join(self.opt['path']['experiments_root'], 'validation.jsonl'), json.dumps(line))
            return
        root = self.opt['path'].get('results_root') or osp.dirname(self.opt['path']['visualization'])
        with open(osp.join(root, f'metrics_{dataset}.json'), 'w') as file:
            json.dump({'dataset': dataset, 'self_ensemble': self._ensembles(), 'mean': self.metric_results,
                       'images': images}, file, indent=1)


def write_image(image: np.ndarray, path: str) -> None:
    """BasicSR's imwrite; OpenCV does not say why it fails.

    Raises:
        CheckpointWriteError: The image cannot be written.
    """
    try:
        imwrite(image, path)
    except OSError as error:
        raise CheckpointWriteError(f'{path} could not be written ({error}). Make room or set the permissions, then go '
                                   'on; a training goes on with --auto_resume.') from None


def _unused_name(path: str, used: Container[str]) -> str:
    """The stem of an image's path; with its ending or a number where an image before has the same."""
    stem, extension = osp.splitext(osp.basename(path))
    numbered = (f'{stem}_{i}{extension}' for i in count(2))
    return next(name for name in chain((stem, f'{stem}{extension}'), numbered) if name not in used)


def _append_line(path: str, line: str) -> None:
    """Adds a line; one that a killed run left unfinished is ended first."""
    with open(path, 'ab+') as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read() != b'\n':
                file.write(b'\n')
        file.write(line.encode() + b'\n')


class _Measured:
    """The metrics of one pass over a set.

    Args:
        dataset: Name of the set.
        options: Metric -> its options.
        left_out: (dataset, metric) -> why, for the rest of the run; a metric that is unavailable is added, logged once.

    Attributes:
        images: Image -> metric -> value.
    """

    def __init__(self, dataset: str, options: dict[str, dict[str, Any]], left_out: dict[tuple[str, str], str]) -> None:
        self.dataset, self.options, self.left_out = dataset, options, left_out
        self.images: dict[str, dict[str, float]] = {}
        self.of_set: dict[str, Any] = {}
        self.failed = {metric for of_dataset, metric in left_out if of_dataset == dataset}
        for name, option in self._possible():
            if measures_a_set(option):
                arguments = {key: value for key, value in option.items() if key not in ('type', 'better', 'reference')}
                with self._leaving_out(name):
                    self.of_set[name] = METRIC_REGISTRY.get(option['type'])(**arguments)

    def add(self, image: str, img: np.ndarray, reference: Callable[[str], np.ndarray | None]) -> None:
        """Measures an image, (H, W, C) uint8 BGR, against `reference('gt')` or a teacher's `reference(NAME)`."""
        references: dict[str, np.ndarray | None] = {}
        values = self.images[image] = {}
        for name, option in self._possible():
            source = option.get('reference', 'gt')
            if source not in references:
                references[source] = reference(source)
            data = {'img': img} if references[source] is None else {'img': img, 'img2': references[source]}
            with self._leaving_out(name, image):
                if name in self.of_set:
                    self.of_set[name].update(**data)
                elif 'img2' not in data and _needs_reference(option):
                    raise MetricUnavailable('There is no ground truth to compare with.')
                else:
                    values[name] = float(calculate_metric(data, {k: v for k, v in option.items() if k != 'reference'}))
                    if math.isnan(values[name]):
                        raise MetricUnavailable(f'It is not a number for {image}, which may be too small for it.')

    def means(self) -> dict[str, float]:
        """Metric -> mean over the images, or value of the set."""
        values: dict[str, float] = {}
        for name, _ in self._possible() if self.images else []:
            with self._leaving_out(name):
                values[name] = float(self.of_set[name].compute()) if name in self.of_set else \
                    sum(of_image[name] for of_image in self.images.values()) / len(self.images)
                if math.isnan(values[name]):
                    del values[name]
                    raise ValueError('it is not a number')
        return values

    def _possible(self) -> list[tuple[str, dict[str, Any]]]:
        return [item for item in self.options.items() if item[0] not in self.failed]

    @contextmanager
    def _leaving_out(self, metric: str, image: str = 'the whole set') -> Iterator[None]:
        """A metric that fails is left out with its values so far; it must not end a run of days."""
        try:
            yield
        except MetricUnavailable as error:
            if (metric, str(error)) not in [(name, reason) for (_, name), reason in self.left_out.items()]:
                get_root_logger().warning(f'{self.dataset}: the metric {metric} is left out. {error}')
            self.left_out[self.dataset, metric] = str(error)
            self._forget(metric)
        except Exception as error:  # noqa: BLE001  a metric of another project may raise anything
            get_root_logger().warning(f'{self.dataset}: the metric {metric} is left out of this validation, it failed '
                                      f'on {image} ({type(error).__name__}: {error}).', exc_info=True)
            self._forget(metric)

    def _forget(self, metric: str) -> None:
        self.failed.add(metric)
        for values in self.images.values():
            values.pop(metric, None)


def measures_a_set(metric_opt: dict[str, Any]) -> bool:
    """Whether a metric is of the whole set, not of single images: a class, see kd_metrics."""
    return inspect.isclass(METRIC_REGISTRY.get(metric_opt['type']))


def _needs_reference(metric_opt: dict[str, Any]) -> bool:
    argument = inspect.signature(METRIC_REGISTRY.get(metric_opt['type'])).parameters.get('img2')
    return argument is not None and argument.default is inspect.Parameter.empty
