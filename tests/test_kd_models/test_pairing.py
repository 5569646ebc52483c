"""Default layers by architecture, at equal relative depth."""
import pytest
from basicsr.archs import build_network
from torch import nn

from kd_models.pairing import default_layers, pair_layers
from kd_models.probe import probe
from kd_utils.options import OptionError
from tests.support import EDSR, TEACHER, UNET


@pytest.mark.parametrize('option, expected', [
    ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_grow_ch': 2},
     ['conv_first', 'body.5', 'body.11', 'body.17', 'body.22', 'conv_body', 'conv_up1', 'conv_up2']),
    ({'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 32},
     ['body.0', 'body.16', 'body.32', 'body.48', 'body.64']),
    ({'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 10, 'num_block': 1},
     ['conv_first', 'body.2', 'body.4', 'body.7', 'body.9', 'conv_after_body']),
    (UNET, [f'conv{i}' for i in range(7)]),
])
def test_default_layers(option, expected):
    net = build_network(option).eval()
    assert default_layers(net, 'train.feature_kd_opt') == expected
    assert set(probe(net, layers=expected).taps) == set(expected)  # each exists and is called once


def test_default_layers_pair_networks_of_different_depth():
    teacher, student = build_network(TEACHER), build_network(EDSR)
    pairs = pair_layers(None, teacher, student, 'train.feature_kd_opt')
    assert pairs == {'conv_first': 'conv_first', 'body.0': 'body.0', 'body.1': 'body.0', 'body.2': 'body.1',
                     'body.3': 'body.1', 'conv_after_body': 'conv_after_body'}
    unet = build_network(UNET)
    with pytest.raises(OptionError, match='not EDSR with UNetDiscriminatorSN. Name the pairs'):
        pair_layers(None, teacher, unet, 'train.feature_kd_opt')
    with pytest.raises(OptionError, match='no default layers for Sequential.*`teacher layer: student layer`'):
        default_layers(nn.Sequential(nn.Conv2d(3, 3, 1)), 'train.feature_kd_opt')
