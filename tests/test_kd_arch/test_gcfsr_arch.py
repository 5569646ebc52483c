"""GCFSR against the published files' names, sizes and equations; scale, noise and refusals."""
from math import sqrt

import pytest
import torch
from basicsr.archs import build_network, stylegan2_arch
from basicsr.models.sr_model import SRModel
from basicsr.utils.matlab_functions import imresize
from torch.nn import functional as F

from kd_arch.stylegan2_ops import upfirdn2d
from kd_models.adversary import r1_penalty
from kd_models.pairing import Tapped, default_layers, pair_features, pair_layers
from kd_models.probe import probe
from kd_utils import checkpoint
from kd_utils.options import OptionError

TINY = {'type': 'GCFSR', 'out_size': 32, 'narrow': 1 / 64, 'num_style_feat': 8}
# Channels of the full network, from 4x4 to 1024x1024.
FULL = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


def tiny(seed=0, **options):
    """A small network whose biases and noise weights are not zero, as a trained one's."""
    torch.manual_seed(seed)
    net = build_network({**TINY, **options})
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def on_meta(**options):
    """A network that takes no memory."""
    with torch.device('meta'):
        return build_network(options)


def count(net):
    return sum(p.numel() for p in net.parameters())


# ------------------------------------------------------------------------------------------- names, shapes and sizes


def modulated(prefix, c_out, c_in, kernel):
    return {f'{prefix}.modulated_conv.weight': (1, c_out, c_in, kernel, kernel),
            f'{prefix}.modulated_conv.modulation.weight': (c_in, 512),
            f'{prefix}.modulated_conv.modulation.bias': (c_in,)}


def style_conv(prefix, c_out, c_in):
    return {f'{prefix}.weight': (1,), f'{prefix}.activate.bias': (c_out,), **modulated(prefix, c_out, c_in, 3)}


def published_generator(size, blind):
    """Every name and shape of a published generator, at 512 with 12 styles and 11 noises, at 1024 with 14 and 13."""
    first, sizes = FULL[size], [s for s in (1024, 512, 256, 128, 64, 32, 16) if s <= size]
    table = {'conv_body_first.0.weight': (first, 3, 3, 3), 'conv_body_first.1.bias': (first,)}
    for i, s in enumerate(sizes[:-1]):
        table[f'conv_body_down.{i}.1.weight'] = (FULL[s // 2], FULL[s], 3, 3)
        table[f'conv_body_down.{i}.2.bias'] = (FULL[s // 2],)
    last = 512 if blind else 256
    table.update({'final_conv.0.weight': (512, 512, 3, 3), 'final_conv.1.bias': (512,),
                  'final_down1.1.weight': (512, 512, 3, 3), 'final_down1.2.bias': (512,),
                  'final_down2.1.weight': (last, 512, 3, 3), 'final_down2.2.bias': (last,)})
    styles = {512: 12, 1024: 14}[size] * 512
    table.update({'final_linear.weight': (styles, last * 16), 'final_linear.bias': (styles,)})
    for i, s in enumerate(sizes):
        for name in ('condition_scale1', 'condition_scale2'):
            table.update({f'{name}.{i}.weight': (FULL[s], 1), f'{name}.{i}.bias': (FULL[s],)})
        table.update({f'condition_shift.{i}.0.weight': (FULL[s], FULL[s], 3, 3),
                      f'condition_shift.{i}.0.bias': (FULL[s],)})
    table.update(style_conv('style_conv1', 512, 512))
    table.update({'to_rgb1.bias': (1, 3, 1, 1), **modulated('to_rgb1', 3, 512, 1)})
    for i, s in enumerate(sizes[-2::-1]):
        table.update(style_conv(f'style_convs.{2 * i}', FULL[s], FULL[s // 2]))
        table.update(style_conv(f'style_convs.{2 * i + 1}', FULL[s], FULL[s]))
        table.update({f'to_rgbs.{i}.bias': (1, 3, 1, 1), **modulated(f'to_rgbs.{i}', 3, FULL[s], 1)})
    noises = [4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256][:{512: 11, 1024: 13}[size]]
    table.update({f'noises.noise{i}': (1, 1, s, s) for i, s in enumerate(noises)})
    return table


def published_discriminator(size):
    table = {'conv_body.0.0.weight': (FULL[size], 3, 1, 1), 'conv_body.0.1.bias': (FULL[size],)}
    for i, s in enumerate([s for s in (1024, 512, 256, 128, 64, 32, 16, 8) if s <= size], 1):
        c, out = FULL[s], FULL[s // 2]
        table.update({f'conv_body.{i}.conv1.0.weight': (c, c, 3, 3), f'conv_body.{i}.conv1.1.bias': (c,),
                      f'conv_body.{i}.conv2.1.weight': (out, c, 3, 3), f'conv_body.{i}.conv2.2.bias': (out,),
                      f'conv_body.{i}.skip.1.weight': (out, c, 1, 1)})
    table.update({'final_conv.0.weight': (512, 512, 3, 3), 'final_conv.1.bias': (512,),
                  'final_linear.0.weight': (512, 8192), 'final_linear.0.bias': (512,),
                  'final_linear.1.weight': (1, 512), 'final_linear.1.bias': (1,)})
    return table


@pytest.mark.parametrize('kind, size, params', [
    ('GCFSR', 512, 62_352_925), ('GCFSR', 1024, 66_668_706), ('GCFSR_blind', 512, None), ('GCFSR_blind', 1024, None),
    ('GCFSRDiscriminator', 512, 28_978_241), ('GCFSRDiscriminator', 1024, 29_007_905),
])
def test_published_files_load_strictly(kind, size, params):
    table = published_discriminator(size) if 'Disc' in kind else published_generator(size, 'blind' in kind)
    net = on_meta(type=kind, out_size=size)
    net.load_state_dict({name: torch.empty(shape, device='meta') for name, shape in table.items()}, strict=True)
    assert len(net.state_dict()) == len(table)
    if params:
        assert sum(torch.Size(shape).numel() for name, shape in table.items() if 'noises' not in name) == params


@pytest.mark.parametrize('size, narrow, params, own_styles, discriminator, gmacs', [
    (512, 1, 62_352_925, 62_352_925, 28_978_241, 119.7), (512, 1 / 2, 22_645_533, 15_597_341, 7_246_369, 30.1),
    (512, 1 / 4, 9_192_349, 3_903_901, 1_812_497, 7.6), (512, 1 / 8, 4_065_885, 978_269, 453_577, 1.9),
    (1024, 1, 66_668_706, 66_668_706, 29_007_905, 149.3), (1024, 1 / 2, 24_790_114, 16_676_450, 7_253_777, 37.6),
    (1024, 1 / 4, 10_261_698, 4_173_762, 1_814_345, 9.5), (1024, 1 / 8, 4_600_210, 1_045_778, 454_037, 2.5),
])
def test_sizes_and_cost_of_all_widths(monkeypatch, size, narrow, params, own_styles, discriminator, gmacs):
    filters = []  # the resampling filters, which the known costs leave out

    def counted(x, kernel, **options):
        out = upfirdn2d(x, kernel, **options)
        filters.append(out.numel() * kernel.numel())
        return out
    monkeypatch.setattr(stylegan2_arch, 'upfirdn2d', counted)
    result = probe(on_meta(type='GCFSR', out_size=size, narrow=narrow), (1, 3, size, size),
                   call=lambda net, x: net(x, x.new_ones(1, 1))[0])
    assert result.params == params and result.shape == (1, 3, size, size)
    assert round((result.macs - sum(filters)) / 1e9, 1) == gmacs
    assert count(on_meta(type='GCFSR', out_size=size, narrow=narrow, num_style_feat=int(512 * narrow))) == own_styles
    assert count(on_meta(type='GCFSRDiscriminator', out_size=size, narrow=narrow)) == discriminator


def test_enlarging_costs_little():
    net = on_meta(type='GCFSR', out_size=512)
    trained = probe(net, (1, 3, 512, 512), call=lambda net, x: net(x, x.new_ones(1, 1))[0])
    for lq in (16, 64, 128):
        assert probe(net, (1, 3, lq, lq)).macs - trained.macs == 3 * 512 * lq * (512 + lq)


def test_a_file_of_another_size_is_refused_with_the_remedy(tmp_path):
    net = tiny()
    torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'net_g.pth')
    torch.save(net.state_dict(), tmp_path / 'bare.pth')
    for path, key in (('net_g.pth', 'params_ema'), ('bare.pth', None)):
        assert checkpoint.load_network(build_network(TINY), tmp_path / path, key=key) == 0
    for other in ({'out_size': 64}, {'narrow': 1 / 32}, {'num_style_feat': 16}, {'type': 'GCFSR_blind'}):
        with pytest.raises(checkpoint.CheckpointError, match='does not fit GCFSR.*(shapes differ|not in the file).*'
                                                             'Change the network section'):
            checkpoint.load_network(build_network({**TINY, **other}), tmp_path / 'net_g.pth')


# ------------------------------------------------------------------------------------------------------- the equations


FIR = torch.outer(torch.tensor([1., 3, 3, 1]), torch.tensor([1., 3, 3, 1])) / 64


class ByHand:
    """The network of the paper from a state dict, image by image, with convolutions written out."""

    def __init__(self, net):
        self.w, self.net = net.state_dict(), net

    def act(self, x, bias):
        return F.leaky_relu(x + bias.view(1, -1, 1, 1), 0.2) * sqrt(2)

    def conv(self, x, name, **options):
        weight = self.w[f'{name}.weight']
        return F.conv2d(x, weight / sqrt(weight[0].numel()), **options)

    def down(self, x, name):
        x = self.conv(upfirdn2d(x, FIR, pad=(2, 2)), f'{name}.1', stride=2)
        return self.act(x, self.w[f'{name}.2.bias'])

    def linear(self, x, name):
        weight = self.w[f'{name}.weight']
        return x @ weight.T / sqrt(weight.shape[1]) + self.w[f'{name}.bias']

    def modulated(self, x, name, style, demodulate=True, up=False):
        weight = self.w[f'{name}.modulated_conv.weight'][0]
        weight = weight / sqrt(weight[0].numel()) * self.linear(style, f'{name}.modulated_conv.modulation').view(
            1, -1, 1, 1)
        if demodulate:
            weight = weight / (weight.pow(2).sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            return upfirdn2d(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), 4 * FIR, pad=(1, 1))
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def style_conv(self, x, name, style, noise, condition=None):
        x = self.modulated(x, name, style, up=condition is None) + self.w[f'{name}.weight'] * noise
        if condition:
            s1, s2, shift = condition
            length = (s1**2 + s2**2 + 1e-8).sqrt()
            x = (s1 / length).view(1, -1, 1, 1) * x + (s2 / length).view(1, -1, 1, 1) * shift
        return self.act(x, self.w[f'{name}.activate.bias'])

    def to_rgb(self, x, name, style):
        return self.modulated(x, name, style, demodulate=False) + self.w[f'{name}.bias']

    def __call__(self, x, in_size, noise):
        """One image (1, 3, 64, 64), a condition (1, 1), and five noises of sizes 16, 32, 32, 64, 64."""
        conditions = {}
        x = self.act(self.conv(x, 'conv_body_first.0', padding=1), self.w['conv_body_first.1.bias'])
        for i, size in enumerate((64, 32, 16)):
            x = self.down(x, f'conv_body_down.{i - 1}') if i else x
            conditions[size] = (self.linear(in_size, f'condition_scale1.{i}'),
                                self.linear(in_size, f'condition_scale2.{i}'),
                                self.conv(x, f'condition_shift.{i}.0', padding=1)
                                + self.w[f'condition_shift.{i}.0.bias'].view(1, -1, 1, 1))
        head = self.down(self.down(x, 'final_down1'), 'final_down2').reshape(1, -1)
        styles = (F.leaky_relu(self.linear(head, 'final_linear'), 0.2) * sqrt(2)).view(6, -1)
        x = self.act(self.conv(x, 'final_conv.0', padding=1), self.w['final_conv.1.bias'])
        x = self.style_conv(x, 'style_conv1', styles[0], noise[0], conditions[16])
        image = self.to_rgb(x, 'to_rgb1', styles[1])
        for i, size in enumerate((32, 64)):
            x = self.style_conv(x, f'style_convs.{2 * i}', styles[2 * i + 1], noise[2 * i + 1])
            x = self.style_conv(x, f'style_convs.{2 * i + 1}', styles[2 * i + 2], noise[2 * i + 2], conditions[size])
            image = upfirdn2d(image, 4 * FIR, up=2, pad=(2, 1)) + self.to_rgb(x, f'to_rgbs.{i}', styles[2 * i + 3])
        return image, styles


@pytest.mark.parametrize('kind', ['GCFSR', 'GCFSR_blind'])
@torch.no_grad()
def test_the_networks_are_their_equations(kind):
    net = tiny(type=kind, out_size=64)
    x, in_size, noise = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([[0.25], [0.75]]), net.make_noise(2)
    assert [tuple(n.shape) for n in noise] == [(2, 1, size, size) for size in (16, 32, 32, 64, 64)]
    images, styles = net(x, in_size, noise, return_latents=True)
    assert images.shape == x.shape and styles.shape == (2, 6, 8)
    for i in range(2):
        condition = torch.ones(1, 1) if kind == 'GCFSR_blind' else in_size[i:i + 1]
        image, style = ByHand(net)(x[i:i + 1], condition, [n[i:i + 1] for n in noise])
        torch.testing.assert_close(images[i:i + 1], image, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(styles[i], style, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_discriminator_is_stylegan2s_without_the_statistics():
    torch.manual_seed(0)
    net = build_network({'type': 'GCFSRDiscriminator', 'out_size': 32, 'narrow': 1 / 64})
    stock = build_network({'type': 'StyleGAN2Discriminator', 'out_size': 32, 'narrow': 1 / 64})
    state = net.state_dict()
    weight = state['final_conv.0.weight']
    # a channel more, of weight zero; the equalised learning rate divides by the square root of the channels
    state['final_conv.0.weight'] = torch.cat([weight * sqrt(9 / 8), torch.zeros(8, 1, 3, 3)], 1)
    stock.load_state_dict(state)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(net(images), stock(images))


# --------------------------------------------------------------------------------------- as a network of BasicSR, noise


@pytest.mark.parametrize('lq_size, scale', [(32, 1), (16, 2), (8, 4), (4, 8)])
@torch.no_grad()
def test_bare_faces_are_enlarged_and_conditioned_on_their_scale(lq_size, scale):
    net = tiny(cond_norm=8)
    lq = torch.rand(2, 3, lq_size, lq_size)
    enlarged = torch.stack([imresize(face, scale) for face in lq]).clamp(0, 1)
    expected, latents = net(enlarged * 2 - 1, torch.full((2, 1), scale / 8), randomize_noise=False)
    assert latents is None
    torch.testing.assert_close(net(lq), (expected + 1) / 2, atol=1e-4, rtol=1e-4)
    other, _ = net(enlarged * 2 - 1, torch.full((2, 1), scale / 16), randomize_noise=False)
    assert not torch.allclose(expected, other, atol=1e-3)


@torch.no_grad()
def test_an_untrained_network_starts_with_the_scale_in_its_output():
    torch.manual_seed(0)
    net = build_network({**TINY, 'out_size': 64, 'cond_norm': 64})
    x, noise = torch.rand(2, 3, 64, 64) * 2 - 1, net.make_noise(2)
    small, large = (net(x, torch.full((2, 1), scale / 64), noise)[0] for scale in (4, 64))
    assert (small - large).std() > 0.2 * large.std()  # with conditions that start at 0: below 1e-4


@pytest.mark.parametrize('size, largest', [(1024, 64), (512, 32), (64, 4)])
def test_the_largest_scale(size, largest):
    net = on_meta(type='GCFSR', out_size=size)
    assert net.condition(largest).item() == 1 and net.condition(largest // 4).item() == 0.25
    with pytest.raises(OptionError, match=f'Scale {2 * largest} is outside.* 1 to {largest} .*faces of 16 pixels'):
        net.condition(2 * largest)


@torch.no_grad()
def test_bare_calls_are_deterministic():
    net, lq = tiny(), torch.rand(2, 3, 16, 16)
    state = torch.get_rng_state()
    first = net(lq)
    assert torch.equal(first, net(lq)) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, net.eval()(lq))
    torch.testing.assert_close(net(lq[1:]), first[1:])  # whatever else is in the batch
    assert not torch.allclose(first, net(lq, randomize_noise=True), atol=1e-3)
    assert not torch.allclose(first, net(lq, noise=net.make_noise(2)), atol=1e-3)
    again = tiny(seed=1)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(lq), first)  # the fixed noise is no weight, and the same everywhere


@torch.no_grad()
def test_noise_is_drawn_given_or_shared():
    teacher, student = tiny(narrow=1 / 32), tiny()
    x, in_size = torch.rand(2, 3, 32, 32) * 2 - 1, torch.full((2, 1), 0.5)
    shared = teacher.make_noise(2)
    for net in (teacher, student):
        assert torch.equal(net(x, in_size, shared)[0], net(x, in_size, shared)[0])
        assert not torch.allclose(net(x, in_size)[0], net(x, in_size)[0], atol=1e-3)
        assert torch.equal(net(x, in_size, randomize_noise=False)[0], net(x, in_size, randomize_noise=False)[0])
    seen = []
    for net in (teacher, student):  # what enters a layer
        net.style_convs[1].register_forward_pre_hook(lambda module, args: seen.append(args[2]))
        net(x, in_size, shared)
    assert seen[0] is seen[1] is shared[2]


def test_the_stored_noise_is_never_used():
    net, lq = tiny(), torch.rand(1, 3, 16, 16)
    assert [tuple(b.shape[2:]) for b in net.noises.buffers()] == [(4, 4), (8, 8), (8, 8)]
    before = net(lq)
    for noise in net.noises.buffers():
        noise.fill_(torch.nan)
    assert torch.equal(net(lq), before)


def test_all_weights_learn_and_r1_has_a_gradient():
    net_g, net_d = tiny(), build_network({'type': 'GCFSRDiscriminator', 'out_size': 32, 'narrow': 1 / 64})
    image, _ = net_g(torch.rand(2, 3, 32, 32) * 2 - 1, torch.full((2, 1), 0.5))
    F.softplus(-net_d(image)).mean().backward()
    real = torch.rand(2, 3, 32, 32).requires_grad_()
    r1_penalty(net_d(real), real).backward()
    assert [name for net in (net_g, net_d) for name, p in net.named_parameters()
            if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_filters_move_with_the_network():
    """BasicSR keeps them on the CPU, from where each call would copy them."""
    for kind in ('GCFSR', 'GCFSRDiscriminator'):
        net = build_network({'type': kind, 'out_size': 32, 'narrow': 1 / 64}).to('meta')
        assert {module.kernel.device.type for module in net.modules() if hasattr(module, 'kernel')} == {'meta'}


def test_basicsrs_srmodel_takes_it():
    model = SRModel({'num_gpu': 0, 'is_train': False, 'dist': False, 'path': {}, 'network_g': {**TINY, 'cond_norm': 4}})
    for size in (8, 16):
        model.feed_data({'lq': torch.rand(1, 3, size, size)})
        model.test()
        assert model.output.shape == (1, 3, 32, 32)


# ---------------------------------------------------------------------------------------------------- taps and refusals


def test_default_layers():
    for size, down, up in ((32, 1, 1), (512, 5, 5), (1024, 6, 6)):
        net = on_meta(type='GCFSR', out_size=size, narrow=1 / 8)
        expected = ['conv_body_first', *[f'conv_body_down.{i}' for i in range(down)], 'final_conv', 'style_conv1',
                    *[f'style_convs.{2 * i + 1}' for i in range(up)]]
        assert default_layers(net, 'train.feature_kd_opt') == expected
        assert probe(net, (1, 3, size // 2, size // 2), expected).taps[expected[-1]][2:] == (size, size)
    net = on_meta(type='GCFSRDiscriminator', out_size=512, narrow=1 / 8)
    assert default_layers(net, 'feature_kd_d_opt') == [f'conv_body.{i}' for i in range(1, 8)]


@pytest.mark.parametrize('kind', ['GCFSR', 'GCFSR_blind', 'GCFSRDiscriminator', 'StyleGAN2Discriminator'])
def test_networks_of_all_widths_pair_up(kind):
    options = {'type': kind, 'out_size': 64}
    teacher, student = build_network({**options, 'narrow': 1 / 16}), build_network({**options, 'narrow': 1 / 32})
    size = (1, 3, 64, 64) if 'Disc' in kind else (1, 3, 16, 16)
    pairs = pair_features(Tapped('student', student, None, size), Tapped('teacher', teacher, None, size), None,
                          'train.feature_kd_opt')
    assert all(t == 2 * s for s, t in pairs.channels.values()) and pairs.layers == {name: name for name in pairs.layers}
    with pytest.raises(OptionError, match='Set one `out_size` for both'):
        pair_layers(None, teacher, build_network({**options, 'out_size': 32, 'narrow': 1 / 32}), 'feature_kd_opt')


@pytest.mark.parametrize('options, message', [
    ({'out_size': 500}, '`out_size` is 500. Write one of: 32, 64, 128, 256, 512, 1024.'),
    ({'out_size': 16}, '`out_size` is 16'),
    ({'out_size': 1024, 'narrow': 0.03}, '`narrow: 0.03` leaves no channels at 1024x1024. Write 0.03125 or more'),
    ({'narrow': 0.001}, 'Write 0.00390625 or more'),
    ({'cond_norm': 0}, '`cond_norm` is 0. Write the largest scale'),
])
def test_wrong_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        build_network({**TINY, **options})
    if 'cond_norm' not in options:
        with pytest.raises(OptionError, match=message):
            build_network({'type': 'GCFSRDiscriminator', 'out_size': 32, **options})


def test_the_smallest_width_works():
    for kind in ('GCFSR', 'GCFSR_blind'):
        net = build_network({'type': kind, 'out_size': 32, 'narrow': 1 / 256, 'num_style_feat': 2})
        assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize('shape, message', [
    ((1, 3, 64, 64), r'LR faces are 64x64, and the network makes 32x32 \(`out_size`\). Give it square faces'),
    ((1, 3, 16, 8), 'LR faces are 8x16'),
    ((1, 3, 12, 12), 'LR faces are 12x12.*whose size divides 32'),
    ((1, 3, 8, 8), 'Scale 4 is outside the range of this network, 1 to 2 .*faces of 16 pixels or more, or set'),
])
def test_wrong_faces_are_refused(shape, message):
    with pytest.raises(OptionError, match=message):
        tiny()(torch.rand(shape))
    if shape == (1, 3, 8, 8):
        assert tiny(type='GCFSR_blind')(torch.rand(shape)).shape == (1, 3, 32, 32)


def test_faces_that_were_not_enlarged_are_refused():
    with pytest.raises(OptionError, match='Enlarged faces are 16x16, and the network takes 32x32. Set `gt_size`'):
        tiny()(torch.rand(1, 3, 16, 16), torch.ones(1, 1))
