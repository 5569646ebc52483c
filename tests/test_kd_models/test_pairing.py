"""Default layers by architecture, at equal relative depth."""
import re
from pathlib import Path

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


BUILT = {'RRDBNet': ('num_block', {'num_feat': 2, 'num_grow_ch': 2}), 'EDSR': ('num_block', {'num_feat': 2}),
         'SRVGGNetCompact': ('num_conv', {'num_feat': 2}), 'MSRResNet': ('num_block', {'num_feat': 2}),
         'RCAN': ('num_group', {'num_feat': 16, 'num_block': 1}),
         'SwinIR': ('depths', {'embed_dim': 6, 'img_size': 8, 'window_size': 4})}


def documented():
    """(architecture, depth, layers) of each example on the page of options."""
    page = (Path(__file__).parents[2] / 'docs/options.md').read_text()
    rows = page.split('### Layers of `feature_kd_opt`')[1].split('\n\n### ')[0]
    for architecture, row in re.findall(r'^\| `(\w+)` \|(.*)', rows, re.M):
        for depth, layers in re.findall(r'(\d+)[a-z ]*: `([^`]+)`', row):
            first, *others = layers.split()
            yield architecture, int(depth), [first, *(first.rpartition('.')[0] + other for other in others)]


@pytest.mark.parametrize('architecture, depth, layers', documented())
def test_the_page_names_the_defaults(architecture, depth, layers):
    key, option = BUILT[architecture]
    value = [1] * depth if key == 'depths' else depth
    heads = {'num_heads': [1] * depth} if key == 'depths' else {}
    channels = {} if key == 'depths' else {'num_in_ch': 3, 'num_out_ch': 3}
    net = build_network({'type': architecture, key: value, **option, **heads, **channels})
    named = default_layers(net, 'train.feature_kd_opt')
    assert [name for name in named if name.startswith(('body', 'layers'))] == layers


def test_all_examples_of_the_page_are_read():
    assert {architecture for architecture, *_ in documented()} == set(BUILT)


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
