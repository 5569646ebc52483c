"""What a model that makes images from noise takes for granted, and what it refuses."""
import pytest
import torch
from basicsr.models import build_model

from kd_models.diffusion_model import DiffusionSRModel
from kd_models.unconditional import complete_unconditional
from kd_utils.options import OptionError
from tests.support import model_options, refusal
from tests.test_kd_models.test_advkd_unconditional import LOADER, SAMPLES, SIZE, TEACHER


def options(folder, **network):
    opt = model_options(folder, {'pixel_opt': None}, model_type='DiffusionSRModel', network_g={**TEACHER, **network})
    opt['datasets'] = {'train': {'name': 'real', 'type': 'FFHQDataset', 'dataroot_gt': 'real.lmdb', 'use_hflip': True,
                                 'io_backend': {'type': 'lmdb'}, 'mean': [0] * 3, 'std': [1] * 3, **LOADER}}
    del opt['scale']
    return opt


def test_latents_get_their_length():
    opt = {'datasets': {'val': dict(SAMPLES), 'own': {**SAMPLES, 'num_style_feat': 5},
                        'train': {'type': 'FFHQDataset'}}}
    complete_unconditional(opt, 12)
    assert opt['scale'] == 1 and opt['datasets']['train'] == {'type': 'FFHQDataset'}
    assert [opt['datasets'][name]['num_style_feat'] for name in ('val', 'own')] == [12, 5]


def test_turned_lr_images_are_refused():
    with pytest.raises(OptionError, match='`val.self_ensemble` turns LR images, and there are none. Take it out.'):
        complete_unconditional({'val': {'self_ensemble': True}}, 12)


def test_sizes_of_images_and_latents(tmp_path):
    model = build_model(options(tmp_path))
    assert model.training.gt_size == (1, 3, SIZE, SIZE) and model.training.lq_size == (1, 3 * SIZE**2)
    assert model.training.latent_size == 3 * SIZE**2
    assert DiffusionSRModel.latent_size({'network_g': {'type': 'EDSR'}}) is None


def test_images_of_another_size_are_refused(tmp_path):
    model = build_model(options(tmp_path))
    model.feed_data({'gt': torch.rand(2, 3, SIZE, SIZE)})
    model.optimize_parameters(1)
    with pytest.raises(OptionError, match=f'datasets.train are 8x8, and `network_g.size` is {SIZE}. Prepare images'):
        model.feed_data({'gt': torch.rand(2, 3, 8, 8)})


@pytest.mark.parametrize('key', ['scale', 'residual'])
def test_what_belongs_to_super_resolution_is_refused(tmp_path, key):
    opt = options(tmp_path, **{key: 2 if key == 'scale' else True})
    assert f'`network_g.{key}` is not read where there is `network_g.size`. Take one of the two out.' in refusal(opt)
