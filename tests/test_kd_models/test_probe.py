"""Counted sizes against known ones, and hand-made multiply-adds."""
import pytest
import torch
from basicsr.archs import build_network
from torch import nn

from kd_models.probe import probe
from kd_utils.options import OptionError


@pytest.mark.parametrize('option, params, gmacs', [
    # counted by hand and published: docs/methods
    ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 32, 'num_grow_ch': 16}, 4_178_755, 18.39),
    ({'type': 'SRVGGNetCompact', 'num_feat': 64, 'num_conv': 32, 'upscale': 4}, 1_213_296, 4.95),
    ({'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 16, 'upscale': 2}, 1_369_859, 5.62),
])
def test_known_networks(option, params, gmacs):
    result = probe(build_network(option))
    assert result.params == params
    assert result.macs / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_hand_counted_and_untouched():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 2, 1))
    result = probe(net, (1, 3, 10, 20), ['0'])
    assert result.macs == 200 * (3 * 5 * 9 + 5 * 2)
    assert result.shape == (1, 2, 10, 20) and result.taps == {'0': (1, 5, 10, 20)}
    assert all(p.device.type == 'cpu' and p.requires_grad for p in net.parameters()) and net.training


def test_a_network_that_cannot_run_on_the_meta_device():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mean = nn.Conv2d(3, 3, 1), torch.ones(1, 3, 1, 1)  # a plain tensor, left on the CPU

        def forward(self, x):
            return self.conv(x - self.mean) * float(x.sum() + 1)

    assert probe(Plain(), (1, 3, 4, 4)).macs == 16 * 9


def test_a_wrong_input_is_refused():
    net = build_network({'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 2})
    with pytest.raises(OptionError, match='does not take an input of shape'):
        probe(net, (1, 3, 64, 64), owner='network_d')
