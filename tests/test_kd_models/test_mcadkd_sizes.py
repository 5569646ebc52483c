"""Parameters and multiply-adds of the shipped teachers and students against the known table (48x48 LR)."""
from pathlib import Path

import pytest
from basicsr.archs import build_network

from kd_models.adapters import build_adapter
from kd_models.probe import probe
from kd_utils.options import load_yaml

FOLDER = Path(__file__).parents[2] / 'options' / 'train' / 'MCADKD'
# file: teacher (M params, G MACs), student (M params, G MACs)
SIZES = {
    'edsr_x2': ((40.73, 93.9), (2.55, 5.88)), 'edsr_x3': ((43.68, 100.7), (2.74, 6.32)),
    'edsr_x4': ((43.09, 115.8), (2.70, 7.29)),
    'swinir_x2': ((11.75, 28.7), (1.09, 2.83)), 'swinir_x3': ((11.94, 29.2), (1.27, 3.27)),
    'swinir_x4': ((11.90, 30.1), (1.24, 4.24)),
    'rcan_x4': ((15.59, 36.7), (5.17, 12.9)),
}


@pytest.mark.parametrize('name', SIZES)
def test_sizes(name):
    opt = load_yaml(FOLDER / f'mcadkd_{name}.yml')
    for network, (params, macs) in zip((opt['teacher']['network_g'], opt['network_g']), SIZES[name], strict=True):
        measured = probe(build_network(network), (1, 3, 48, 48), call=build_adapter(network))
        assert measured.params / 1e6 == pytest.approx(params, abs=0.006)
        assert measured.macs / 1e9 == pytest.approx(macs, rel=0.01)


# Networks of the table that no shipped file has: the shipped one with these changes, (M params, G MACs).
OTHERS = [
    ('rcan_x4', 'teacher', {'upscale': 2}, (15.44, 35.3)), ('rcan_x4', 'teacher', {'upscale': 3}, (15.63, 35.7)),
    ('rcan_x4', 'student', {'upscale': 2}, (5.02, 11.5)), ('rcan_x4', 'student', {'upscale': 3}, (5.21, 11.9)),
    ('edsr_x2', 'student', {'num_block': 16}, (1.37, 3.16)), ('edsr_x3', 'student', {'num_block': 16}, (1.55, 3.61)),
    ('edsr_x4', 'student', {'num_block': 16}, (1.52, 4.57)),
]


@pytest.mark.parametrize('name, whose, changes, size', OTHERS)
def test_sizes_of_the_rest_of_the_table(name, whose, changes, size):
    opt = load_yaml(FOLDER / f'mcadkd_{name}.yml')
    network = {**(opt['teacher'] if whose == 'teacher' else opt)['network_g'], **changes}
    measured = probe(build_network(network), (1, 3, 48, 48))
    assert (measured.params / 1e6, measured.macs / 1e9) == (pytest.approx(size[0], abs=0.006),
                                                           pytest.approx(size[1], rel=0.01))


@pytest.mark.parametrize('name', SIZES)
def test_baselines_differ_in_nothing_but_the_parts_left_out(name):
    whole, response, alone = (load_yaml(FOLDER / f'{kind}_{name}.yml') for kind in ('mcadkd', 'response', 'alone'))
    for baseline in (response, alone):
        for section in ('datasets', 'network_g', 'scale', 'manual_seed', 'val'):
            assert baseline[section] == whole[section]
        assert {key: value for key, value in whole['train'].items() if key in baseline['train']} == baseline['train']
    parts = {'contrastive_opt', 'gan_opt', 'optim_d', 'update_order'}
    assert set(whole['train']) - set(response['train']) == parts
    assert set(whole['train']) - set(alone['train']) == {*parts, 'response_kd_opt'}
