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
GCFSR_STUDENTS = {'gcfsr_512_half': 2, 'gcfsr_512_quarter': 4, 'gcfsr_512_eighth': 8, 'gcfsr_1024_quarter': 4}
# parameters of generator and discriminator
GCFSR_SIZES = {'gcfsr_512_half': (15_597_341, 7_246_369), 'gcfsr_512_quarter': (3_903_901, 1_812_497),
               'gcfsr_512_eighth': (978_269, 453_577), 'gcfsr_1024_quarter': (4_173_762, 1_814_345)}
BASELINES = ('full_d', 'student_d', 'no_feature', 'no_stage1', 'generator_only')
# what a discriminator of the full size differs in
FULL_D = {'realesrgan_x4': {'num_feat': 64}, 'realesrgan_compact_x4': {'num_feat': 64}, 'gcfsr_512': {'narrow': 1}}
# of GCFSR no discriminator is distilled, so that the whole method is what `generator_only` is
FAMILIES = [(kind, family) for family in FULL_D for kind in BASELINES[:-1 if family == 'gcfsr_512' else None]]


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


@pytest.mark.parametrize('name', GCFSR_STUDENTS)
def test_gcfsrs_student_and_discriminator_have_one_width(name):
    opt, divisor = load_yaml(FOLDER / f'sdakd_{name}.yml'), GCFSR_STUDENTS[name]
    teacher, train_set = opt['teacher']['network_g'], opt['datasets']['train']
    size = teacher['out_size']
    assert opt['network_g'] == {**teacher, 'narrow': 1 / divisor, 'num_style_feat': 512 // divisor}
    assert opt['network_d'] == {'type': 'GCFSRDiscriminator', 'out_size': size, 'narrow': 1 / divisor}
    counts = [sum(p.numel() for p in built(opt[key]).parameters()) for key in ('network_g', 'network_d')]
    assert tuple(counts) == GCFSR_SIZES[name] and 'network_d' not in opt['teacher']
    assert train_set['gt_size'] == size and max(train_set['downsample_list']) == built(teacher).cond_norm


def test_a_gcfsr_teacher_is_trained_as_its_students():
    teacher, student = (load_yaml(FOLDER / f'{name}.yml') for name in ('gcfsr_512', 'sdakd_gcfsr_512_quarter'))
    assert teacher['network_g'] == student['teacher']['network_g'] and teacher['datasets'] == student['datasets']
    assert {key: student['train'][key] for key in teacher['train']} == teacher['train']


@pytest.mark.parametrize('kind, family', FAMILIES)
def test_baselines_differ_in_what_their_name_says(kind, family):
    whole, baseline = (load_yaml(FOLDER / f'{k}_{family}_quarter.yml') for k in ('sdakd', kind))
    full_d = {**whole['network_d'], **FULL_D[family]}
    assert baseline['network_d'] == (full_d if kind == 'full_d' else whole['network_d'])
    distils = kind in ('no_stage1', 'generator_only')
    assert ('teacher' in baseline, 'feature_kd_opt' in baseline['train']) == (distils, distils)
    assert ('feature_kd_d_opt' in baseline['train']) == (kind == 'no_stage1' and family != 'gcfsr_512')
    same = set(whole) - {'name', 'model_type', 'network_d', 'teacher', 'train'}
    assert {key: whole[key] for key in same} == {key: baseline[key] for key in same}
    for key, value in baseline['train'].items():
        assert key == 'stages' or value == whole['train'][key]
    total = baseline['train']['total_iter']
    assert sum(stage['iters'] for stage in baseline['train']['stages']) == total == whole['train']['total_iter']


@pytest.mark.parametrize('family', FULL_D)
def test_the_teacher_discriminator_is_made_for_the_teacher(family):
    opt, student = (load_yaml(FOLDER / f'{k}.yml')
                    for k in (f'teacher_discriminator_{family}', f'sdakd_{family}_quarter'))
    assert opt['network_g'] == student['teacher']['network_g']
    assert opt['network_d'] == {**student['network_d'], **FULL_D[family]}
    assert opt['path']['pretrain_network_g'] == student['teacher']['path']['pretrain_network_g']
    assert [stage['losses'] for stage in opt['train']['stages']] == [[]]
