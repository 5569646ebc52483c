"""The JSON Schema accepts what the check accepts and underlines what people mistype."""
from __future__ import annotations

import copy
from pathlib import Path

import pytest

import kd_models  # noqa: F401  fills the registries
from kd_utils.options import load_yaml, parse_yaml
from kd_utils.schema.json_schema import SHAPES, json_schema, of_kind
from kd_utils.schema.kinds import KINDS, fits

jsonschema = pytest.importorskip('jsonschema')

OPTIONS = Path(__file__).parents[3] / 'options'
FILES = sorted(OPTIONS.rglob('*.yml'))
RECIPE = 'train/SDAKD/sdakd_realesrgan_x4_quarter.yml'
VALUES = [None, True, False, -2, -1, 0, 1, 2, 3, 5, 8, 32, 1.5, 4.0, -0.5, 0.999, 1e300, '', ' ', 'a', 'y', 'auto',
          'a/b', '..', '{}x4', '{}{}', '7', [], [0], [1], [-1], [1, 2], [0.5, 2.5], [0.9, 0.99], [30, 95], [2, 1],
          [0, 0, 0], [0.2, 0.7, 0.1], [1, 2, 3, 4], ['iso'], ['a'], ['a', 1], [''], [{}], [{'a': 1}], {}, {'a': 1},
          {'a': -1}, {'a': 'b'}, {'a': ''}, {'a': [1]}]
# Values that no schema can tell from allowed ones: 4.0 is a whole number to it, and it does not compare.
LET_THROUGH = [*((kind, 4.0) for kind in ('int', 'count', 'size', 'gpus', 'side')),
               *((kind, 1e300) for kind in ('int', 'count', 'size', 'gpus', 'iters', 'warmup', 'number', 'weight',
                                            'ratio', 'largest')),
               ('range', [2, 1]), ('quality', [2, 1]), ('odds', [0, 0, 0]), ('shares', [0]), ('shares', [0, 0, 0])]


@pytest.fixture(scope='module')
def schema():
    made = json_schema()
    jsonschema.Draft7Validator.check_schema(made)
    return made


def mistakes(schema, opt):
    """Where the schema is against something: dotted key -> its words."""
    found = jsonschema.Draft7Validator(schema).iter_errors(opt)
    return {'.'.join(map(str, error.absolute_path)): error.message for error in found}


@pytest.mark.parametrize('kind', KINDS)
def test_a_shape_is_its_kind(schema, kind):
    validator = jsonschema.Draft7Validator({**of_kind(kind), 'definitions': schema['definitions']})
    for value in VALUES:
        # what `factors` holds is checked by `require`, not by `fits`
        allowed = fits(kind, value) and not (kind == 'factors' and any(item != 1 for item in value.values()))
        if (kind, value) not in LET_THROUGH:
            assert validator.is_valid(value) == allowed, (kind, value)
    assert set(SHAPES) == set(KINDS)


def test_words_none_and_alternatives_are_kinds_too(schema):
    for kind, allowed, refused in [('keep|fresh', ['keep', 'fresh'], ['new', None]), ('cpu|cuda?', ['cpu', None], [3]),
                                   ('size or sides', [8, [4, 8]], ['8', [4]]), ('count?!train', [0, None], [-1])]:
        validator = jsonschema.Draft7Validator({**of_kind(kind), 'definitions': schema['definitions']})
        assert all(map(validator.is_valid, allowed)) and not any(map(validator.is_valid, refused))


def test_every_shipped_file_is_valid(schema):
    """As it is written, which is what an editor sees, and with the options of its bases."""
    validator = jsonschema.Draft7Validator(schema)
    assert FILES
    for file in FILES:
        for opt in (load_yaml(file), parse_yaml(file.read_text(), str(file))):
            assert not [(list(error.absolute_path), error.message) for error in validator.iter_errors(opt)], file


def change(opt, key, value):
    *parents, last = key.split('.')
    for parent in parents:
        opt = opt[int(parent) if isinstance(opt, list) else parent]
    if value is ...:
        del opt[last]
    else:
        opt[last] = value


@pytest.mark.parametrize('key, value, where, word', [
    ('nmae', 'x', '', 'nmae'),
    ('model_type', 'SDAKD', 'model_type', 'SDAKDModel'),
    ('num_gpu', 'all', 'num_gpu', 'all'),
    ('network_g', ..., '', 'network_g'),
    ('network_g.num_feats', 16, 'network_g', 'num_feats'),
    ('network_g.num_feat', '16', 'network_g.num_feat', '16'),
    ('network_g', {'type': 'GCFSR', 'out_size': 4}, 'network_g.out_size', '32'),  # which StyleGAN2 may have
    ('network_g.type', 'RRDBnet', 'network_g.type', 'RRDBNet'),
    ('network_g.type', ..., 'network_g', 'type'),
    ('network_g.num_in_ch', ..., 'network_g', 'num_in_ch'),
    ('network_g.upsampler', 'x', 'network_g', 'upsampler'),  # SwinIR's
    ('datasets.train.dataroot_gt', ..., 'datasets.train', 'dataroot_gt'),
    ('datasets.train.batch_size_per_gpu', ..., 'datasets.train', 'batch_size_per_gpu'),
    ('datasets.val.dataroot', 'x', 'datasets.val', 'dataroot'),
    ('datasets.vla', {}, 'datasets', 'vla'),
    ('datasets.train.io_backend.type', 'ram', 'datasets.train.io_backend.type', 'ram'),
    ('teacher.path', ..., 'teacher', 'path'),
    ('teacher.network_g.num_feat', 0, 'teacher.network_g.num_feat', '0'),
    ('teachers', {'teacher': {}}, 'teachers', 'teacher'),
    ('teachers', {'large': {'network_g': {'type': 'EDSR'}}}, 'teachers.large', 'path'),
    ('path.pretrain_network', 'x.pth', 'path', 'pretrain_network'),
    ('train.optim_g.lr', '1e-4', 'train.optim_g.lr', '1e-4'),
    ('train.optim_g.lr', ..., 'train.optim_g', 'lr'),
    ('train.optim_g.momentum', 0.9, 'train.optim_g', 'momentum'),  # SGD's
    ('train.scheduler.type', 'MultistepLR', 'train.scheduler.type', 'MultiStepLR'),
    ('train.total_iter', ..., 'train', 'total_iter'),
    ('train.stages.0.iters', ..., 'train.stages.0', 'iters'),
    ('train.stages.0.loss', ['pixel'], 'train.stages.0', 'loss'),
    ('train.stages.0.optimizer', 'new', 'train.stages.0.optimizer', 'fresh'),
    ('train.pixl_opt', {}, 'train', 'pixl_opt'),
    ('train.pixel_opt.weight', 1, 'train.pixel_opt', 'weight'),
    ('train.pixel_opt.loss_weight', -1, 'train.pixel_opt.loss_weight', '-1'),
    ('train.pixel_opt.start_iter', 5, 'train.pixel_opt', 'start_iter'),  # of self_distill
    ('train.gan_opt.gan_type', 'vanila', 'train.gan_opt.gan_type', 'vanilla'),
    ('train.perceptual_opt.layer_weights.conv5_4', 'one', 'train.perceptual_opt.layer_weights.conv5_4', 'one'),
    ('train.update_order', 'together', 'train.update_order', 'simultaneous'),
    ('val.val_freq', ..., 'val', 'val_freq'),
    ('val.metrics.psnr.crop', 4, 'val.metrics.psnr', 'crop'),
    ('val.metrics.psnr.type', 'psnr', 'val.metrics.psnr.type', 'calculate_psnr'),
    ('logger.save_freq', 5, 'logger', 'save_freq'),
    ('dist_params.backend', 'mccl', 'dist_params.backend', 'nccl'),
    ('without', 'network_d', 'without', 'network_d'),
])
def test_a_mistake_is_underlined_at_its_place(schema, key, value, where, word):
    opt = load_yaml(OPTIONS / RECIPE)
    change(opt, key, value)
    found = mistakes(schema, opt)
    assert where in found and word in found[where], found


@pytest.mark.parametrize('key, value', [
    ('train.optim_d', None), ('network_d', None), ('train.feature_kd_opt', {}),
    ('train.self_distill_opt', {'loss_weight': 0.1, 'start_iter': 5}),
    ('train.response_kd_opt', {'teacher': ['teacher', 'large'], 'combine': 'mean', 'inputs': 'both'}),
    ('train.feature_kd_opt.layers', {'body.1': 'body.2'}), ('train.scheduler', None),
    ('datasets.val_2', {'name': 'b', 'type': 'PairedImageDataset', 'dataroot_gt': 'a', 'dataroot_lq': 'b',
                        'io_backend': {'type': 'disk'}}),
    ('teachers', {'large': {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3},
                            'path': {'pretrain_network_g': '~/large.pth'}}}),
])
def test_what_may_be_there_is_not_underlined(schema, key, value):
    opt = load_yaml(OPTIONS / RECIPE)
    change(opt, key, value)
    assert not mistakes(schema, opt)


def test_a_variant_need_not_be_whole(schema):
    variant = {'base': RECIPE, 'name': 'narrow', 'network_g': {'num_feat': 8}, 'train': {'gan_opt': {'loss_weight': 1}},
               'without': ['network_d']}
    assert not mistakes(schema, variant)
    assert mistakes(schema, {key: value for key, value in variant.items() if key != 'base'})
    wrong = copy.deepcopy(variant)
    wrong['network_g'], wrong['train']['gan_opt'] = {'num_feats': 8}, {'loss_weight': '1'}
    assert mistakes(schema, wrong).keys() == {'network_g', 'train.gan_opt.loss_weight'}


def test_a_test_needs_no_training_options(schema):
    opt = load_yaml(OPTIONS / 'test/SDAKD/sdakd_realesrgan_x4_quarter.yml')
    assert not mistakes(schema, opt) and not opt.keys() & {'train', 'logger'}
