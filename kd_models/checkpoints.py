"""The checkpoints of a run: networks, what each process has of its own, and the state that commits them."""
from __future__ import annotations

from collections.abc import Mapping
from os import path as osp
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import Tensor, nn

from kd_models.averaging import averaged, go_on
from kd_models.degradation import Degradation
from kd_models.retention import obsolete, remove
from kd_models.training import Training
from kd_utils import checkpoint
from kd_utils.options import OptionError, Options


def metric_of_best(opt: Options) -> list[Any]:
    """The metric of `logger.keep_best` with its options."""
    metric = opt['logger'].get('keep_best')
    return [metric, _metrics(opt).get(metric)]


def value_of_best(opt: Options, validated: Mapping[str, Any], iteration: int) -> float | None:
    """What `logger.keep_best` goes by, if it was measured at that iteration.

    Args:
        opt: All options.
        validated: The last iteration that was validated, `iter`, and its `metrics` by set and name.
        iteration: Of the checkpoint.
    """
    metric = opt['logger'].get('keep_best')
    measured = validated['metrics'] if validated.get('iter') == iteration else {}
    return next((of_set[metric] for of_set in measured.values() if metric in of_set), None)


def _metrics(opt: Options) -> dict[str, dict[str, Any]]:
    return (opt.get('val') or {}).get('metrics') or {}


class Checkpoints:
    """Writes and restores checkpoints.

    Args:
        training: What is trained.
    """

    def __init__(self, training: Training) -> None:
        self.training, self.opt = training, training.opt

    # ------------------------------------------------------------------------------------------------------ saving

    def save_networks(self, iteration: int) -> dict[str, checkpoint.Record]:
        """Writes net_g (`params`, `params_ema`) and net_d; iteration -1 is called `latest`.

        Returns:
            dict: File name in the experiment's folder -> its record.

        Raises:
            CheckpointWriteError: A file cannot be written.
        """
        training = self.training
        generators = {'params': training.net_g}
        if training.net_g_ema is not None:
            generators['params_ema'] = training.net_g_ema
        files = self._write_network(generators, 'net_g', iteration)
        if training.net_d is not None:
            files |= self._write_network({'params': training.net_d}, 'net_d', iteration)
        return files

    def save(self, epoch: int, iteration: int, own: dict[str, Any], progress: dict[str, Any]) -> None:
        """Writes all files of a checkpoint and then the training state, which commits them.

        Args:
            epoch: The epoch that the run is in.
            iteration: The iteration that is done.
            own: What a method's next iteration depends on besides networks and optimizers; each process has its own.
            progress: `best_metric_results` and `validated` of the validation.

        Raises:
            CheckpointWriteError: A file cannot be written; older checkpoints are as they were.
        """
        with averaged(self.training.optimizers) as trained:
            self._save(epoch, iteration, {'own': own, 'trained': trained, **progress})

    def _save(self, epoch: int, iteration: int, content: dict[str, Any]) -> None:
        training, own, files = self.training, content['own'], dict[str, checkpoint.Record]()
        if self.opt['rank'] == 0:
            files |= self.save_networks(iteration)
        if training.degradation is not None:
            files |= self._write_own('pool', training.degradation.state(), iteration)
        if self.opt['rank'] > 0:  # what the first process has of its own is in the state and the networks
            files |= self._write_own('own', {'own': own, 'buffers': self._buffers()}, iteration)
        for of_process in training.runtime.gather(files):  # nothing is committed before all of them have written
            files |= of_process
        self._save_state(epoch, iteration, content, files)

    def _path_of_own(self, folder: str, kind: str, iteration: int) -> str:
        """What each process has of its own lies beside the state: training pair pool, a method's state, statistics."""
        return osp.join(folder, f'{iteration}_{kind}_{self.opt["rank"]}.pth')

    def _write_own(self, kind: str, content: dict[str, Any], iteration: int) -> dict[str, checkpoint.Record]:
        path = self._path_of_own(self.opt['path']['training_states'], kind, iteration)
        return {f'training_states/{osp.basename(path)}': checkpoint.save(content, path)}

    def _write_network(self, nets: dict[str, nn.Module], label: str, iteration: int) -> dict[str, checkpoint.Record]:
        """One file with the networks by key."""
        states = {key: {name: value.cpu() for name, value in net.state_dict().items()} for key, net in nets.items()}
        name = f'{label}_{"latest" if iteration == -1 else iteration}.pth'
        return {f'models/{name}': checkpoint.save(states, osp.join(self.opt['path']['models'], name))}

    @master_only
    def _save_state(self, epoch: int, iteration: int, content: dict[str, Any],
                    files: dict[str, checkpoint.Record]) -> None:
        """BasicSR's state, and beside it what exact resuming needs; then older checkpoints may go."""
        training = self.training
        training.kept[iteration] = value_of_best(self.opt, content['validated'], iteration)
        state = {'epoch': epoch, 'iter': iteration,
                 'optimizer_types': [type(optimizer).__name__ for optimizer in training.optimizers],
                 'optimizers': [optimizer.state_dict() for optimizer in training.optimizers],
                 'schedulers': [scheduler.state_dict() for scheduler in training.schedulers],
                 'aux': training.aux.state_dict(),
                 'stages': training.stages.plan(),
                 **content,
                 'kept': training.kept,
                 'kept_by': metric_of_best(self.opt),
                 'files': files}
        checkpoint.save_state(state, osp.join(self.opt['path']['training_states'], f'{iteration}.state'))
        self._remove_old(iteration)

    def _remove_old(self, iteration: int) -> None:
        """Deletes what `logger.keep_last` and `keep_best` do not ask for, once the newest can be read back."""
        last = self.opt['logger'].get('keep_last')
        if not last:
            return
        better = _metrics(self.opt).get(self.opt['logger'].get('keep_best'), {}).get('better', 'higher')
        folders, old = self.opt['path'], obsolete(self.training.kept, last, better)
        if old:
            checkpoint.load_complete(osp.join(folders['training_states'], f'{iteration}.state'), folders['models'])
        for iteration in old:
            remove(folders['experiments_root'], iteration)
            del self.training.kept[iteration]

    # ---------------------------------------------------------------------------------------------------- resuming

    def resume(self, state: dict[str, Any]) -> dict[str, Any]:
        """Restores optimizers, schedulers, training-only modules, statistics, pool, and which checkpoints are kept.

        The schedule itself is the YAML's, so that a run can be extended; the state says where in it the run is.

        Returns:
            dict: What the method had of its own.

        Raises:
            OptionError: The state is of a run with other networks, losses or optimizers.
        """
        training = self.training
        self._check(state)
        for optimizer, saved in zip(training.optimizers, state['optimizers'], strict=True):
            # `fused` is this device's, not that of the machine which saved the state
            groups = [{**group, 'fused': present['fused']} if 'fused' in present else group
                      for group, present in zip(saved['param_groups'], optimizer.param_groups, strict=True)]
            optimizer.load_state_dict({**saved, 'param_groups': groups})
        for scheduler, saved in zip(training.schedulers, state['schedulers'], strict=False):
            scheduler.__dict__.update({key: saved[key] for key in ('last_epoch', '_step_count', '_last_lr')})
        training.aux.load_state_dict(state.get('aux', {}))
        for optimizer, trained in zip(training.optimizers, state.get('trained', []), strict=False):
            go_on(optimizer, trained)
        plan = training.stages.plan()
        if state.get('stages', plan) != plan:
            get_root_logger().warning('`train.stages` are not those of the state. Iterations go on by the new ones; '
                                      'what a stage does at its beginning is not done for those that have begun.')
        training.kept = state.get('kept', {})
        if state.get('kept_by') != metric_of_best(self.opt):
            training.kept = dict.fromkeys(training.kept)  # values of another metric say nothing about this one
        if training.degradation is not None:
            self._resume_pool(training.degradation, state['iter'])
        return self._resume_own(state)

    def _buffers(self) -> dict[str, dict[str, Tensor]]:
        """Those of networks that are not frozen: batch normalisation has statistics of its own on each process."""
        training = self.training
        ema = {} if training.net_g_ema is None else {'net_g_ema': training.net_g_ema}
        return {name: dict(net.named_buffers()) for name, net in {**training.trained, **ema}.items()}

    def _resume_own(self, state: dict[str, Any]) -> dict[str, Any]:
        """The statistics and the method's state; the first process's for those that the stopped run did not have."""
        path = self._path_of_own(self._folder_of_state(), 'own', state['iter'])
        if self.opt['rank'] == 0 or not osp.exists(path):
            return state.get('own', {})
        content, nets = checkpoint.load(path), self._buffers()
        for name in nets.keys() & content['buffers'].keys():
            for key, buffer in nets[name].items():
                buffer.copy_(content['buffers'][name][key])
        return content['own']

    def _folder_of_state(self) -> str:
        return osp.dirname(self.opt['path'].get('resume_state') or '')

    def _resume_pool(self, degradation: Degradation, iteration: int) -> None:
        path = self._path_of_own(self._folder_of_state(), 'pool', iteration)
        lacking, why = 0., 'on another process than the first'
        try:
            degradation.load_state(checkpoint.load(path))
        except (checkpoint.CheckpointError, RuntimeError, KeyError, ValueError) as error:
            lacking, why = 1., str(error)
        runtime = self.training.runtime
        if runtime.mean(torch.tensor(lacking, device=runtime.device)) > 0:  # only the first process has a log
            get_root_logger().warning('The training pair pool starts empty, so that this run is not exactly the '
                                      f'uninterrupted one. ({why})')

    def _check(self, state: dict[str, Any]) -> None:
        def sizes(optimizers: list[dict[str, Any]]) -> list[list[int]]:
            return [[len(group['params']) for group in optimizer['param_groups']] for optimizer in optimizers]

        def shapes(aux: dict[str, Tensor]) -> dict[str, torch.Size]:
            return {name: value.shape for name, value in aux.items()}

        optimizers = self.training.optimizers
        types = [type(optimizer).__name__ for optimizer in optimizers]
        same = (sizes(state['optimizers']) == sizes([optimizer.state_dict() for optimizer in optimizers])
                and state.get('optimizer_types', types) == types
                and shapes(state.get('aux', {})) == shapes(self.training.aux.state_dict()))
        if not same:
            raise OptionError(f'The state of iteration {state["iter"]} is of a run with other networks, losses or '
                              'optimizers than this YAML file. Resume with the options.yml beside it, or start a new '
                              'run from its weights, by path.pretrain_network_g.')
