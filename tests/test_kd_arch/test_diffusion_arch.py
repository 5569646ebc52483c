"""The diffusion network: its sampler is DDIM, any size, tiles, seeds, refusals."""
import sys

import pytest
import torch
from basicsr.archs import build_network

from kd_utils.options import OptionError
from tests.support import model_options, refusal

UNET = {'type': 'DiffusionUNet', 'scale': 2, 'block_out_channels': [8, 16], 'layers_per_block': 1,
        'norm_num_groups': 4, 'timesteps': 40, 'steps': 4}
PREDICTIONS = ('epsilon', 'v_prediction', 'sample')


def network(**changes):
    torch.manual_seed(0)
    return build_network({**UNET, **changes}).eval()


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


def test_each_tile_sees_its_own_part_of_image_and_noise():
    """With a network of known reach, a blur over 3x3, four steps reach four pixels: an overlap of that is enough."""
    net, lq = network(residual=False, prediction_type='sample'), torch.rand(1, 3, 13, 11)

    def predict(x, t, condition):
        return torch.nn.functional.avg_pool2d(0.5 * x + condition, 3, 1, 1, count_include_pad=False) / 2

    net.predict = predict
    whole = net(lq)
    net.tile, net.tile_pad = 4, 4
    torch.testing.assert_close(net(lq), whole)


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


@pytest.mark.parametrize('changes, message', [
    ({'block_out_channels': []}, 'block_out_channels` cannot be'),
    ({'block_out_channels': [8, 0]}, 'block_out_channels` cannot be'),
    ({'norm_num_groups': 0}, 'norm_num_groups` cannot be 0'),
    ({'layers_per_block': 0}, 'layers_per_block` cannot be 0'),
    ({'dropout': 2}, 'dropout` cannot be 2'),
])
def test_kinds(tmp_path, changes, message):
    options = model_options(tmp_path, model_type='DiffusionSRModel', network_g={**UNET, **changes}, scale=2)
    del options['train']['pixel_opt']
    assert message in refusal(options)


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    with pytest.raises(OptionError, match=r"pip install 'basicsr-kd\[advkd\]'"):
        network()
