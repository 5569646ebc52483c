"""StyleGAN2's two operations against loops in NumPy, and BasicSR's own StyleGAN2 networks running on them."""
import sys
import types

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.stylegan2_arch import UpFirDnUpsample
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn.functional import softplus

from kd_arch import stylegan2_ops
from kd_arch.stylegan2_ops import fused_leaky_relu, upfirdn2d


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def reference(image, kernel, up, down, pad):
    """The definition, pixel by pixel: zeros after each pixel, padding or cropping, true convolution, every down-th."""
    n, channels, height, width = image.shape
    zeros = np.zeros((n, channels, height * up, width * up))
    zeros[:, :, ::up, ::up] = image
    before, after = pad
    zeros = np.pad(zeros, ((0, 0), (0, 0), *[(max(before, 0), max(after, 0))] * 2))
    crop = [slice(max(-before, 0), zeros.shape[axis] - max(-after, 0)) for axis in (2, 3)]
    zeros = zeros[:, :, crop[0], crop[1]]
    rows, columns = kernel.shape
    out = np.zeros((n, channels, zeros.shape[2] - rows + 1, zeros.shape[3] - columns + 1))
    for y in range(out.shape[2]):
        for x in range(out.shape[3]):
            for i in range(rows):
                for j in range(columns):
                    out[:, :, y, x] += kernel[i, j] * zeros[:, :, y + rows - 1 - i, x + columns - 1 - j]
    return out[:, :, ::down, ::down]


CASES = [(1, 1, (0, 0)), (1, 1, (2, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (2, 3, (3, 0)), (3, 2, (-1, 4)),
         (2, 1, (-2, -1)), (1, 2, (0, -2))]


@pytest.mark.parametrize('up, down, pad', CASES)
def test_upfirdn2d_is_its_definition(up, down, pad):
    image, kernel = double(2, 3, 7, 6), double(3, 4)  # neither square nor symmetric
    expected = reference(image.numpy(), kernel.numpy(), up, down, pad)
    torch.testing.assert_close(upfirdn2d(image, kernel, up=up, down=down, pad=pad), torch.from_numpy(expected))


@pytest.mark.parametrize('up, down, pad', [(2, 1, (2, 1)), (1, 2, (-1, 2)), (2, 3, (1, -1))])
def test_upfirdn2d_can_be_differentiated_twice(up, down, pad):
    inputs = double(1, 2, 5, 4).requires_grad_(), double(3, 2).requires_grad_()
    assert gradcheck(lambda x, k: upfirdn2d(x, k, up, down, pad), inputs)
    assert gradgradcheck(lambda x, k: upfirdn2d(x, k, up, down, pad), inputs)


@pytest.mark.parametrize('shape', [(4, 3), (2, 3, 4, 5)])
def test_fused_leaky_relu(shape):
    x, bias = double(*shape), double(3)
    biased = x.numpy() + bias.numpy().reshape(1, 3, *[1] * (len(shape) - 2))
    expected = np.where(biased > 0, biased, 0.2 * biased) * np.sqrt(2)
    torch.testing.assert_close(fused_leaky_relu(x, bias), torch.from_numpy(expected))
    torch.testing.assert_close(fused_leaky_relu(x, None, 0.1, 3.), torch.where(x > 0, 3 * x, 0.3 * x))
    inputs = x.requires_grad_(), bias.requires_grad_()
    assert gradcheck(fused_leaky_relu, inputs) and gradgradcheck(fused_leaky_relu, inputs)
    assert fused_leaky_relu(x.bfloat16(), bias.float()).dtype == torch.bfloat16


def test_they_are_everywhere():
    import basicsr.archs.stylegan2_arch as arch
    import basicsr.ops.fused_act as act
    import basicsr.ops.upfirdn2d as resample
    assert {act.fused_leaky_relu, sys.modules['basicsr.ops.fused_act.fused_act'].fused_leaky_relu,
            arch.fused_leaky_relu} == {fused_leaky_relu}
    assert {resample.upfirdn2d, arch.upfirdn2d} == {upfirdn2d}
    activate = act.FusedLeakyReLU(3)  # as in any project that imports it from BasicSR
    torch.testing.assert_close(activate(double(2, 3, 4, 4)), fused_leaky_relu(double(2, 3, 4, 4), activate.bias))
    assert list(activate.state_dict()) == ['bias']


def test_modules_that_already_hold_basicsrs_get_ours_too(monkeypatch):
    def upfirdn2d(input, kernel):
        raise NameError('upfirdn2d_ext')
    early = types.ModuleType('imported_before')
    early.upfirdn2d, early.other = upfirdn2d, 1
    monkeypatch.setitem(sys.modules, early.__name__, early)
    monkeypatch.setattr(sys.modules['basicsr.ops.upfirdn2d.upfirdn2d'], 'upfirdn2d', upfirdn2d)
    stylegan2_ops.install()
    assert early.upfirdn2d is stylegan2_ops.upfirdn2d and early.other == 1
    stylegan2_ops.install()
    assert early.upfirdn2d is stylegan2_ops.upfirdn2d


def test_upsampling_keeps_the_mean_of_an_image():
    """The gain and the offsets of BasicSR's layers fit these operations."""
    image = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(UpFirDnUpsample((1, 3, 3, 1))(image)[..., 2:-2, 2:-2], torch.full((1, 3, 12, 12), 0.3))


def r1(net):
    images = torch.randn(4, 3, 16, 16).requires_grad_()
    logits = net(images)
    slopes, = grad(logits.sum(), images, create_graph=True)
    return 5 * slopes.pow(2).sum((1, 2, 3)).mean() + softplus(-logits).mean()


def path_length(net):
    images, latents = net([torch.randn(4, 8)], return_latents=True)
    slopes, = grad((images * torch.randn_like(images)).sum(), latents, create_graph=True)
    return slopes.pow(2).sum(2).mean(1).sqrt().mean() + images.mean()


@pytest.mark.parametrize('loss, options', [
    (r1, {'type': 'StyleGAN2Discriminator'}),
    (path_length, {'type': 'StyleGAN2Generator', 'num_style_feat': 8, 'num_mlp': 2}),
])
def test_basicsrs_own_networks_train(loss, options):
    torch.manual_seed(0)
    net = build_network({'out_size': 16, 'narrow': 1 / 64, **options})
    before = {name: p.clone() for name, p in net.named_parameters()}
    loss(net).backward()
    torch.optim.SGD(net.parameters(), 0.01).step()
    assert [name for name, p in net.named_parameters() if torch.equal(p, before[name])] == []
    assert all(torch.isfinite(p).all() for p in net.parameters())
