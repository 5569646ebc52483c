"""Construction: what learns is in an optimizer, what cannot work is refused, and the options stay as they are."""
from copy import deepcopy

import pytest
import torch

from kd_models.build import build_teachers, teacher_names
from kd_utils.options import OptionError
from tests.support import (
    TEACHER,
    assert_equal_weights,
    batches,
    build,
    full_options,
    model_options,
    save_teacher,
    train,
    weights,
)


def test_every_trained_tensor_is_in_one_optimizer_and_in_the_checkpoint(tmp_path):
    model = build(full_options(tmp_path))
    trained = [p for net in (model.net_g, model.net_d, model.aux) for p in net.parameters()]
    optimized = [p for o in model.optimizers for group in o.param_groups for p in group['params']]
    assert len(optimized) == len(set(map(id, optimized))) == len(trained)
    assert set(map(id, optimized)) == set(map(id, trained))
    train(model, batches(1))
    model.save(0, 1)
    saved = torch.load(tmp_path / 'models' / 'net_g_1.pth', weights_only=True)
    assert_equal_weights(saved['params'], weights(model.net_g))
    assert_equal_weights(saved['params_ema'], weights(model.net_g_ema))
    assert_equal_weights(torch.load(tmp_path / 'models' / 'net_d_1.pth')['params'], weights(model.net_d))
    state = torch.load(tmp_path / 'training_states' / '1.state', weights_only=True)
    assert_equal_weights(state['aux'], weights(model.aux))
    assert len(state['optimizers']) == 2


@pytest.mark.parametrize('train_opt, message', [
    ({'perceptual_opt': {'type': 'L1Loss'}}, 'perceptual_opt: L1Loss with these .* the loss `perceptual`'),
    ({'pixel_opt': {'type': 'L1Loss', 'reduction': 'none'}}, 'pixel_opt: L1Loss with these options'),
    ({'pixel_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}}, 'pixel_opt: GANLoss'),
    ({'response_kd_opt': {'type': 'PerceptualLike'}}, 'response_kd_opt: PerceptualLike'),
    ({'feature_kd_opt': {'type': 'Plain', 'layers': {'body.1': 'body.1'}}}, 'feature_kd_opt: Plain cannot be'),
    ({'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': True, 'foreach': True}}, 'train.optim_g: '),
])
def test_classes_that_are_not_made_for_their_place_are_refused(tmp_path, monkeypatch, train_opt, message):
    from basicsr.utils.registry import LOSS_REGISTRY

    class PerceptualLike(torch.nn.Module):
        def forward(self, x, y):
            return x.mean(), None

    class Plain(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            if kwargs:
                raise TypeError(f'unexpected {list(kwargs)}')

    for cls in (PerceptualLike, Plain):
        monkeypatch.setitem(LOSS_REGISTRY._obj_map, cls.__name__, cls)
    with pytest.raises(OptionError, match=message):
        build(model_options(tmp_path, train_opt, teacher=save_teacher(tmp_path)))


def test_names_of_teachers(tmp_path):
    """`teacher` is that of the section of this name, others are of `teachers`."""
    assert teacher_names('teacher') == 'teacher' and teacher_names(['large', 'teacher']) == ['teacher.large', 'teacher']
    section = save_teacher(tmp_path, TEACHER)
    teachers = build_teachers({'teacher': section, 'teachers': {'large': section}}, torch.device('cpu'))
    assert list(teachers) == ['teacher', 'teacher.large']
    assert teachers['teacher'].fingerprint() == teachers['teacher.large'].fingerprint()
    assert build_teachers({}, torch.device('cpu')) == {}


def test_a_models_own_options_build_it_again(tmp_path):
    """Nothing is taken out of them on the way, such as the `type` of an optimizer."""
    first = build(full_options(tmp_path))
    kept = deepcopy(first.opt)
    second = build(first.opt)
    assert first.opt == kept == second.opt
    for name, net in first.training.trained.items():
        assert_equal_weights(weights(net), weights(second.training.trained[name]))
