"""Validation and tests: BasicSR's, with each image's metrics kept and the teacher as a possible reference."""
from __future__ import annotations

import inspect
import json
import os
from collections.abc import Container
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

from kd_models.adapters import Adapter
from kd_models.teacher import Teacher


class ValidatedModel(SRModel):
    """The part of a model that looks at its generator: `test` and `nondist_validation` of BasicSR's SRModel.

    Attributes:
        adapter: How the generator is called.
        teacher: The frozen networks, None where there are none.
    """
    net_g: Any
    adapter: Adapter
    teacher: Teacher | None

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
        """BasicSR's validation; it keeps each image's metrics and leaves out those that need a missing GT."""
        dataset = dataloader.dataset.opt['name']
        if self._metrics():
            self._initialize_best_metric_results(dataset)
        images: dict[str, dict[str, float]] = {}
        for data in tqdm(dataloader, unit='image', disable=not self.opt['val'].get('pbar', False), leave=False):
            name = _unused_name(data['lq_path'][0], images)
            if hasattr(self, 'gt'):
                del self.gt  # of the training batch or the image before
            self.feed_data(data)
            self.test()
            image = tensor2img([self.output.cpu()])
            if save_img:
                imwrite(image, self._image_path(dataset, name, current_iter))
            images[name] = self._measure(image)
        self._report_metrics(dataset, images, current_iter, tb_logger)

    def _metrics(self) -> dict[str, dict[str, Any]]:
        return (self.opt.get('val') or {}).get('metrics') or {}

    def _measure(self, image: np.ndarray) -> dict[str, float]:
        """The metrics of the current image against the ground truth, or the teacher's image (`reference: teacher`)."""
        values, references = {}, {}
        for name, option in self._metrics().items():
            source = option.get('reference', 'gt')
            if source not in references:
                references[source] = self._reference(source)
            reference = {} if references[source] is None else {'img2': references[source]}
            if reference or not _needs_reference(option):
                option = {key: value for key, value in option.items() if key != 'reference'}
                values[name] = float(calculate_metric({'img': image, **reference}, option))
        return values

    def _reference(self, source: str) -> np.ndarray | None:
        if source == 'gt':
            return tensor2img([self.gt.cpu()]) if hasattr(self, 'gt') else None
        assert self.teacher is not None
        return tensor2img([self.teacher.generate(self.lq)[0].cpu()])

    def _image_path(self, dataset: str, name: str, current_iter: int | str) -> str:
        root = self.opt['path']['visualization']
        if self.opt['is_train']:
            return osp.join(root, name, f'{name}_{current_iter}.png')
        return osp.join(root, dataset, f'{name}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _report_metrics(self, dataset: str, images: dict[str, dict[str, float]], current_iter: int | str,
                        tb_logger: Any) -> None:
        measured = next(iter(images.values()), {})
        if self._ensembles():
            get_root_logger().warning(f'{dataset}: x8 self-ensemble is on, eight passes per image.')
        skipped = [metric for metric in self._metrics() if metric not in measured]
        if skipped:
            get_root_logger().warning(f'{dataset} has no ground truth; left out: {", ".join(skipped)}.')
        self.metric_results = {metric: sum(values[metric] for values in images.values()) / len(images)
                               for metric in measured}
        if not self.metric_results:
            return
        for metric, value in self.metric_results.items():
            self._update_best_metric_result(dataset, metric, value, current_iter)
        self._log_validation_metric_values(current_iter, dataset, tb_logger)
        self._write_metrics(dataset, images, current_iter)

    def _write_metrics(self, dataset: str, images: dict[str, dict[str, float]], current_iter: int | str) -> None:
        """For `kd-compare`: a line per validation while training, a file with each image's values in a test."""
        if self.opt['is_train']:
            line = {'iter': current_iter, 'dataset': dataset, 'metrics': self.metric_results}
            _append_line(osp.join(self.opt['path']['experiments_root'], 'validation.jsonl'), json.dumps(line))
            return
        root = self.opt['path'].get('results_root') or osp.dirname(self.opt['path']['visualization'])
        with open(osp.join(root, f'metrics_{dataset}.json'), 'w') as file:
            json.dump({'dataset': dataset, 'self_ensemble': self._ensembles(), 'mean': self.metric_results,
                       'images': images}, file, indent=1)


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


def refers_to_teacher(metric_opt: dict[str, Any]) -> bool:
    return metric_opt.get('reference') == 'teacher'


def _needs_reference(metric_opt: dict[str, Any]) -> bool:
    argument = inspect.signature(METRIC_REGISTRY.get(metric_opt['type'])).parameters.get('img2')
    return argument is not None and argument.default is inspect.Parameter.empty
