"""From which state a training goes on: the newest that is complete, on all processes the same."""
from __future__ import annotations

import os
from os import path as osp
from pathlib import Path
from typing import Any

from basicsr.utils import check_resume, get_root_logger

from kd_cli import processes
from kd_utils import checkpoint
from kd_utils.options import OptionError


def find_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The state to resume from, by `--auto_resume` or `path.resume_state`; None for a new training.

    It is looked for under the experiment's own folder and loaded on the CPU; the optimizers move their tensors. The
    paths of the networks become those of the state.

    Raises:
        CheckpointError: The state that was named is not complete.
        OptionError: None of the experiment's states is complete, or a network is not among them.
    """
    path = processes.agreed(lambda: _choose(opt))
    opt['path']['resume_state'] = path
    if path is None:
        return None
    state = checkpoint.load_state(path)
    check_resume(opt, state['iter'])
    for key in [key for key in opt if key.startswith('network_') and opt[key] is None]:
        del opt['path'][f'pretrain_{key}']  # check_resume does not see that there is no such network
    ignored = opt['path'].get('ignore_resume_networks') or ()
    for key in [key for key in opt if key.startswith('network_') and opt[key] is not None]:
        if key not in ignored:
            opt['path'][key.replace('network', 'strict_load')] = True  # a run's own weights fit, or are refused
        file = opt['path'].get(f'pretrain_{key}')
        if file and not osp.exists(file):
            raise OptionError(f'Resuming from {path} needs {file}, which is missing. If `{key}` is new, start a new '
                              'run from the old weights, by path.pretrain_network_g.')
    return state


def _choose(opt: dict[str, Any]) -> str | None:
    """The newest complete state of the experiment, else the one that the options name."""
    named = opt['path'].get('resume_state')
    states = _states(opt['path']['training_states']) if opt['auto_resume'] else []
    for path in states:
        try:
            _load_complete(opt, path)
        except checkpoint.CheckpointError as error:
            get_root_logger().warning(f'{path} is skipped. {error}')
        else:
            return path
    if states:
        raise OptionError(f'--auto_resume found {len(states)} states in {opt["path"]["training_states"]}, and none of '
                          'them is complete; the log above says why. Repair one, or give this run another `name`.')
    if named is not None:
        _load_complete(opt, named)
    elif opt['auto_resume'] and osp.isdir(opt['path']['experiments_root']):
        get_root_logger().warning(f'--auto_resume: {opt["path"]["experiments_root"]} has no state. A new run starts, '
                                  'and that folder is archived.')
    return named


def _states(folder: str) -> list[str]:
    """The states in a folder, the newest first."""
    names = [Path(name) for name in (os.listdir(folder) if osp.isdir(folder) else [])]
    iterations = sorted((int(name.stem) for name in names if name.suffix == '.state' and name.stem.isdigit()),
                        reverse=True)
    return [osp.join(folder, f'{iteration}.state') for iteration in iterations]


def _load_complete(opt: dict[str, Any], path: str) -> None:
    checkpoint.load_complete(path, opt['path']['models'], opt['path'].get('ignore_resume_networks') or ())


def set_aside_later(paths: dict[str, Any], iteration: int) -> None:
    """Renames the states that a run which goes back to an iteration leaves behind: --auto_resume would take them."""
    for path in _states(paths['training_states']):
        if int(Path(path).stem) > iteration:
            os.replace(path, f'{path}.old')
            get_root_logger().warning(f'This run goes back to iteration {iteration}: {path} is now {path}.old, so that '
                                      '--auto_resume does not take it.')


def remove_unfinished(paths: dict[str, Any]) -> None:
    """Deletes what a killed run was writing; this run holds the lock."""
    for folder in ('models', 'training_states'):
        for path in Path(paths[folder]).glob('*.tmp'):
            path.unlink(missing_ok=True)
