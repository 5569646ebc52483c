"""The processes of torchrun or slurm: how they start, agree and notice that one of them is gone."""
from __future__ import annotations

import datetime
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from basicsr.utils.dist_util import get_dist_info
from torch import distributed as dist

from kd_data.draws import seed_everything
from kd_models.guard import TrainingError
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError

Value = TypeVar('Value')
# Of the processes that wait for the first one's validation. One that dies is noticed by its connection, not by this.
_PATIENCE = datetime.timedelta(days=7)


class ProcessLost(RuntimeError):
    """Another process of the job has ended."""


def start(opt: dict[str, Any], args: Any) -> None:
    """Joins the other processes, over nccl, or gloo without a GPU, and seeds this one."""
    opt['dist'] = args.launcher != 'none'
    if opt['dist']:
        _init_process_group(args.launcher, use_gpu=opt['num_gpu'] != 0)
    opt['rank'], opt['world_size'] = get_dist_info()
    if opt['datasets'].get('train', {}).get('prefetch_mode') == 'cuda' and opt['num_gpu'] == 0:
        args.messages.append('datasets.train.prefetch_mode is cuda, but no GPU is used: batches are loaded plainly.')
    if opt['num_gpu'] > 1 and not opt['dist']:
        args.messages.append(f'num_gpu is {opt["num_gpu"]}, but one process uses one device. '
                             f'For more: torchrun --nproc_per_node={opt["num_gpu"]} train.py ... --launcher pytorch')
        opt['num_gpu'] = 1
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0 and not opt['auto_resume']:
        args.messages.append('torchrun has restarted the processes: they go on from the newest saved state.')
        opt['auto_resume'] = True
    if opt.get('manual_seed') is None:
        opt['manual_seed'] = agreed(lambda: random.randint(1, 10000))
    seed_everything(opt['manual_seed'], opt['rank'])


def _init_process_group(launcher: str, use_gpu: bool) -> None:
    if launcher == 'slurm':
        if not use_gpu:
            raise OptionError('--launcher slurm needs a GPU for each process, and none is used. Without GPUs start '
                              'torchrun --nproc_per_node=2 train.py -opt X.yml --launcher pytorch')
        from basicsr.utils.dist_util import init_dist
        init_dist('slurm')
        return
    if 'RANK' not in os.environ:
        raise OptionError('--launcher pytorch needs the variables that torchrun sets. '
                          'Start it so: torchrun --nproc_per_node=2 train.py -opt X.yml --launcher pytorch')
    if use_gpu:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']) % torch.cuda.device_count())
    backend, restarts = 'nccl' if use_gpu else 'gloo', os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if restarts == '0':
        dist.init_process_group(backend)
        return
    # with --master_port the store outlives a restart, and with it the addresses of processes that are dead
    store, rank, processes = next(dist.rendezvous('env://'))
    dist.init_process_group(backend, store=dist.PrefixStore(f'restart_{restarts}', store), rank=rank,
                            world_size=processes)


def stop() -> None:
    """Leaves the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agreed(decide: Callable[[], Value]) -> Value:
    """What the first process decides, for all of them; its OptionError or CheckpointError is everybody's."""
    rank, processes = get_dist_info()
    if processes == 1:
        return decide()
    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [decide()]
        except (ValueError, RuntimeError) as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


class Meeting:
    """Where all processes meet once per iteration, after the validation, however long that takes the first one."""

    def __init__(self) -> None:
        self.group: Any = dist.new_group(backend='gloo', timeout=_PATIENCE) if dist.is_initialized() else None

    def anyone(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.group is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        return bool(flags[0])


@contextmanager
def noticing_lost_ones() -> Iterator[None]:
    """Makes one message of the errors by which gloo and nccl report that a process is gone.

    Raises:
        ProcessLost: That is what happened.
    """
    try:
        yield
    except (CheckpointError, TrainingError):
        raise  # their texts may have any word in them, such as the name of the experiment
    except RuntimeError as error:
        of_connection = any(word in str(error) for word in ('gloo', 'Connection', 'NCCL', 'Socket'))
        if not (dist.is_initialized() and (isinstance(error, _DIST_ERROR) or of_connection)):
            raise
        raise ProcessLost('Another process of this job has ended, so that this one stops too. Its own message is above '
                          'or in its log; restart the job with --auto_resume, or let torchrun do it by '
                          f'--max-restarts. ({str(error).splitlines()[0][:200]})') from error


_DIST_ERROR: Any = getattr(dist, 'DistError', ())
