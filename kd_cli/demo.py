"""The main job, `make demo`: a teacher, and the same small student without and with it, compared on held-out photos.

Run it in the checkout: `python -m kd_cli.demo`. It prints each command as one would type it, runs two at a time with
one thread each (the networks are too small to gain from more), and ends with `kd-compare`. A second run starts again:
it removes the folders that an earlier run made, and no others.
"""
from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from kd_cli import compare, prepare
from kd_cli.errors import reported
from kd_utils.options import OptionError

SEEDS = (1, 2, 3)
STUDENTS = ('alone', 'distilled')
TEACHER = 'demo_teacher'
SIDE_BY_SIDE = 2
LOGS = Path('experiments/demo_logs')
MARK = '.made_by_make_demo'
SMALLEST_GAIN = 0.5  # dB of PSNR-Y, teacher over bicubic; with less there would be nothing to distil


class Failure(RuntimeError):
    """A command of the demo did not end well."""


class Jobs:
    """Runs training and test commands, each with a log file of its own, and says how they get on."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def say(self, text: str) -> None:
        print(f'[{time.monotonic() - self.start:4.0f} s] {text}', flush=True)

    def run(self, name: str, arguments: Sequence[str]) -> None:
        """Runs `python ARGUMENTS` for the experiment `name`.

        Raises:
            Failure: It did not exit with 0; the text holds the end of its log.
        """
        if self.stopped:
            return
        self.say(f'$ python {shlex.join(arguments)}')
        log, since = LOGS / f'{name}_{Path(arguments[0]).stem}.log', time.time()
        with open(log, 'w') as file:
            process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT,
                                       env={**os.environ, 'OMP_NUM_THREADS': '1'})
            self.running.add(process)
            if self.stopped:  # since the check above
                process.terminate()
            self._follow(process, name, since)
        self.running.discard(process)
        for folder in _folders(name):
            if _is_new(folder / 'options.yml', since):
                (folder / MARK).touch()
        if process.returncode and not self.stopped:
            tail = '\n'.join(log.read_text(errors='replace').splitlines()[-20:])
            raise Failure(f'python {shlex.join(arguments)} ended with exit code {process.returncode}. '
                          f'The end of {log}:\n{tail}')

    def _follow(self, process: subprocess.Popen, name: str, since: float) -> None:
        """Waits for the process and repeats each of its validations in one line."""
        shown = 0
        ended = False
        while not ended:
            ended = process.poll() is not None  # before reading, so that the last line is not missed
            lines = _validations(name, since)
            for line in lines[shown:]:
                metrics = ', '.join(f'{metric} {value:.2f}' for metric, value in line['metrics'].items())
                self.say(f'  {name}: iteration {line["iter"]}, {metrics}')
            shown = len(lines)
            if not ended:
                time.sleep(0.2)

    def stop(self) -> None:
        """Ends what is still running."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()


def _is_new(path: Path, since: float) -> bool:
    """Whether the file was written since then: a folder of that name may be the user's own, until it is archived."""
    return path.exists() and path.stat().st_mtime >= since - 1  # some file systems count in seconds


def _validations(name: str, since: float) -> list[dict]:
    path = Path('experiments') / name / 'validation.jsonl'
    text = path.read_text() if _is_new(path, since) else ''
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]


def _folders(name: str) -> list[Path]:
    return [Path('experiments') / name, Path('results') / name]


def student(kind: str, seed: int) -> str:
    """The experiment's name of a student."""
    return f'demo_student_{kind}_s{seed}'


def clean() -> None:
    """Removes what an earlier run made."""
    names = [TEACHER, *(student(kind, seed) for kind in STUDENTS for seed in SEEDS)]
    for folder in [folder for name in names for folder in _folders(name)]:
        if (folder / MARK).exists():
            shutil.rmtree(folder)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)


def train_teacher(jobs: Jobs) -> None:
    jobs.run(TEACHER, ['train.py', '-opt', 'options/demo/teacher.yml'])


def test_teacher(jobs: Jobs, teacher: Future) -> None:
    teacher.result()
    jobs.run(TEACHER, ['test.py', '-opt', 'options/demo/test_teacher.yml'])


def train_and_test_student(jobs: Jobs, kind: str, seed: int, teacher: Future | None = None) -> None:
    """One student, from the first iteration to its test; `teacher` is waited for."""
    if teacher:
        teacher.result()
    name = student(kind, seed)
    jobs.run(name, ['train.py', '-opt', f'options/demo/student_{kind}.yml',
                    '--force_yml', f'name={name}', f'manual_seed={seed}'])
    jobs.run(name, ['test.py', '-opt', 'options/demo/test_student.yml', '--force_yml', f'name={name}',
                    f'path:pretrain_network_g=experiments/{name}/models/net_g_latest.pth'])


def run_all(jobs: Jobs) -> None:
    """Trains and tests everything, two commands at a time; the students without a teacher fill its training time."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        teacher = pool.submit(train_teacher, jobs)
        futures = [teacher, *(pool.submit(train_and_test_student, jobs, 'alone', seed) for seed in SEEDS)]
        futures += [pool.submit(train_and_test_student, jobs, 'distilled', seed, teacher) for seed in SEEDS]
        futures += [pool.submit(test_teacher, jobs, teacher)]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            jobs.stop()
            pool.shutdown(cancel_futures=True)


def compare_all(jobs: Jobs) -> dict:
    """Prints the table and writes the pictures; the content of comparison.json."""
    students = [f'student {kind}={student(kind, 0)[:-1]}[{"".join(map(str, SEEDS))}]' for kind in STUDENTS]
    arguments = [f'teacher={TEACHER}', *students, '--bicubic', '--versus', 'student distilled', 'student alone',
                 '--out', 'results/demo', '--html', 'results/demo/report.html']
    jobs.say(f'$ kd-compare {shlex.join(arguments)}')
    print()
    compare.main(arguments)
    return json.loads(Path('results/demo/comparison.json').read_text())


def gain_over_bicubic(report: dict) -> float:
    """PSNR-Y of the teacher minus that of bicubic interpolation, in dB."""
    teacher = next(row for row in report['networks'] if row['label'] == 'teacher')
    return teacher['metrics']['psnr']['mean'] - compare.bicubic_means(report['bicubic'])['psnr']


def demo() -> None:
    """The whole job.

    Raises:
        Failure: A command failed, or the teacher is not better than bicubic interpolation by SMALLEST_GAIN.
        OptionError: This is not the checkout.
    """
    if not Path('train.py').exists() or not Path('options/demo').is_dir():
        raise OptionError('The demo needs train.py and options/demo here. Run it in the folder of the checkout.')
    jobs = Jobs()
    clean()
    jobs.say('$ kd-prepare photos datasets/demo --scale 2')
    prepare.main(['photos', 'datasets/demo', '--scale', '2'])
    jobs.say(f'Two commands at a time, OMP_NUM_THREADS=1 each; their output is in {LOGS}/')
    run_all(jobs)
    gain = gain_over_bicubic(compare_all(jobs))
    minutes = (time.monotonic() - jobs.start) / 60
    if gain < SMALLEST_GAIN:
        raise Failure(f'The teacher is {gain:+.2f} dB against bicubic interpolation, which is less than '
                      f'{SMALLEST_GAIN:+} dB: its training went wrong. See {LOGS}/{TEACHER}_train.log.')
    print(f'\nThe teacher gains {gain:.2f} dB over bicubic interpolation. The demo took {minutes:.1f} minutes.')


@reported
def main() -> None:
    try:
        demo()
    except Failure as failure:
        sys.exit(f'\nThe demo failed. {failure}')


if __name__ == '__main__':
    main()
