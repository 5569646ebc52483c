"""The networks of the shipped SDAKD files: counts, one width for student and discriminator, fair baselines."""
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from kd_models.probe import probe
from kd_utils.options import load_yaml

FOLDER = Path(__file__).parents[2] / 'options' / 'train' / 'SDAKD'
# 1/width: parameters and multiply-adds (G, 64x64 LR) of RRDBNet x4, parameters and multiply-adds (256x256) of the U-Net
SIZES = {1: (16_697_987, 73.43, 4_376_897, 25.92), 2: (4_178_755, 18.39, 1_094_817, 6.52),
         4: (1_046_819, 4.61, 274_001, 1.65), 8: (262_771, 1.16, 68_649, 0.42)}
STUDENTS = {'realesrgan_x4_half': 2, 'realesrgan_x4_quarter': 4, 'realesrgan_x4_eighth': 8, 'realesrgan_x2_half': 2,
            'realesrgan_compact_x4_half': 2, 'realesrgan_compact_x4_quarter': 4}
BASELINES = ('full_d', 'student_d', 'no_feature', 'no_stage1', 'generator_only')


def built(option):
    with torch.device('meta'):
        return build_network(dict(option))


@pytest.mark.parametrize('divisor', SIZES)
def test_counts(divisor):
    generator = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64 // divisor,
                 'num_grow_ch': 32 // divisor}
    discriminator = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64 // divisor}
    of_g, of_d = probe(built(generator), (1, 3, 64, 64)), probe(built(discriminator), (1, 3, 256, 256))
    assert (of_g.params, of_d.params) == (SIZES[divisor][0], SIZES[divisor][2])
    assert of_g.macs / 1e9 == pytest.approx(SIZES[divisor][1], abs=0.006)
    assert of_d.macs / 1e9 == pytest.approx(SIZES[divisor][3], abs=0.006)


@pytest.mark.parametrize('name', STUDENTS)
def test_student_and_discriminator_have_one_width(name):
    opt = load_yaml(FOLDER / f'sdakd_{name}.yml')
    teacher, divisor = opt['teacher'], STUDENTS[name]
    widths = {'num_feat': 64 // divisor, **({'num_grow_ch': 32 // divisor} if 'x4_' in name and 'compact' not in name
                                            or 'x2' in name else {})}
    assert opt['network_g'] == {**teacher['network_g'], **widths}
    assert opt['network_d'] == {**teacher['network_d'], 'num_feat': 64 // divisor}


@pytest.mark.parametrize('family', ['realesrgan_x4', 'realesrgan_compact_x4'])
@pytest.mark.parametrize('kind', BASELINES)
def test_baselines_differ_in_what_their_name_says(kind, family):
    whole, baseline = (load_yaml(FOLDER / f'{k}_{family}_quarter.yml') for k in ('sdakd', kind))
    full_d = {**whole['network_d'], 'num_feat': 64}
    assert baseline['network_d'] == (full_d if kind == 'full_d' else whole['network_d'])
    distils = kind in ('no_stage1', 'generator_only')
    assert ('teacher' in baseline, 'feature_kd_opt' in baseline['train']) == (distils, distils)
    assert ('feature_kd_d_opt' in baseline['train']) == (kind == 'no_stage1')
    same = set(whole) - {'name', 'model_type', 'network_d', 'teacher', 'train'}
    assert {key: whole[key] for key in same} == {key: baseline[key] for key in same}
    for key, value in baseline['train'].items():
        assert key == 'stages' or value == whole['train'][key]
    assert sum(stage['iters'] for stage in baseline['train']['stages']) == baseline['train']['total_iter'] == 400000


@pytest.mark.parametrize('family', ['realesrgan_x4', 'realesrgan_compact_x4'])
def test_the_teacher_discriminator_is_made_for_the_teacher(family):
    opt, student = (load_yaml(FOLDER / f'{k}.yml')
                    for k in (f'teacher_discriminator_{family}', f'sdakd_{family}_quarter'))
    assert opt['network_g'] == student['teacher']['network_g']
    assert opt['network_d'] == student['teacher']['network_d']
    assert opt['path']['pretrain_network_g'] == student['teacher']['path']['pretrain_network_g']
    assert [stage['losses'] for stage in opt['train']['stages']] == [[]]
