"""Backward and optimizer steps of one process; several are in test_processes.py."""
import pytest
import torch
from torch import nn
from torch.optim import SGD

from kd_models.runtime import Runtime
from tests.support import assert_equal_weights, weights

CPU = torch.device('cpu')


def made(train_opt=None):
    """A runtime, a network with statistics, and its optimizer of rate 1."""
    torch.manual_seed(0)
    runtime, net = Runtime(CPU, train_opt=train_opt), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = SGD(net.parameters(), 1.)
    runtime.protect('net_g', optimizer, net)
    return runtime, net, optimizer


def test_backwards_add_up_until_the_step():
    runtime, net, optimizer = made()
    x, before = torch.rand(5, 3), weights(net)
    with runtime.iteration():
        runtime.backward(net(x).square().mean())
        runtime.backward((net(x) * torch.arange(4.)).mean())
        gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
        assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
        runtime.step(optimizer)
    torch.testing.assert_close(gradients['1.bias'], torch.arange(4.) / 4)  # of the first loss it is 0
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name] - gradients[name])


@pytest.mark.parametrize('clip', [0.1, 1e6])
def test_a_gradient_is_clipped_by_the_norm_of_all(clip):
    runtime, net, optimizer = made({'grad_clip': clip})
    before = weights(net)
    with runtime.iteration():
        runtime.backward((net(torch.rand(5, 3)) * torch.arange(4.)).mean())
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
        runtime.step(optimizer)
    steps = torch.cat([(p - before[name]).flatten() for name, p in net.named_parameters()])
    assert float(steps.norm()) == pytest.approx(min(clip, float(norm)), rel=1e-4)


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_what_is_not_finite_changes_nothing_and_is_counted(where):
    runtime, net, optimizer = made()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = weights(net)
    with runtime.iteration():
        loss = net(torch.rand(5, 3)).sum()
        loss = loss + float('inf') if where == 'loss' else (loss - loss.detach()).abs().sqrt()
        assert bool(loss.isfinite()) == (where == 'gradient')
        runtime.backward(loss)
        runtime.step(optimizer)
    assert_equal_weights(weights(net), before)  # statistics too
    assert float(runtime.guard.take()['skipped net_g']) == 1
    optimizer.zero_grad()
    with runtime.iteration():
        runtime.backward(net(torch.rand(5, 3)).square().mean())
        runtime.step(optimizer)
    assert float(runtime.guard.take()['skipped net_g']) == 0
    assert not torch.equal(net[1].weight, before['1.weight']) and net[1].num_batches_tracked == 1


def test_one_process_is_its_own_mean():
    runtime = Runtime(CPU)
    values = torch.tensor([1., 2.])
    assert torch.equal(runtime.mean(values), torch.tensor([1., 2.])) and runtime.gather({'a': 1}) == [{'a': 1}]
    assert runtime.optimizer_options('Adam') == {}  # fused where there is a GPU


def test_the_number_of_bad_steps_is_the_options():
    assert Runtime(CPU).guard.most == 10 and Runtime(CPU, train_opt={'max_bad_steps': 3}).guard.most == 3
