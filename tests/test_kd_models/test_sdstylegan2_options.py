"""What StyleGAN2 takes for granted."""
import pytest

from kd_models.distillation_model import DistillationModel
from kd_models.sdstylegan2_model import SDStyleGAN2Model
from kd_models.sdstylegan2_options import DEFAULTS, complete_data, complete_recipe
from kd_utils.options import OptionError, check_options
from tests.support import model_options
from tests.test_kd_models.test_sdstylegan2_model import FFHQ, NETWORK_D, NETWORK_G, OPTIM


def test_defaults_are_the_papers_hosts(tmp_path):
    opt = model_options(tmp_path, {'pixel_opt': None, 'optim_g': dict(OPTIM), 'optim_d': dict(OPTIM)},
                        model_type='SDStyleGAN2Model', network_g=dict(NETWORK_G), network_d=dict(NETWORK_D),
                        datasets={'train': FFHQ})
    SDStyleGAN2Model.complete(opt)
    assert opt['train']['ema_decay'] == pytest.approx(0.997784, abs=1e-6)
    assert opt['train']['optim_g']['betas'] == [0, pytest.approx(0.99**0.8)]
    assert opt['train']['optim_d']['betas'] == [0, pytest.approx(0.99**(16 / 17))]
    assert check_options(opt, DistillationModel.losses) == []


def test_what_the_file_has_is_kept():
    train_opt = {'optim_g': {'type': 'Adam', 'betas': [0.5, 0.9]}, 'optim_d': {'type': 'SGD'}, 'r1_reg_weight': 1}
    complete_recipe(train_opt)
    assert train_opt == {**DEFAULTS, 'optim_g': {'type': 'Adam', 'betas': [0.5, 0.9]}, 'optim_d': {'type': 'SGD'},
                         'r1_reg_weight': 1}
    train_opt['gan_opt']['loss_weight'] = 5
    assert DEFAULTS['gan_opt']['loss_weight'] == 1


def test_another_order_of_updates_is_refused():
    with pytest.raises(OptionError, match='Write `d_first`, or leave it out'):
        complete_recipe({'update_order': 'simultaneous'})


def test_a_validation_without_data_gets_samples():
    opt = {'network_g': NETWORK_G, 'datasets': {'train': FFHQ}, 'val': {'val_freq': 1}}
    complete_data(opt)
    assert opt['datasets']['val'] == {'name': 'samples', 'type': 'SampleDataset', 'n': 16, 'phase': 'val', 'scale': 1}
    opt = {'network_g': NETWORK_G, 'datasets': {'train': FFHQ}}
    complete_data(opt)
    assert list(opt['datasets']) == ['train']
