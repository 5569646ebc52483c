"""Signals, full disks, folders that may not be written, and two runs of one experiment."""
import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kd_cli.stopping import STOPPED
from kd_utils import checkpoint
from kd_utils.lock import ExperimentLock
from tests.test_reliability.harness import (
    STRESS,
    Experiment,
    assert_same_end,
    at_iteration,
    counted,
    disturbed,
    open_folder,
    report,
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, images):
    """A run that nobody disturbs; saved in the middle and at the end only."""
    experiment = Experiment(tmp_path_factory.mktemp('whole'), images, train__total_iter=30, val__val_freq=10,
                            logger__save_checkpoint_freq=20)
    assert experiment.start().wait() == 0
    return experiment


def wait_until(condition, child, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, child.text()[-2000:]
        time.sleep(0.01)


def logged(experiment, text):
    """Whether the log has it."""
    return any(text in path.read_text() for path in experiment.folder.glob('*.log'))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_and_saves(tmp_path, whole, number):
    experiment = disturbed(tmp_path / 'run', whole)
    child = experiment.start(before=lambda: at_iteration(7, lambda: os.kill(os.getpid(), number)))
    assert child.wait() == STOPPED, child.text()[-2000:]
    assert experiment.states() == [7] and 'Traceback' not in child.text()
    assert 'Stopped at iteration 7 with its state saved' in child.text()
    assert logged(experiment, f'{signal.Signals(number).name}: this iteration is finished')
    assert experiment.start('--auto_resume').wait() == 0
    assert_same_end(whole, experiment)


def test_a_signal_leaves_a_validation_which_is_made_up_for(tmp_path, whole):
    experiment = disturbed(tmp_path / 'run', whole)

    def stop_at_the_second_image():
        from kd_models.validation import ValidatedModel
        test, count = ValidatedModel.test, iter(range(1, 100))

        def counted_test(model):
            image = next(count)
            print(f'image {image}')
            if image == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            test(model)
        ValidatedModel.test = counted_test
    child = experiment.start(before=stop_at_the_second_image)
    assert child.wait() == STOPPED
    assert 'image 2' in child.text() and 'image 3' not in child.text()
    assert experiment.states() == [10] and not (experiment.folder / 'validation.jsonl').exists()
    assert experiment.start('--auto_resume').wait() == 0
    assert_same_end(whole, experiment)


def test_a_second_signal_ends_the_run_at_once_if_it_is_not_the_first_one_twice(tmp_path, whole):
    def endless(seconds=60):
        from kd_models.distillation_model import DistillationModel

        def sleep(model, data):
            print('asleep', flush=True)
            end = time.monotonic() + seconds
            while time.monotonic() < end:  # a signal interrupts time.sleep
                time.sleep(0.1)
        DistillationModel.feed_data = sleep
    child = disturbed(tmp_path / 'run', whole).start(before=endless)
    wait_until(lambda: 'asleep' in child.text(), child)
    for _ in range(3):
        child.signal(signal.SIGTERM)
        time.sleep(0.2)
    assert os.waitpid(child.pid, os.WNOHANG)[0] == 0  # torchrun's two signals are one
    time.sleep(3)
    child.signal(signal.SIGTERM)
    assert child.wait(5) == 128 + signal.SIGTERM


def test_workers_do_not_end_before_the_run_has_saved(tmp_path, images):
    """The signal goes to the whole group, as from a terminal or torchrun."""
    changes = {'train__total_iter': 12, 'datasets__train__num_worker_per_gpu': 2, 'logger__save_checkpoint_freq': 12}
    a, b = (Experiment(tmp_path / name, images, **changes) for name in 'ab')
    assert a.start().wait() == 0

    def before():
        os.setsid()
        at_iteration(5, lambda: os.killpg(os.getpid(), signal.SIGTERM))
    child = b.start(before=before)
    assert child.wait() == STOPPED, child.text()[-2000:]
    assert b.states() == [5] and b.start('--auto_resume').wait() == 0
    assert_same_end(a, b)


def test_the_process_ends_with_its_training(tmp_path, images):
    """At its exit Python waits for workers, which ignore its signals: BasicSR's prefetching thread would keep them."""
    experiment = Experiment(tmp_path / 'run', images, train__total_iter=5, datasets__train__num_worker_per_gpu=2,
                            datasets__train__dataset_enlarge_ratio=100, datasets__train__prefetch_mode='cpu')
    command = [sys.executable, '-m', 'kd_cli.train', '-opt', str(experiment.yaml)]  # the others here leave by os._exit
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2])}
    subprocess.run(command, cwd=experiment.root, env=environment, check=True, timeout=120)
    assert experiment.states()[-1] == 5


def test_a_finished_run_can_be_extended(tmp_path, whole):
    experiment = disturbed(tmp_path / 'run', whole)
    assert experiment.start('--force_yml', 'train:total_iter=10').wait() == 0
    assert experiment.states() == [10]
    assert experiment.start('--auto_resume').wait() == 0
    assert_same_end(whole, experiment)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize('file', ['models/net_g_20.pth', 'training_states/20.state'])
def test_a_full_disk_stops_the_run_and_keeps_what_was_there(tmp_path, whole, file):
    """A file that may not grow to its size stands for the disk: the write fails in the middle."""
    experiment = disturbed(tmp_path / 'run', whole)
    assert experiment.start('--force_yml', 'train:total_iter=10').wait() == 0
    before = {path: path.read_bytes() for path in experiment.folder.glob('*/*') if path.is_file()}
    size = (whole.folder / file).stat().st_size // 2
    if file.endswith('.state'):
        largest = max(path.stat().st_size for path in (whole.folder / 'models').glob('*_20.pth'))
        size = max(size, largest + 1)  # the networks fit
    child = experiment.start('--auto_resume', before=lambda: limit_files(size))
    code = child.wait()
    assert code == 2 and f'{file} could not be written (File too large)' in child.text(), child.text()[-2000:]
    assert 'Traceback' not in child.text() and experiment.states() == [10]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(experiment.folder.glob('*/*.tmp'))
    assert experiment.start('--auto_resume').wait() == 0
    assert_same_end(whole, experiment)


@pytest.mark.skipif(not STRESS, reason='needs the right to mount; the fast version is above')
def test_a_full_file_system(tmp_path, whole):
    """ENOSPC from a small tmpfs, at many levels of fullness."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', disk], capture_output=True).returncode:
        report('full disk: no right to mount a tmpfs, left out')
        pytest.skip('no right to mount')
    try:
        failed = 0
        for attempt in range(counted(1, 20)):
            experiment = disturbed(disk / str(attempt), whole)
            experiment.output = tmp_path
            assert experiment.start('--force_yml', 'train:total_iter=10').wait() == 0
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / 'ballast').write_bytes(bytes(max(0, free - (attempt + 1) * 12_000)))
            child = experiment.start('--auto_resume')
            code = child.wait()
            (disk / 'ballast').unlink()
            assert code in (0, 2), child.text()[-3000:]
            failed += code == 2
            assert experiment.start('--auto_resume').wait() == 0
            assert_same_end(whole, experiment)
            subprocess.run(['rm', '-r', experiment.root], check=True)
        assert failed > 3
        report(f'full disk: {failed} of {counted(1, 20)} runs ended by ENOSPC on a tmpfs, all resumed to the '
               'undisturbed end')
    finally:
        subprocess.run(['umount', disk], check=True)


@pytest.mark.parametrize('folder', ['models', 'training_states'])
def test_a_folder_that_may_not_be_written_stops_the_run(images, folder):
    if os.geteuid() != 0 or not all(path.stat().st_mode & 1 for path in Path(__file__).parents):
        pytest.skip('needs the right to become another user, who must be able to read this package')

    def nobody():
        os.setgid(65534)
        os.setuid(65534)
    with open_folder() as root:
        shutil.copytree(images, root / 'images')
        os.chmod(root / 'images', 0o755)
        experiment = Experiment(root / 'run', root / 'images')
        assert experiment.start('--force_yml', 'train:total_iter=2').wait() == 0
        for path in [experiment.folder.parent, *experiment.folder.parent.rglob('*')]:
            if folder not in path.parts:
                os.chown(path, 65534, 65534)
        child = experiment.start('--auto_resume', before=nobody)
        assert child.wait() == 2, child.text()[-2000:]
        assert f'/{folder}/' in child.text() and 'could not be written (Permission denied)' in child.text()
        assert 'Traceback' not in child.text() and experiment.states() == [1, 2]


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path, whole):
    experiment = disturbed(tmp_path / 'run', whole)
    first = experiment.start('--force_yml', 'train:total_iter=100000', 'datasets:train:num_worker_per_gpu=2')
    wait_until(lambda: logged(experiment, 'iter:       2'), first)
    for arguments in ((), ('--auto_resume', )):
        (experiment.root / 'other').mkdir(exist_ok=True)
        second = Experiment.start(experiment, *arguments)
        assert second.wait() == 2 and 'is being trained by another process' in second.text()
    assert [path.name for path in experiment.folder.parent.iterdir() if path.is_dir()] == ['tiny']  # none archived
    first.kill()
    assert experiment.start().wait() == 0  # although its orphaned workers may still be there


def test_a_file_system_without_locks(tmp_path, monkeypatch, warnings_logged):
    def without(*args):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', without)
    with ExperimentLock(tmp_path) as lock:
        lock.hold()
    assert any('cannot be locked (No locks available)' in text for text in warnings_logged)


def test_an_experiment_that_is_a_link_without_a_target(tmp_path, whole):
    experiment = disturbed(tmp_path / 'run', whole)
    experiment.folder.parent.mkdir()
    experiment.folder.symlink_to('nowhere')
    child = experiment.start()
    assert child.wait() == 2 and 'Traceback' not in child.text()
    assert f'error: {experiment.folder}: File exists' in child.text()


def test_ctrl_c_before_the_training(tmp_path, whole):
    def interrupt():
        from kd_cli import processes
        signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own processes may ignore it
        processes.start = lambda *args: os.kill(os.getpid(), signal.SIGINT)
    child = disturbed(tmp_path / 'run', whole).start(before=interrupt)
    assert child.wait() == 128 + signal.SIGINT and 'Traceback' not in child.text()


def test_old_checkpoints_are_removed_but_not_the_best(tmp_path, images):
    experiment = Experiment(tmp_path / 'run', images, train__total_iter=8, val__val_freq=2,
                            logger__save_checkpoint_freq=2, logger__keep_last=2, logger__keep_best='psnr')
    child = experiment.start('--force_yml', 'train:total_iter=4')
    assert child.wait() == 0 and experiment.states() == [2, 4]
    # as if iteration 2 had been the best by far
    path = experiment.folder / 'training_states' / '4.state'
    state = checkpoint.load_state(path)
    state['kept'][2] = 99.
    checkpoint.save_state(state, path)
    assert experiment.start('--auto_resume').wait() == 0
    assert experiment.states() == [2, 6, 8]
    names = {path.name for path in (experiment.folder / 'models').iterdir()}
    assert names == {f'net_{net}_{which}.pth' for net in 'gd' for which in (2, 6, 8, 'latest')}
    assert len(list((experiment.folder / 'training_states').iterdir())) == 3


def test_the_only_good_checkpoint_is_not_removed(tmp_path, images):
    """What was just written cannot be read back: the one before it stays."""
    experiment = Experiment(tmp_path / 'run', images, train__total_iter=3, logger__keep_last=1)

    def damage():
        save = checkpoint.save_state

        def broken(state, path):
            save(state, path)
            if state['iter'] == 3:
                os.truncate(path, os.path.getsize(path) - 1)
        checkpoint.save_state = broken
    child = experiment.start(before=damage)
    assert child.wait() == 2 and '3.state is damaged' in child.text()
    assert experiment.states() == [2, 3] and torch.load(experiment.folder / 'models' / 'net_g_2.pth')
    assert experiment.start('--auto_resume').wait() == 0 and experiment.states() == [3]


def test_a_validation_that_is_made_up_for_may_be_interrupted_again(tmp_path, whole):
    experiment = disturbed(tmp_path / 'run', whole)

    def stop_at_the_first_image():
        from kd_models.validation import ValidatedModel
        test = ValidatedModel.test

        def stopped(model):
            os.kill(os.getpid(), signal.SIGTERM)
            test(model)
        ValidatedModel.test = stopped
    for arguments in ((), ('--auto_resume', )):
        assert experiment.start(*arguments, before=stop_at_the_first_image).wait() == STOPPED
        assert experiment.states() == [10] and not (experiment.folder / 'validation.jsonl').exists()
    assert experiment.start('--auto_resume').wait() == 0
    assert_same_end(whole, experiment)


def test_a_signal_while_the_teachers_cache_is_made(tmp_path, images):
    changes = {'train__total_iter': 4, 'train__feature_kd_opt': None, 'train__response_kd_opt': {'type': 'L1Loss'}}
    a, b = (Experiment(tmp_path / name, images, **changes) for name in 'ab')

    def stop():
        from kd_models.distillation_model import DistillationModel
        make = DistillationModel.cacheable

        def stopped(model, lq, *teacher):
            os.kill(os.getpid(), signal.SIGTERM)
            return make(model, lq, *teacher)
        DistillationModel.cacheable = stopped

    def cache(experiment):
        return '--force_yml', f'teacher:cache={experiment.root}/cache'
    assert a.start(*cache(a)).wait() == 0
    child = b.start(*cache(b), before=stop)
    assert child.wait() == STOPPED and '1 of 6 missing images' in child.text(), child.text()[-2000:]
    assert b.start('--auto_resume', *cache(b)).wait() == 0
    assert_same_end(a, b)


def test_a_full_disk_is_reported_whatever_was_written(tmp_path, whole):
    """Such an error of the validation's file has no name in it."""
    experiment = disturbed(tmp_path / 'run', whole)

    def before():
        from kd_models import validation

        def full(*args):
            raise OSError(28, 'No space left on device')
        validation._append_line = full
    child = experiment.start(before=before)
    assert child.wait() == 2 and 'Traceback' not in child.text()
    assert 'error: a file of this run: No space left on device. Make room' in child.text()

    def pictures():
        import cv2
        cv2.imwrite = lambda *args: False
    child = experiment.start('--force_yml', 'val:save_img=true', before=pictures)
    assert child.wait() == 2 and 'Traceback' not in child.text() and '_10.png could not be written' in child.text()
