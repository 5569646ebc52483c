"""Which checkpoints may go."""
import pytest

from kd_models.retention import obsolete

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
