"""How a family of generators is called."""
import pytest
import torch
from basicsr.archs import build_network
from torch import nn
from torch.nn import functional as F

from kd_models.adapters import build_adapter
from kd_utils.options import OptionError
from tests.support import EDSR, GCFSR

STYLEGAN2 = {'type': 'StyleGAN2Generator', 'out_size': 8, 'num_style_feat': 16, 'num_mlp': 2, 'narrow': 1 / 64}


class Answer(nn.Module):
    """Returns what it is told to, made of the image x2."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap, self.seen = wrap, []

    def forward(self, x, **inputs):
        self.seen.append((tuple(x.shape), inputs))
        return self.wrap(F.interpolate(x, scale_factor=2))


@pytest.mark.parametrize('option, name', [
    (EDSR, 'Adapter'), ({'type': 'SwinIR', 'window_size': 8}, 'WindowAdapter'), (GCFSR, 'GCFSRAdapter'),
    ({'type': 'HAT', 'window_size': 16}, 'WindowAdapter'), ({'type': 'Other', 'window_size': [8, 8]}, 'Adapter'),
    (STYLEGAN2, 'StyleGAN2Adapter')])
def test_by_type_or_window(option, name):
    assert type(build_adapter(option)).__name__ == name


@pytest.mark.parametrize('wrap', [lambda image: image, lambda image: (image, 'more'), lambda image: [image]])
def test_the_image_or_the_first_of_several_results(wrap):
    lq, net = torch.rand(1, 3, 4, 4), Answer(wrap)
    assert torch.equal(build_adapter(EDSR)(net, lq, noise=3), F.interpolate(lq, scale_factor=2))
    assert net.seen == [((1, 3, 4, 4), {'noise': 3})]


@pytest.mark.parametrize('wrap, kind', [(lambda image: {'image': image}, 'dict'),
                                        (lambda image: (None, image), 'NoneType')])
def test_what_is_no_image_is_refused(wrap, kind):
    with pytest.raises(OptionError, match=f'Answer returns a {kind}, not an image. Let its forward return the image'):
        build_adapter(EDSR)(Answer(wrap), torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize('height, width, padded', [(8, 8, (8, 8)), (9, 8, (16, 8)), (11, 13, (16, 16))])
def test_windows_are_filled_and_cut_off_again(height, width, padded):
    lq, net = torch.rand(1, 3, height, width), Answer(lambda image: image)
    image = build_adapter({'type': 'SwinIR', 'window_size': 8})(net, lq)
    assert net.seen[0][0][2:] == padded and torch.equal(image, F.interpolate(lq, scale_factor=2))


@torch.no_grad()
def test_latents_become_images_in_0_to_1_always_the_same():
    torch.manual_seed(0)
    net, latents = build_network(STYLEGAN2), torch.randn(2, 16)
    for name, p in net.named_parameters():
        if name.endswith('.weight') and p.numel() == 1:
            p.fill_(1.)  # noise that shows: its strength begins at 0
    adapter = build_adapter(STYLEGAN2)
    images = adapter(net, latents)
    assert torch.equal(images, adapter(net, latents)) and not torch.equal(net([latents])[0], net([latents])[0])
    torch.testing.assert_close(images * 2 - 1, net([latents], randomize_noise=False)[0])


def test_what_to_change_where_sizes_do_not_fit():
    assert build_adapter(EDSR).how_to_fit(4) == 'Set its scale to 4, or name a network of that scale.'
    assert build_adapter(GCFSR).how_to_fit(4) == 'Set its `out_size` and `datasets.train.gt_size` to one number.'
