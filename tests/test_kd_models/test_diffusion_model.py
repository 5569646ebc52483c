"""The diffusion teacher: what it trains on, that its sampler is DDIM, any size, tiles, resume, the loop."""
import json
import sys

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_data.draws import seed_everything
from kd_models.diffusion_model import DiffusionSRModel
from kd_utils.options import OptionError, check_options
from tests.support import assert_equal_weights, batches, model_options, train_yaml, weights, write_yaml

UNET = {'type': 'DiffusionUNet', 'scale': 2, 'block_out_channels': [8, 16], 'layers_per_block': 1,
        'norm_num_groups': 4, 'timesteps': 40, 'steps': 4}
PREDICTIONS = ('epsilon', 'v_prediction', 'sample')


def network(**changes):
    torch.manual_seed(0)
    return build_network({**UNET, **changes}).eval()


def options(folder, train_opt=None, **top):
    return model_options(folder, {'pixel_opt': None, **(train_opt or {})},
                         **{'model_type': 'DiffusionSRModel', 'network_g': dict(UNET), **top})


def run(model, data, first=1):
    logs = []
    for iteration, item in enumerate(data, first):
        seed_everything(0, iteration)
        model.update_learning_rate(iteration)
        model.feed_data(item)
        model.optimize_parameters(iteration)
        logs.append(dict(model.get_current_log()))
    return logs


# ------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_each_step_is_the_closed_form_of_ddim(prediction):
    """With S dividing T, at t = T-1, T-1-T/S, ..., and x_0 clipped."""
    net = network(prediction_type=prediction, steps=5)
    betas = torch.linspace(25 * 1e-4, 25 * 0.02, 40, dtype=torch.float64)
    abar = torch.cat(((1 - betas).cumprod(0), torch.ones(1, dtype=torch.float64)))  # abar[-1] = 1
    lq = torch.rand(1, 3, 6, 6)
    condition, noise = net.condition(lq), torch.randn(1, 3, 12, 12)
    way = net.trajectory(noise, condition)
    x = noise.double()
    for j, t in enumerate((39, 31, 23, 15, 7)):
        with torch.no_grad():
            f = net.predict(way.states[j], torch.tensor(t), condition).double()
        a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
        x0 = {'epsilon': (x - b * f) / a, 'v_prediction': a * x - b * f, 'sample': f}[prediction]
        eps = {'epsilon': f, 'v_prediction': a * f + b * x, 'sample': (x - a * f) / b}[prediction]
        after = abar[t - 8] if t > 7 else abar[-1]
        x = after.sqrt() * x0.clamp(-1, 1) + (1 - after).sqrt() * eps
        torch.testing.assert_close(way.states[j + 1].double(), x, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(way.estimates[j].double(), x0.clamp(-1, 1), atol=2e-4, rtol=1e-4)
        x = way.states[j + 1].double()
    assert len(way.states) == 6 and torch.equal(way.states[-1], way.estimates[-1])


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_a_network_that_predicts_perfectly_samples_the_image(prediction):
    net = network(prediction_type=prediction)
    image = torch.rand(1, 3, 8, 8)
    condition = net.condition(torch.rand(1, 3, 4, 4))
    x0 = net.encode(image, condition).clamp(-1, 1)
    noise = torch.randn(1, 3, 8, 8)
    start = net.diffuse(x0, noise, torch.tensor([39]))[0]
    way = net.sampler(lambda x, t: net.diffuse(x0, noise, t[None])[1], start)
    torch.testing.assert_close(way.states[-1], x0, atol=1e-3, rtol=0)
    wanted = torch.maximum(torch.minimum(image, condition + .5), condition - .5).clamp(0, 1)
    torch.testing.assert_close(net.decode(x0, condition), wanted)


@pytest.mark.parametrize('size', [(8, 8), (5, 7), (1, 3)])
@pytest.mark.parametrize('residual', [True, False])
def test_any_size(size, residual):
    net = network(block_out_channels=[8, 8, 8], residual=residual)
    output = net(torch.rand(1, 3, *size))
    assert output.shape[-2:] == (2 * size[0], 2 * size[1]) and output.min() >= 0 and output.max() <= 1


def test_sampling_is_repeatable_and_the_seed_counts():
    net, other, lq = network(), network(seed=1), torch.rand(1, 3, 6, 5)
    first = net(lq)
    torch.rand(3)
    assert torch.equal(net(lq), first) and not torch.equal(other(lq), first)


def test_tiles_equal_the_whole_where_they_overlap_enough():
    """A tile that is enlarged to the whole image is the whole image; a smaller overlap is not far from it."""
    net, lq = network(), torch.rand(1, 3, 9, 7)
    whole = net(lq)
    net.tile, net.tile_pad = 5, 9
    torch.testing.assert_close(net(lq), whole)
    net.tile_pad = 1
    assert net(lq).shape == whole.shape and not torch.equal(net(lq), whole)


def test_the_schedule_ends_in_noise_for_any_number_of_timesteps():
    for timesteps in (40, 100, 1000):
        net = network(timesteps=timesteps)
        assert net.sampler.scheduler.alphas_cumprod[-1] < 1e-4


@pytest.mark.parametrize('changes, message', [
    ({'steps': 3}, '`steps` is 3, which does not divide the 40 `timesteps`.*Write 2'),
    ({'steps': 50}, '`steps` is 50.*Write 40'),
    ({'norm_num_groups': 3}, '`norm_num_groups` is 3, which does not divide the 8 channels'),
    ({'pretrained': '/nowhere/at/all'}, '`pretrained`: `/nowhere/at/all` cannot be read'),
])
def test_refusals(changes, message):
    with pytest.raises(OptionError, match=message):
        network(**changes)


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    with pytest.raises(OptionError, match=r"pip install 'basicsr-kd\[advkd\]'"):
        network()


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_the_loss_is_that_of_the_noise_drawn(tmp_path, prediction):
    model = build_model(options(tmp_path, network_g={**UNET, 'prediction_type': prediction}))
    item, = batches(1)
    start = weights(model.net_g)
    log, = run(model, [item])
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
    logs = run(model, batches(1) * 30)
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
    run(whole, data)
    run(part, data[:2])
    part.save(0, 2)
    again = options(tmp_path)
    again['path'].update(pretrain_network_g=str(tmp_path / 'models/net_g_2.pth'), strict_load_g=True)
    resumed = build_model(again)
    resumed.resume_training(torch.load(tmp_path / 'training_states/2.state', weights_only=True))
    run(resumed, data[2:], 3)
    for name in ('net_g', 'net_g_ema'):
        assert_equal_weights(weights(getattr(resumed, name)), weights(getattr(whole, name)))


@pytest.mark.parametrize('train_opt, message', [
    ({'pixel_opt': {'type': 'L1Loss'}}, '`train.pixel_opt` is not read by DiffusionSRModel'),
    ({'optim_d': {'type': 'Adam', 'lr': 1}}, '`train.optim_d` is not read'),
])
def test_what_it_does_not_read(tmp_path, train_opt, message):
    with pytest.raises(OptionError, match=message):
        DiffusionSRModel.complete(options(tmp_path, train_opt))


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
