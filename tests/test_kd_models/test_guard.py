"""What an update that is not finite returns to, and how such updates are counted."""
import pytest
import torch
from torch import nn

from kd_models.guard import Buffers, Guard, TrainingError

YES, NO = torch.tensor(True), torch.tensor(False)


def numbers(guard):
    return {name: float(value) for name, value in guard.take().items()}


def test_buffers_go_back_where_an_update_is_not_finite():
    net = nn.BatchNorm1d(2)
    buffers = Buffers([net, nn.Linear(1, 1)])  # one has none
    net(torch.rand(4, 2) + 5)
    buffers.settle(NO)
    assert torch.equal(net.running_mean, torch.zeros(2)) and net.num_batches_tracked == 0
    net(torch.rand(4, 2) + 5)
    moved = net.running_mean.clone()
    buffers.settle(YES)
    assert torch.equal(net.running_mean, moved) and net.num_batches_tracked == 1
    net.running_mean.zero_()
    buffers.settle(NO)
    assert torch.equal(net.running_mean, moved), 'the last finite update is what is returned to'
    net.running_mean.zero_()
    buffers.keep()
    buffers.settle(NO)
    assert torch.equal(net.running_mean, torch.zeros(2))


def test_updates_are_counted_until_they_are_read():
    guard = Guard(5)
    for finite in (NO, NO, YES, NO):
        guard.count('net_g', finite)
    guard.count('net_d', YES)
    assert numbers(guard) == {'skipped net_g': 3, 'in a row net_g': 2, 'skipped net_d': 0, 'in a row net_d': 0}
    assert numbers(guard) == {}
    guard.count('net_g', NO)
    assert numbers(guard) == {'skipped net_g': 1, 'in a row net_g': 2}, 'a row goes on over a reading of the log'


def test_losses_that_are_not_finite_are_named():
    guard = Guard(5)
    guard.watch({'l_a': torch.tensor(1.), 'l_b': torch.tensor(float('nan'))})
    guard.watch({'l_b': torch.tensor(float('inf'))})
    guard.watch({})
    guard.count('net_g', NO)
    counts = numbers(guard)
    assert (counts['bad l_a'], counts['bad l_b']) == (0, 2)
    assert guard.check(counts) == ['1 updates of net_g were skipped since the last log: l_b not finite. The run stops '
                                   'after 5 in a row (`train.max_bad_steps`).']


def test_all_is_well_without_a_word():
    guard = Guard(5)
    guard.count('net_g', YES)
    guard.watch({'l_a': torch.tensor(1.)})
    assert guard.check(numbers(guard)) == [] == guard.check({})


@pytest.mark.parametrize('most', [1, 3])
def test_too_many_in_a_row_end_the_training(most):
    guard = Guard(most)
    for _ in range(most - 1):
        guard.count('net_d', NO)
    guard.check(numbers(guard))
    guard.count('net_d', NO)
    with pytest.raises(TrainingError, match=f'net_d could not be updated {most} times in a row: all losses finite, but '
                                            'a gradient was not. Look at the data'):
        guard.check(numbers(guard))
