"""Several processes: stopped, killed, restarted, and one that validates for longer than the others may wait."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kd_cli.processes import ProcessLost, noticing_lost_ones
from kd_cli.stopping import STOPPED
from kd_models.guard import TrainingError
from kd_utils.checkpoint import CheckpointError
from tests.test_reliability.harness import (
    Experiment,
    assert_same_end,
    at_iteration,
    disturbed,
    free_port,
    report,
    start_processes,
)

ROOT = Path(__file__).resolve().parents[2]


def changes(**more):
    return {'train__total_iter': 12, 'val__val_freq': 4, 'logger__save_checkpoint_freq': 4,
            'datasets__train__dataset_enlarge_ratio': 4, **more}


@pytest.fixture(scope='module')
def whole(tmp_path_factory, images):
    experiment = Experiment(tmp_path_factory.mktemp('whole'), images, **changes())
    assert [child.wait() for child in start_processes(experiment)] == [0, 0]
    return experiment


def test_a_signal_to_one_stops_all_at_the_same_iteration(tmp_path, whole):
    experiment = disturbed(tmp_path / 'run', whole)

    def before(rank):
        if rank == 1:
            at_iteration(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    children = start_processes(experiment, before=before)
    assert [child.wait() for child in children] == [STOPPED, STOPPED], children[0].text()[-2000:]
    assert experiment.states() == [4, 6]
    assert [child.wait() for child in start_processes(experiment, '--auto_resume')] == [0, 0]
    assert_same_end(whole, experiment)


def test_the_one_that_is_left_says_why_it_ends(tmp_path, whole):
    experiment = disturbed(tmp_path / 'run', whole)

    def before(rank):
        if rank == 1:
            at_iteration(6, lambda: os.kill(os.getpid(), signal.SIGKILL))
    left, killed = start_processes(experiment, before=before)
    assert killed.wait() == -9
    start = time.monotonic()
    assert left.wait(60) == 1, left.text()[-2000:]
    seconds = time.monotonic() - start
    assert 'error: Another process of this job has ended' in left.text() and 'Traceback' not in left.text()
    report(f'killed rank: the other one ended after {seconds:.1f} s')
    assert [child.wait() for child in start_processes(experiment, '--auto_resume')] == [0, 0]
    assert_same_end(whole, experiment)


def test_a_mistake_of_the_first_is_everybodys(tmp_path, whole):
    """A damaged checkpoint is seen by the first process only."""
    experiment = disturbed(tmp_path / 'run', whole)
    assert [child.wait() for child in start_processes(experiment, '--force_yml', 'train:total_iter=4')] == [0, 0]
    (experiment.folder / 'models' / 'net_g_4.pth').write_bytes(b'')
    children = start_processes(experiment, '--auto_resume')
    assert [child.wait() for child in children] == [2, 2]
    assert all('none of them is complete' in child.text() for child in children)


def test_the_others_wait_for_a_long_validation(tmp_path, whole):
    """Longer than collectives may take, which is 2 s here."""
    experiment = disturbed(tmp_path / 'run', whole)

    def before(rank):
        import datetime

        from torch import distributed as dist

        from kd_models.validation import ValidatedModel
        start, test = dist.init_process_group, ValidatedModel.test
        dist.init_process_group = lambda backend: start(backend, timeout=datetime.timedelta(seconds=2))
        ValidatedModel.test = lambda model: (time.sleep(0.6), test(model))
    children = start_processes(experiment, '--force_yml', 'val:val_freq=12', before=before)
    assert [child.wait() for child in children] == [0, 0], children[1].text()[-2000:]
    assert experiment.curve().keys() == {(12, 'Tiny')}


@pytest.mark.parametrize('error', [CheckpointError, TrainingError])
def test_a_mistake_whose_text_names_gloo_is_not_taken_for_a_lost_process(monkeypatch, error):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    with pytest.raises(error), noticing_lost_ones():
        raise error('experiments/gloo/models/net_g_5.pth could not be written')
    with pytest.raises(ProcessLost), noticing_lost_ones():
        raise RuntimeError('[gloo] Connection closed by peer')


def torchrun(experiment, *arguments, options=()):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}',
               *options, '-m', 'kd_cli.train', '-opt', str(experiment.yaml), '--launcher', 'pytorch', *arguments]
    with open(experiment.root / 'torchrun.txt', 'w') as output:
        return subprocess.Popen(command, cwd=experiment.root, stdout=output, stderr=subprocess.STDOUT, env=environment)


def of_job(process):
    """The training processes that torchrun started, by rank."""
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            parent = re.search(r'PPid:\s+(\d+)', (folder / 'status').read_text())[1]
            variables = dict(item.split('=', 1) for item in (folder / 'environ').read_text().split('\0') if '=' in item)
        except (OSError, TypeError):
            continue
        if parent == str(process.pid) and 'RANK' in variables:
            found[int(variables['RANK'])] = int(folder.name)
    return found


def wait_for_state(experiment, process):
    end = time.monotonic() + 120
    while not experiment.states():
        assert process.poll() is None and time.monotonic() < end, (experiment.root / 'torchrun.txt').read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs /proc to find the processes')
def test_torchrun_restarts_after_a_kill_and_saves_after_a_sigterm(tmp_path, images):
    """--max-restarts implies resuming; a SIGTERM to torchrun reaches processes and loader workers."""
    more = changes(train__total_iter=600, val__val_freq=300, logger__save_checkpoint_freq=4, logger__keep_last=2,
                   datasets__train__num_worker_per_gpu=1)
    whole, experiment = (Experiment(tmp_path / name, images, **more) for name in ('whole', 'run'))
    job = torchrun(experiment, options=('--max-restarts=1', '--monitor-interval=0.2'))
    wait_for_state(experiment, job)
    os.kill(of_job(job)[1], signal.SIGKILL)
    resumed = 'torchrun has restarted the processes'
    end = time.monotonic() + 120
    while not any(resumed in path.read_text() for path in experiment.folder.glob('*.log')):
        assert job.poll() is None and time.monotonic() < end, (experiment.root / 'torchrun.txt').read_text()[-3000:]
        time.sleep(0.05)
    assert len([path for path in experiment.folder.parent.iterdir() if path.is_dir()]) == 1  # nothing was archived
    before = experiment.states()[-1]
    while experiment.states()[-1] == before:  # it is on its way again
        assert job.poll() is None and time.monotonic() < end, (experiment.root / 'torchrun.txt').read_text()[-3000:]
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) != 0
    text = (experiment.root / 'torchrun.txt').read_text()
    saved = re.findall(r'Stopped at iteration (\d+) with its state saved', text)
    assert saved and len(set(saved)) == 1 and int(saved[0]) == experiment.states()[-1] >= before, text[-3000:]
    force = ('--force_yml', f'train:total_iter={int(saved[0]) + 3}')
    assert [child.wait() for child in start_processes(experiment, '--auto_resume', *force)] == [0, 0]
    assert [child.wait() for child in start_processes(whole, *force)] == [0, 0]
    assert_same_end(whole, experiment)
    report(f'torchrun: killed rank restarted and resumed, SIGTERM saved at iteration {saved[0]}, end as undisturbed')
