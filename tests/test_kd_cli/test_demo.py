"""make demo's own parts; the trainings themselves are what `make demo` is for."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kd_cli import demo


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_clean_removes_what_the_demo_made_and_nothing_else(here):
    mine, users = here / 'experiments' / demo.TEACHER, here / 'results' / demo.student('alone', 1)
    for folder in (mine, users, here / 'experiments' / 'demo_of_mine'):
        folder.mkdir(parents=True)
    (mine / demo.MARK).touch()
    demo.clean()
    assert not mine.exists()
    assert users.exists() and (here / 'experiments' / 'demo_of_mine').exists()


def test_a_command_is_followed_and_its_folder_marked(here, capsys):
    demo.clean()
    line = json.dumps({'iter': 5, 'dataset': 'HeldOut', 'metrics': {'psnr': 31.25}})
    Path('train.py').write_text(f"""
import os
os.makedirs('experiments/some')
open('experiments/some/options.yml', 'w')
open('experiments/some/validation.jsonl', 'w').write('''{line}\\n''')
""")
    demo.Jobs().run('some', ['train.py'])
    assert 'some: iteration 5, psnr 31.25' in capsys.readouterr().out
    assert (here / 'experiments' / 'some' / demo.MARK).exists()


def test_the_users_own_folder_is_not_taken_for_the_demos(here, capsys):
    demo.clean()
    folder = here / 'experiments' / 'some'
    folder.mkdir()
    for name in ('options.yml', 'validation.jsonl'):
        (folder / name).write_text('{}\n')
        os.utime(folder / name, (0, 0))
    Path('train.py').write_text('')
    demo.Jobs().run('some', ['train.py'])
    assert 'iteration' not in capsys.readouterr().out
    assert not (folder / demo.MARK).exists()


def test_a_failure_shows_the_end_of_the_log(here):
    demo.clean()
    Path('train.py').write_text("raise SystemExit('no such teacher')")
    with pytest.raises(demo.Failure, match='(?s)exit code 1.*no such teacher'):
        demo.Jobs().run('some', ['train.py'])


def test_a_failure_ends_the_other_commands(here, monkeypatch):
    demo.clean()
    Path('train.py').write_text("import sys, time; sys.exit(3) if 'teacher' in sys.argv[2] else time.sleep(60)")
    jobs = demo.Jobs()
    with pytest.raises(demo.Failure, match='exit code 3'):
        demo.run_all(jobs)
    assert not jobs.running


def test_it_says_where_it_has_to_run(here, capsys):
    with pytest.raises(SystemExit):
        demo.main()
    assert 'checkout' in capsys.readouterr().err


def test_gain_over_bicubic():
    report = {'networks': [{'label': 'teacher', 'metrics': {'psnr': {'mean': 33.}}}],
              'bicubic': {'a': {'psnr': 30.}, 'b': {'psnr': 32.}}}
    assert demo.gain_over_bicubic(report) == 2
