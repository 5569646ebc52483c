"""Adv-KD's students and discriminators: sizes of the phases, the published networks, noise, refusals."""
import pytest
import torch
from basicsr.archs import build_network

from kd_arch.denoising_phase_arch import phase_sizes, squeeze
from kd_utils.options import OptionError

SIZE = 16
STUDENT = {'type': 'PhaseDecoder', 'size': SIZE, 'num_feat': 4}


@pytest.mark.parametrize('scale, five, eleven', [
    (4, [1, 1, 2, 2, 4], [1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4]),
    (2, [1, 1, 1, 2, 2], [1] * 7 + [2] * 4),
    (3, [1, 1, 1, 3, 3], [1] * 7 + [3] * 4),
])
def test_the_sizes_where_the_yaml_is_silent(scale, five, eleven):
    assert phase_sizes(scale, 5) == five and phase_sizes(scale, 11) == eleven
    for phases in range(1, 14):
        sizes = phase_sizes(scale, phases)
        assert len(sizes) == phases and sizes[-1] == scale and sizes == sorted(sizes)


@pytest.mark.parametrize('faithful', [True, False])
@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('lq', [(8, 8), (5, 7)])
def test_the_images_of_the_phases(scale, lq, faithful):
    net = build_network({'type': 'DenoisingPhaseNet', 'scale': scale, 'num_feat': 4, 'num_block': 2,
                         'faithful': faithful})
    images = torch.rand(2, 3, *lq)
    maps = net.features(net.enter(images), 4)
    heads = [*net.phase_heads(), net.head]
    shapes = [tuple(head(x).shape) for head, x in zip(heads, maps, strict=True)]
    assert shapes == [(2, 3, size * lq[0], size * lq[1]) for size in net.sizes]
    assert net(images).shape == (2, 3, scale * lq[0], scale * lq[1])
    assert len(net.features(net.enter(images), 1)) == 2  # what comes later is not run
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()) == faithful


def test_sizes_as_written():
    net = build_network({'type': 'DenoisingPhaseNet', 'phases': 3, 'sizes': [2, 4, 4], 'num_feat': 4, 'num_block': 1})
    assert [x.shape[-1] for x in net.features(net.enter(torch.rand(1, 3, 6, 6)), 2)] == [12, 24, 24]


@pytest.mark.parametrize('scale, sizes, message', [
    (4, [1, 2, 3, 3, 4], 'a phase of 3 times the LR image cannot follow one of 2 times'),
    (4, [2, 1, 2, 2, 4], 'a phase of 1 times the LR image cannot follow one of 2 times'),
    (2, [1, 1, 1, 1, 1], 'ends at 1 times the LR image'),
    (2, [], '`sizes` has 0 phases'),
])
def test_sizes_that_cannot_be(scale, sizes, message):
    with pytest.raises(OptionError, match=message):
        build_network({'type': 'DenoisingPhaseNet', 'scale': scale, 'sizes': sizes})


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_the_published_networks():
    """Parameters of the published code: 1.72 M deployed, 2.43 M in training, discriminators of 0.12 M to 1.27 M."""
    net = build_network({'type': 'PhaseDecoder'})
    assert count(net) == 1_721_235 and count(net) + count(net.phase_heads()) == 2_429_937
    assert [4 * size for size in net.sizes] == [8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256]
    critics = build_network({'type': 'PhaseDiscriminators', 'sizes': [8, 256], 'num_feat': 32, 'faithful': True,
                             'conditional': False})
    assert [count(critic) for critic in critics] == [119_937, 1_268_545]


def test_the_noise_stays_standard_normal():
    noise = torch.randn(2000, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small = squeeze(noise)
    assert small.shape[-1] == 4 and small.std() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(small[0, 0, 0, 0], noise[0, 0, :8, :8].mean() * 8)


def test_deployment_takes_the_4x4_noise_itself():
    net = build_network(dict(STUDENT)).eval()
    noise = torch.randn(2, 3 * SIZE**2)
    small = squeeze(noise.view(2, 3, SIZE, SIZE)).flatten(1)
    torch.testing.assert_close(net(noise), net(small))
    assert net(small).shape == (2, 3, SIZE, SIZE)


def test_a_size_that_is_no_power_of_two():
    with pytest.raises(OptionError, match='`size` is 24. Write a power of two'):
        build_network({**STUDENT, 'size': 24})
