"""Feature maps against features computed by hand."""
from copy import deepcopy

import pytest
import torch
from basicsr.archs import build_network
from torch import nn
from torch.nn import functional as F

from kd_models.probe import probe
from kd_models.taps import Taps
from kd_utils.options import OptionError
from tests.support import EDSR, UNET

IMAGES = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def maps_of(net, layers, images=IMAGES, probed=False):
    overwritten = probe(net, images.shape, layers).overwritten if probed else None
    output, maps = Taps(net, layers, overwritten=overwritten).run(lambda: net(images))
    assert torch.equal(output, net(images))
    return maps


@pytest.mark.parametrize('probed', [False, True])
def test_edsr_against_hand_computed(probed):
    net = build_network(EDSR)
    maps = maps_of(net, ['conv_first', 'body.1', 'conv_after_body'], probed=probed)
    first = F.conv2d((IMAGES - net.mean) * 255, net.conv_first.weight, net.conv_first.bias, padding=1)
    body = first
    for block in net.body:
        body = body + block.conv2(F.relu(block.conv1(body)))
    torch.testing.assert_close(maps['conv_first'], first)
    torch.testing.assert_close(maps['body.1'], body)
    torch.testing.assert_close(maps['conv_after_body'], net.conv_after_body(body))


@pytest.mark.parametrize('probed', [False, True])
@pytest.mark.parametrize('grad', [True, False], ids=['grad', 'no_grad'])
def test_a_tap_is_the_modules_own_output_even_if_overwritten_in_place(grad, probed):
    """Both overwrite a convolution's output by an activation."""
    compact = build_network({'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 2, 'act_type': 'relu', 'upscale': 2})
    unet = build_network(UNET).eval()
    with torch.set_grad_enabled(grad):
        expected = F.conv2d(IMAGES, compact.body[0].weight, compact.body[0].bias, padding=1)
        assert expected.min() < 0
        maps = maps_of(compact, ['body.0', 'body.1'], probed=probed)
        torch.testing.assert_close(maps['body.0'], expected)
        torch.testing.assert_close(maps['body.1'], expected.relu())
        first = F.conv2d(IMAGES, unet.conv0.weight, unet.conv0.bias, padding=1)
        torch.testing.assert_close(maps_of(unet, ['conv0'], probed=probed)['conv0'], first)


def test_only_overwritten_maps_are_cloned():
    unet = build_network(UNET).eval()
    assert probe(unet, IMAGES.shape, ['conv0', 'conv9']).overwritten == {'conv0'}
    assert probe(build_network(EDSR), IMAGES.shape, ['conv_first', 'body.0']).overwritten == set()


def test_gradients_flow_through_a_tap():
    net = build_network(EDSR)
    maps_of(net, ['body.0'])['body.0'].mean().backward()
    assert net.conv_first.weight.grad.abs().sum() > 0 and net.body[1].conv1.weight.grad is None


def test_hooks_are_gone_after_the_pass_and_in_copies():
    net = build_network(EDSR)
    taps = Taps(net, ['body.0'])
    copies = []
    taps.run(lambda: (copies.append(deepcopy(net)), net(IMAGES))[1])
    assert not net.body[0]._forward_hooks
    _, maps = Taps(copies[0], ['body.0']).run(lambda: copies[0](IMAGES))
    assert torch.equal(maps['body.0'], taps.run(lambda: net(IMAGES))[1]['body.0'])


def test_tokens_and_vectors_become_maps():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.vector, self.pair = nn.Linear(3, 5), nn.Linear(5, 2), nn.LSTM(3, 3, batch_first=True)

        def forward(self, x):
            tokens = self.tokens(x.flatten(2).transpose(1, 2))
            self.pair(x.flatten(2).transpose(1, 2))
            return self.vector(tokens.mean(1))

    net = Net()
    maps = maps_of(net, ['tokens', 'vector'])
    assert maps['tokens'].shape == (1, 5, 256, 1) and maps['vector'].shape == (1, 2, 1, 1)
    torch.testing.assert_close(maps['tokens'][0, :, 17, 0], net.tokens(IMAGES[0, :, 1, 1]))
    with pytest.raises(OptionError, match='`pair`.*returns a tuple'):
        maps_of(net, ['pair'])


def test_unknown_unused_and_reused_layers_are_refused():
    net = build_network({'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 2})
    with pytest.raises(OptionError, match='no layer `conv0_2`. Did you mean `conv'):
        Taps(net, ['conv0_2'])
    with pytest.raises(OptionError, match='`lrelu` .* is called 11 times'):
        maps_of(net, ['lrelu'], torch.rand(1, 3, 128, 128))
    net = build_network(EDSR)
    net.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(OptionError, match='is called 0 times'):
        maps_of(net, ['unused'])


def test_a_dropout_in_place_overwrites_in_train_mode_only():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 4, 1), nn.Dropout(0.5, inplace=True))

    net = Net()
    assert probe(net, (2, 3, 8, 8), ['0']).overwritten == set()
    assert probe(net, (2, 3, 8, 8), ['0'], training=True).overwritten == {'0'}
