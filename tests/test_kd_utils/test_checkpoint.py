"""Checkpoint files: written whole, read without running code, refused with a reason."""
import os
import pickle

import pytest
import torch
from torch import nn

from kd_utils import checkpoint
from kd_utils.checkpoint import CheckpointError


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def test_a_file_with_code_runs_nothing(tmp_path):
    marker = tmp_path / 'ran'
    torch.save({'params': Payload(marker)}, tmp_path / 'evil.pth')
    with open(tmp_path / 'evil.pkl', 'wb') as file:
        pickle.dump(Payload(marker), file)
    for name in ('evil.pth', 'evil.pkl'):
        with pytest.raises(CheckpointError, match=f'{name}.*(can run code|damaged)'):
            checkpoint.load(tmp_path / name)
    assert not marker.exists()
    torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert marker.exists()  # the payload was a real one


@pytest.mark.parametrize('size', [0, 1, 0.5, -1])
def test_damaged_files_are_named(tmp_path, size):
    path = tmp_path / 'net.pth'
    checkpoint.save({'params': {'w': torch.ones(100)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * size) if isinstance(size, float) else size])
    with pytest.raises(CheckpointError, match='net.pth is damaged'):
        checkpoint.load(path)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'net.pth'
    checkpoint.save({'w': torch.ones(1)}, path)

    def disk_full(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', disk_full)
    with pytest.raises(OSError, match='No space'):
        checkpoint.save({'w': torch.zeros(1)}, path)
    assert checkpoint.load(path)['w'] == 1 and os.listdir(tmp_path) == ['net.pth']


@pytest.mark.parametrize('content, key', [
    ({'params': {'weight': 1, 'bias': 2}}, 'params'),
    ({'params': {'weight': 1, 'bias': 2}}, 'params_ema'),               # falls back
    ({'params': {}, 'params_ema': {'weight': 1, 'bias': 2}}, 'params_ema'),
    ({'weight': 1, 'bias': 2}, 'params'),                               # bare
    ({'weight': 1, 'bias': 2}, None),
    ({'params': {'module.weight': 1, 'module.bias': 2}}, 'params'),     # saved under DDP
])
def test_kinds_of_files(tmp_path, content, key):
    shapes = {'weight': (2, 3), 'bias': (2,)}

    def fill(part):
        return {k: fill(v) if isinstance(v, dict) else torch.full(shapes[k.split('.')[-1]], float(v), dtype=torch.half)
                for k, v in part.items()}
    torch.save(fill(content), tmp_path / 'net.pth')
    net = nn.Linear(3, 2)
    checkpoint.load_network(net, tmp_path / 'net.pth', key=key)
    assert net.weight.dtype == torch.float32 and (net.weight == 1).all() and (net.bias == 2).all()


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / 'net.pth'
    torch.save({'params': {'weight': torch.ones(5, 3), 'scale': torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match=r'weight is \(5, 3\) in the file, \(2, 3\) in the network; '
                                              r'not in the file \(1\): bias; only in the file \(1\): scale'):
        checkpoint.load_network(nn.Linear(3, 2), path)
    net = nn.Linear(3, 5)
    before = net.bias.clone()
    assert checkpoint.load_network(net, path, strict=False) == 1  # as BasicSR: what does not fit is left as it was
    assert (net.weight == 1).all() and torch.equal(net.bias, before)
    with pytest.raises(CheckpointError, match='has no tensor that fits Linear'):
        checkpoint.load_network(nn.Linear(3, 2), path, strict=False)
    torch.save({'params': None, 'epoch': 3}, tmp_path / 'odd.pth')
    for key in ('params', 'epoch'):
        with pytest.raises(CheckpointError, match=f'holds no weights under `{key}`'):
            checkpoint.load_network(nn.Linear(3, 2), tmp_path / 'odd.pth', key=key)
    with pytest.raises(CheckpointError, match='has no `parms_ema`, only: params'):
        checkpoint.load_network(nn.Linear(3, 5), path, key='parms_ema')
    torch.save({'generator': {'weight': torch.ones(2)}}, path)
    with pytest.raises(CheckpointError, match='has no `params`, only: generator'):
        checkpoint.load_network(nn.Linear(3, 2), path)
    with pytest.raises(CheckpointError, match='does not exist'):
        checkpoint.load_network(nn.Linear(3, 2), tmp_path / 'none.pth')
