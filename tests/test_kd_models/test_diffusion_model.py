"""The training of a diffusion model: its loss by hand, resume, the loop."""
import json

import pytest
import torch
from basicsr.models import build_model

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_data.draws import seed_everything
from kd_models.diffusion_model import DiffusionSRModel
from kd_utils.options import OptionError, check_options
from tests.support import (
    assert_equal_weights,
    batches,
    model_options,
    refusal,
    train_seeded,
    train_yaml,
    weights,
    write_yaml,
)

UNET = {'type': 'DiffusionUNet', 'scale': 2, 'block_out_channels': [8, 16], 'layers_per_block': 1,
        'norm_num_groups': 4, 'timesteps': 40, 'steps': 4}
PREDICTIONS = ('epsilon', 'v_prediction', 'sample')


def options(folder, train_opt=None, **top):
    return model_options(folder, {'pixel_opt': None, **(train_opt or {})},
                         **{'model_type': 'DiffusionSRModel', 'network_g': dict(UNET), **top})


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_the_loss_is_that_of_the_noise_drawn(tmp_path, prediction):
    model = build_model(options(tmp_path, network_g={**UNET, 'prediction_type': prediction}))
    item, = batches(1)
    start = weights(model.net_g)
    log, = train_seeded(model, [item])
    model.net_g.load_state_dict(start)
    seed_everything(0, 1)
    noise, t = torch.randn_like(item['gt']), torch.randint(40, (2, ))
    betas = torch.linspace(25 * 1e-4, 25 * 0.02, 40)
    abar = (1 - betas).cumprod(0)[t].view(2, 1, 1, 1)
    condition = model.net_g.condition(item['lq'])
    x0 = (2 * (item['gt'] - condition)).clamp(-1, 1)
    x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    wanted = {'epsilon': noise, 'sample': x0, 'v_prediction': abar.sqrt() * noise - (1 - abar).sqrt() * x0}[prediction]
    with torch.no_grad():
        loss = (model.net_g.predict(x, t, condition) - wanted).square().mean()
    assert log['l_g_diffusion'] == pytest.approx(float(loss), rel=1e-4)


def test_it_learns_and_its_average_follows(tmp_path):
    model = build_model(options(tmp_path, {'optim_g': {'type': 'Adam', 'lr': 3e-3}}))
    assert model.ema_decay == 0.9999
    before = weights(model.net_g)
    logs = train_seeded(model, batches(1) * 30)
    values = [log['l_g_diffusion'] for log in logs]
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
    assert not [name for name, value in model.net_g.state_dict().items() if torch.equal(value, before[name])]


def test_resume(tmp_path):
    data = batches(4)
    seed_everything(1)
    whole = build_model(options(tmp_path))
    part = build_model(options(tmp_path))
    for name in ('net_g', 'net_g_ema'):
        getattr(part, name).load_state_dict(weights(getattr(whole, name)))
    train_seeded(whole, data)
    train_seeded(part, data[:2])
    part.save(0, 2)
    again = options(tmp_path)
    again['path'].update(pretrain_network_g=str(tmp_path / 'models/net_g_2.pth'), strict_load_g=True)
    resumed = build_model(again)
    resumed.resume_training(torch.load(tmp_path / 'training_states/2.state', weights_only=True))
    train_seeded(resumed, data[2:], 3)
    for name in ('net_g', 'net_g_ema'):
        assert_equal_weights(weights(getattr(resumed, name)), weights(getattr(whole, name)))


@pytest.mark.parametrize('train_opt, message', [
    ({'pixel_opt': {'type': 'L1Loss'}}, '`train.pixel_opt` is not read by DiffusionSRModel'),
    ({'optim_d': {'type': 'Adam', 'lr': 1}}, '`train.optim_d` is not read'),
])
def test_what_it_does_not_read(tmp_path, train_opt, message):
    with pytest.raises(OptionError, match=message):
        DiffusionSRModel.complete(options(tmp_path, train_opt))


@pytest.mark.parametrize('top, message', [
    ({'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}}, 'EDSR is no diffusion model'),
    ({'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3}}, '`network_d` is not read by DiffusionSRModel'),
])
def test_other_networks(tmp_path, top, message):
    assert message in refusal(options(tmp_path, **top))


def test_kinds_are_checked(tmp_path):
    opt = options(tmp_path, network_g={**UNET, 'prediction_type': 'v'})
    DiffusionSRModel.complete(opt)
    with pytest.raises(OptionError, match='`network_g.prediction_type` cannot be .v.. Write one of `epsilon`'):
        check_options(opt, DiffusionSRModel.losses)


def test_through_the_loop(tmp_path, images):
    """train.py and test.py: sampled images, the same twice; BasicSR's SRModel can test it too."""
    yml = train_yaml(images, model_type='DiffusionSRModel', network_g=dict(UNET), train__pixel_opt=None,
                     train__total_iter=2, val__val_freq=2)
    del yml['train']['pixel_opt']
    train_pipeline(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'tiny.yml', yml))])
    line = json.loads((tmp_path / 'experiments/tiny/validation.jsonl').read_text().splitlines()[-1])
    weights_file = str(tmp_path / 'experiments/tiny/models/net_g_latest.pth')
    for name, model_type in (('ours', 'DiffusionSRModel'), ('stock', 'SRModel')):
        test = {'name': name, 'model_type': model_type, 'scale': 2, 'num_gpu': 0, 'manual_seed': 0,
                'datasets': {'test_1': yml['datasets']['val']}, 'network_g': yml['network_g'],
                'path': {'pretrain_network_g': weights_file, 'param_key_g': 'params_ema', 'strict_load_g': True},
                'val': {'save_img': False, 'metrics': yml['val']['metrics']}}
        run_test(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'test.yml', test))])
    result = json.loads((tmp_path / 'results/ours/metrics_Tiny.json').read_text())
    assert result['mean']['psnr'] == pytest.approx(line['metrics']['psnr'], rel=1e-6)
