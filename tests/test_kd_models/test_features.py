"""Feature maps for several losses from one pass."""
import torch
from basicsr.archs import build_network

from kd_models.features import FeatureReader
from kd_models.taps import Taps
from tests.support import EDSR


def test_each_map_is_read_once_for_all_losses_that_are_on():
    net, images, passes = build_network(EDSR), torch.rand(1, 3, 8, 8), []
    net.register_forward_hook(lambda *_: passes.append(1))
    reader = FeatureReader()
    reader.add('student', 'a', Taps(net, ['body.0', 'body.1']))
    reader.add('student', 'b', Taps(net, ['body.1', 'conv_last']))

    def layers(*losses):
        output, maps = reader.run('student', losses, lambda: net(images))
        assert torch.equal(output, net(images))
        return set(maps)

    assert layers('a') == {'body.0', 'body.1'} and layers('b') == {'body.1', 'conv_last'}
    assert layers('a', 'b') == {'body.0', 'body.1', 'conv_last'} and layers() == set() == layers('c')
    assert len(passes) == 10  # five of the reader, five of this test
    reader.add('student', 'a', Taps(net, ['conv_first']))
    assert layers('a') == {'conv_first'}, 'what was asked before is not remembered'
    assert reader.taps('another network', ['a']) is None
