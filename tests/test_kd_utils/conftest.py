"""Fixtures of the tests of options and schema."""
from __future__ import annotations

import pytest

from tests.test_kd_utils.option_files import distillation, save_image


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes an option file into the working directory, a fresh one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('KD_DATA', raising=False)

    def write_file(text: str, name: str = 'opt.yml') -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Options whose files all exist, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, size in (('gt/a.png', (132, 128)), ('gt/b.png', (128, 140)), ('lq/ax4.png', (33, 32)),
                       ('lq/bx4.png', (32, 35)), ('other/x.png', (33, 32))):
        save_image(tmp_path / name, size)
    for name in ('gt/.hidden', 'weights/net.pth'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    opt = distillation()
    opt['datasets']['train'].update(dataroot_gt='gt', dataroot_lq='lq')
    opt['datasets']['val'].update(dataroot_gt='gt', dataroot_lq='lq', filename_tmpl='{}x4')
    opt['teacher']['path'].update(pretrain_network_g='weights/net.pth', pretrain_network_d='weights/net.pth')
    return opt


@pytest.fixture
def lmdb_files(files, tmp_path):
    for root in ('gt.lmdb', 'lq.lmdb'):
        (tmp_path / root).mkdir()
        for name in ('data.mdb', 'meta_info.txt'):
            (tmp_path / root / name).write_text('a.png\n')
    files['datasets']['train'].update(dataroot_gt='gt.lmdb', dataroot_lq='lq.lmdb', io_backend={'type': 'lmdb'})
    return files
