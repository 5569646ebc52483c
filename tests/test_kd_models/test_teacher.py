"""The frozen networks that teach: what they are loaded from, what they answer, and by what they are known."""
from copy import deepcopy

import pytest
import torch
from basicsr.archs import build_network

from kd_models.taps import Taps
from kd_models.teacher import Teacher
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError
from tests.support import TEACHER, UNET, WithBatchNorm, assert_equal_weights, batches, save_teacher, weights

CPU = torch.device('cpu')
LQ = batches(1)[0]['lq']


def without(section, label, name):
    """The section, whose file of a network lacks a tensor."""
    path = section['path'][f'pretrain_network_{label}']
    content = torch.load(path)
    del content['params'][name]
    torch.save(content, path)
    return section


def test_it_is_loaded_frozen_and_in_eval(tmp_path):
    section = save_teacher(tmp_path, network_d=UNET)
    teacher = Teacher(section, CPU)
    for label, net in (('g', teacher.net_g), ('d', teacher.net_d)):
        assert_equal_weights(weights(net), torch.load(section['path'][f'pretrain_network_{label}'])['params'])
        assert not any(module.training for module in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
    assert Teacher(save_teacher(tmp_path), CPU).net_d is None


def test_the_average_of_a_training_is_preferred(tmp_path):
    section = save_teacher(tmp_path)
    path = section['path']['pretrain_network_g']
    active, average = torch.load(path)['params'], build_network(TEACHER).state_dict()
    torch.save({'params': active, 'params_ema': average}, path)
    assert_equal_weights(weights(Teacher(section, CPU).net_g), average)
    section['path']['param_key_g'] = 'params'
    assert_equal_weights(weights(Teacher(section, CPU).net_g), active)


@pytest.mark.parametrize('label, name', [('g', 'conv_last.bias'), ('d', 'conv9.bias')])
def test_a_file_that_leaves_tensors_untrained_is_refused(tmp_path, label, name):
    """Whether or not names must match: random weights teach nothing."""
    section = without(save_teacher(tmp_path, network_d=UNET), label, name)
    with pytest.raises(CheckpointError, match=rf'not in the file \(1\): {name}'):
        Teacher(section, CPU)
    section['path'][f'strict_load_{label}'] = False
    with pytest.raises(OptionError, match=f'leaves 1 tensors of teacher.network_{label} untrained. Describe the'):
        Teacher(section, CPU)


def test_what_else_a_file_holds_does_no_harm_where_names_need_not_match(tmp_path):
    section = save_teacher(tmp_path)
    path = section['path']['pretrain_network_g']
    trained = torch.load(path)['params']
    torch.save({'params': {**trained, 'more.weight': torch.ones(2)}}, path)
    section['path']['strict_load_g'] = False
    assert_equal_weights(weights(Teacher(section, CPU).net_g), trained)


def test_its_images_and_feature_maps(tmp_path):
    """From one pass, without a graph, and ready for the backward of what is trained on them."""
    teacher = Teacher(save_teacher(tmp_path), CPU)
    image, maps = teacher.generate(LQ, Taps(teacher.net_g, ['body.1', 'conv_after_body']))
    plain, none = teacher.generate(LQ)
    assert torch.equal(image, plain) and none == {} and image.shape == (2, 3, 32, 32)
    assert {name: tuple(x.shape) for name, x in maps.items()} == {'body.1': (2, 12, 16, 16),
                                                                  'conv_after_body': (2, 12, 16, 16)}
    assert not any(x.requires_grad or x.is_inference() for x in (image, *maps.values()))


def test_the_maps_of_its_discriminator(tmp_path):
    teacher = Teacher(save_teacher(tmp_path, network_d=UNET), CPU)
    before, images = weights(teacher.net_d), torch.rand(2, 3, 32, 32)
    maps = teacher.discriminate(images, Taps(teacher.net_d, ['conv0']))
    assert torch.equal(maps['conv0'], teacher.net_d.conv0(images)) and not maps['conv0'].requires_grad
    assert_equal_weights(weights(teacher.net_d), before)  # no power iteration


def test_its_fingerprint_is_that_of_what_decides_its_images(tmp_path):
    section = save_teacher(tmp_path)
    known = Teacher(section, CPU).fingerprint()
    path = section['path']['pretrain_network_g']
    torch.save({'params_ema': torch.load(path)['params']}, path)
    assert Teacher(section, CPU).fingerprint() == known  # of the weights, not of the file
    other = deepcopy(section)
    other['network_g']['res_scale'] = 0.5
    assert Teacher(other, CPU).fingerprint() != known


def test_statistics_are_weights_too(tmp_path, monkeypatch):
    from basicsr.utils.registry import ARCH_REGISTRY
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'WithBatchNorm', WithBatchNorm)
    teacher = Teacher(save_teacher(tmp_path, {'type': 'WithBatchNorm'}), CPU)
    known = teacher.fingerprint()
    teacher.net_g.net[1].running_mean += 1
    assert teacher.fingerprint() != known
