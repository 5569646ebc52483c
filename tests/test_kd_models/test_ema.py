"""The moving average of a generator, by hand and in a training."""
import torch
from torch import nn

from kd_models.ema import update_ema
from tests.support import WithBatchNorm, assert_equal_weights, batches, build, model_options, train, weights


def test_parameters_are_averaged_and_buffers_copied():
    ema, net = WithBatchNorm(), WithBatchNorm()
    net.net[1].running_mean.fill_(3.)
    before, now = weights(ema), weights(net)
    update_ema(ema, net, 0.75)
    for name, _ in net.named_parameters():
        torch.testing.assert_close(weights(ema)[name], 0.75 * before[name] + 0.25 * now[name])
    assert torch.equal(ema.net[1].running_mean, now['net.1.running_mean'])
    assert_equal_weights(weights(net), now)
    update_ema(ema, net, 0)
    assert_equal_weights(weights(ema), now)


def test_no_graph_is_left():
    ema, net = nn.Linear(2, 2), nn.Linear(2, 2)
    update_ema(ema, net, 0.5)
    assert ema.weight.grad_fn is None and ema.weight.requires_grad


def test_ema_follows_parameters_and_buffers(tmp_path, monkeypatch):
    """BasicSR leaves the buffers of the EMA network at their initial values."""
    from basicsr.utils.registry import ARCH_REGISTRY

    class BatchNormNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, 1, 1), torch.nn.BatchNorm2d(12),
                                            torch.nn.PixelShuffle(2))

        def forward(self, x):
            return self.body(x)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'BatchNormNet', BatchNormNet)
    model = build(model_options(tmp_path, {'ema_decay': 0.5}, network_g={'type': 'BatchNormNet'}))
    start = weights(model.net_g)
    train(model, batches(1))
    for name, value in model.net_g.named_parameters():
        torch.testing.assert_close(dict(model.net_g_ema.named_parameters())[name], (start[name] + value) / 2)
    assert model.net_g.body[1].num_batches_tracked == 1
    assert torch.equal(model.net_g_ema.body[1].running_mean, model.net_g.body[1].running_mean)
