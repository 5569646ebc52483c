"""Which checkpoints may go."""
import io

import pytest
import torch
from basicsr.models import build_model

from kd_models.retention import obsolete
from kd_utils.checkpoint import CheckpointError, load_complete
from tests.support import batches, model_options, train

NAN = float('nan')


@pytest.mark.parametrize(('kept', 'better', 'old'), [
    ({1: 5., 2: 7., 3: 6., 4: 4.}, 'higher', [1]),
    ({1: 5., 2: 7., 3: 6., 4: 4.}, 'lower', [1, 2]),
    ({1: 7., 2: 7., 3: 6., 4: 4.}, 'higher', [1]),  # of equals the newest
    ({1: None, 2: None, 3: None}, 'higher', [1]),
    ({1: NAN, 2: 7., 3: 6., 4: NAN}, 'higher', [1]),  # what is not a number is not the best
    ({1: NAN, 2: 7., 3: 6., 4: NAN}, 'lower', [1, 2]),
    ({1: 5.}, 'higher', []),
])
def test_the_newest_and_the_best_stay(kept, better, old):
    assert obsolete(kept, 2, better) == old


@pytest.fixture
def damaging(monkeypatch):
    """From now on a byte in the middle of each file with one of these keys is written wrong."""
    def begin(*keys):
        def damage(content, file):
            buffer = io.BytesIO()
            save(content, buffer)
            data = bytearray(buffer.getvalue())
            data[len(data) // 2] ^= 255 * bool(content.keys() & set(keys))
            file.write(data)
        save = torch.save
        monkeypatch.setattr(torch, 'save', damage)
    return begin


def test_older_checkpoints_stay_until_the_newest_has_been_read_back(tmp_path, damaging):
    options = model_options(tmp_path)
    options['logger']['keep_last'] = 1
    model = build_model(options)
    train(model, batches(1))
    model.save(0, 1)
    damaging('optimizers')
    with pytest.raises(CheckpointError, match='2.state is damaged'):
        model.save(0, 2)
    load_complete(tmp_path / 'training_states/1.state', tmp_path / 'models')


def test_then_they_go(tmp_path):
    options = model_options(tmp_path)
    options['logger']['keep_last'] = 1
    model = build_model(options)
    for iteration in (1, 2):
        model.save(0, iteration)
    assert sorted(path.name for path in tmp_path.glob('*/*_*.pth')) == ['net_g_2.pth']
    assert [path.name for path in tmp_path.glob('*/*.state')] == ['2.state']
