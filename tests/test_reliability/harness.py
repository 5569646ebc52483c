"""Trainings in processes of their own, forked from one that has imported everything, so that they start fast."""
from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kd_cli.train import main
from kd_utils import checkpoint
from tests.support import GAN_YAML, assert_equal_weights, save_teacher, train_yaml, write_yaml

STRESS = bool(os.environ.get('KD_STRESS'))


def counted(fast: int, stress: int) -> int:
    """How often something is tried: in `make test`, and in `make stress`."""
    return stress if STRESS else fast


def report(text: str) -> None:
    """A line of the output of `make stress`, in the file that KD_STRESS names."""
    if STRESS:
        with open(os.environ['KD_STRESS'], 'a') as file:
            file.write(f'{text}\n')


class Child:
    """A forked process, its output in a file.

    Args:
        function: What it does; an exit code may be raised as SystemExit.
        output: The file.
        environment: Variables that it has.
    """

    def __init__(self, function: Callable[[], None], output: Path, **environment: str) -> None:
        self.output = output
        output.write_text('')
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, environment)

    def _run(self, function: Callable[[], None], environment: dict[str, str]) -> None:
        code = 99
        try:
            descriptor = os.open(self.output, os.O_WRONLY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, 'w', closefd=False), os.fdopen(2, 'w', closefd=False)
            os.environ.update(environment)
            function()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:  # also where the disk of the output is full
                os._exit(code)

    def wait(self, timeout: float = 120) -> int:
        """Its exit code, negative for a signal that ended it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        self.kill()
        pytest.fail(f'no end after {timeout} s: {self.text()[-2000:]}')

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def text(self) -> str:
        return self.output.read_text()


class Experiment:
    """A tiny training under `root`: with EMA, discriminator and adaptors, saved in every iteration, or a given one.

    Args:
        root: A folder of its own.
        images: Of the fixture.
        options: Those of the training; where they are there, `images` and `changes` are not needed.
        changes: As for `train_yaml`.

    Attributes:
        output: Where the processes' output goes, `root` by default.
    """

    def __init__(self, root: Path, images: Path | None = None, options: dict | None = None, **changes) -> None:
        self.root = self.output = root
        root.mkdir(exist_ok=True)
        self.options = options or train_yaml(images, **{'teacher': save_teacher(root),
                                                        'logger__save_checkpoint_freq': 1, **GAN_YAML, **changes})
        self.yaml = write_yaml(root / 'tiny.yml', self.options)
        self.folder = root / 'experiments' / self.options['name']

    def run(self, *arguments: str) -> None:
        """In this process."""
        main(['-opt', str(self.yaml), *arguments], root_path=str(self.root))

    def start(self, *arguments: str, before: Callable[[], None] = lambda: None, **environment: str) -> Child:
        """In a process of its own, which does something `before`."""
        rank = environment.get('RANK', '')

        def function() -> None:
            before()
            self.run(*arguments)
        return Child(function, self.output / f'output{rank}.txt', **environment)

    def states(self) -> list[int]:
        folder = self.folder / 'training_states'
        return sorted(int(path.stem) for path in folder.glob('*.state')) if folder.exists() else []

    def curve(self) -> dict:
        """(iteration, set) -> metrics; a repeated validation replaces the one before."""
        lines = (self.folder / 'validation.jsonl').read_text().splitlines()
        return {(line['iter'], line['dataset']): line['metrics'] for line in map(json.loads, lines)}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def start_processes(experiment: Experiment, *arguments: str, count: int = 2,
                    before: Callable[[int], None] = lambda rank: None) -> list[Child]:
    """As torchrun starts them; `before` is called with the rank."""
    port = free_port()
    return [experiment.start('--launcher', 'pytorch', *arguments, before=lambda rank=rank: before(rank),  # type: ignore
                             RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1',
                             MASTER_PORT=port) for rank in range(count)]


def at_iteration(number: int, action: Callable[[], None]) -> None:
    """Lets this process do something within an iteration."""
    from kd_models.distillation_model import DistillationModel
    optimize = DistillationModel.optimize_parameters

    def then(model, iteration):
        optimize(model, iteration)
        if iteration == number:
            action()
    DistillationModel.optimize_parameters = then  # type: ignore[method-assign]


def disturbed(folder: Path, whole: Experiment) -> Experiment:
    """The same experiment elsewhere."""
    return Experiment(folder, options=whole.options)


def assert_same_end(a: Experiment, b: Experiment) -> None:
    """Bit for bit: networks, EMA, the whole last state, what each process has beside it, and the curve."""
    assert a.states()[-1] == b.states()[-1]
    names = {path.name for path in (a.folder / 'models').glob('*_latest.pth')}
    assert names and names == {path.name for path in (b.folder / 'models').glob('*_latest.pth')}
    for name in names:
        x, y = (torch.load(e.folder / 'models' / name, weights_only=True) for e in (a, b))
        assert x.keys() == y.keys()
        for key in x:
            assert_equal_weights(x[key], y[key])
    x, y = (last_state(e) for e in (a, b))
    for key in ('files', 'kept'):
        x.pop(key), y.pop(key)
    differing = [key for key in x if checkpoint.fingerprint(x[key]) != checkpoint.fingerprint(y[key])]
    assert x.keys() == y.keys() and not differing, differing
    of_a, of_b = (sorted(e.folder.glob(f'training_states/{e.states()[-1]}_*.pth')) for e in (a, b))
    assert [path.name for path in of_a] == [path.name for path in of_b]
    for path, other in zip(of_a, of_b, strict=True):
        assert checkpoint.fingerprint(checkpoint.load(path)) == checkpoint.fingerprint(checkpoint.load(other)), path
    assert a.curve() == b.curve()


def last_state(experiment: Experiment) -> dict:
    return checkpoint.load_state(experiment.folder / 'training_states' / f'{experiment.states()[-1]}.state')


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    import shutil
    import tempfile
    folder = Path(tempfile.mkdtemp(prefix='basicsr_kd_'))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
