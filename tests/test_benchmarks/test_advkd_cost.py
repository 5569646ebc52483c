"""The table of costs: counts of both networks, multiply-adds of all steps, one line each."""
import pytest
import torch

from benchmarks.advkd_cost import main, table
from tests.support import write_yaml

UNET = {'type': 'DiffusionUNet', 'scale': 2, 'block_out_channels': [8, 16], 'layers_per_block': 1,
        'norm_num_groups': 4, 'timesteps': 40, 'steps': 4}
OPTIONS = {'teacher': {'network_g': UNET},
           'network_g': {'type': 'DenoisingPhaseNet', 'scale': 2, 'phases': 3, 'num_feat': 4, 'num_block': 1}}


def rows(steps):
    opt = {**OPTIONS, 'teacher': {'network_g': {**UNET, 'steps': steps}}}
    return table(opt, 8, 1, torch.device('cpu'))


def test_the_numbers():
    (teacher, student), (longer, _) = rows(2), rows(4)
    assert (teacher['evaluations'], longer['evaluations'], student['evaluations']) == (2, 4, 1)
    assert longer['macs'] == pytest.approx(2 * teacher['macs'], rel=0.01) and longer['params'] == teacher['params']
    assert teacher['shape'] == student['shape'] == (1, 3, 16, 16) and student['ms'] > 0


def test_an_option_file_without_a_teacher(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['-opt', str(write_yaml(tmp_path / 'x.yml', {'network_g': OPTIONS['network_g']}))])
    assert 'has no teacher. Name an option file of AdvKDModel.' in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    main(['-opt', str(write_yaml(tmp_path / 'x.yml', OPTIONS)), '--size', '8', '--repeats', '1'])
    output = capsys.readouterr().out
    assert '| teacher | 40,995 |' in output and '| student | 1,839 |' in output and 'an image of 16x16' in output
