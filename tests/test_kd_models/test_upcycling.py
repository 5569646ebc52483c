"""Second inputs: how they are made, what is computed on them, and what is left as it is."""
import pytest
import torch
from basicsr.models import build_model
from torch.nn.functional import l1_loss

from kd_models import upcycling
from kd_utils.options import OptionError
from kd_utils.resize import bicubic
from tests.support import (
    TEACHER,
    assert_equal_weights,
    batches,
    gan_options,
    model_options,
    refusal,
    save_teacher,
    stopped_and_resumed,
    train,
    train_seeded,
    weights,
)

STILL = {'flip': False, 'rotate': False}


def options(folder, upcycle=None, train=None, make=model_options, **top):
    losses = {'response_kd_opt': {'type': 'L1Loss', 'inputs': 'upcycled'}, 'upcycling': upcycle or {}}
    return make(folder, {**losses, **(train or {})}, teacher=save_teacher(folder), **top)


def second(model):
    """The second input that the next iteration is given, and what is made of it."""
    kept = []
    run = model.forwards['upcycled']

    def remember(training, step, name):
        run(training, step, name)
        kept.append(step.upcycled)
    model.update.forwards = {**model.forwards, 'upcycled': remember}
    return kept


def test_a_reduced_input_by_hand(tmp_path):
    model = build_model(options(tmp_path, {'enlarge': 0, **STILL}))
    [item] = batches(1)
    expected = bicubic(item['lq'], 8).clamp(0, 1)
    with torch.no_grad():
        loss = l1_loss(model.net_g(expected), model.teacher.net_g(expected))
    kept = second(model)
    [log] = train(model, [item])
    assert torch.equal(kept[0].lq, expected)
    assert log['l_g_response_kd'] == pytest.approx(float(loss), rel=1e-5)


def test_an_enlarged_input_is_a_crop_of_the_teachers_image(tmp_path):
    model = build_model(options(tmp_path, {'enlarge': 1, **STILL}))
    [item] = batches(1)
    with torch.no_grad():
        image = model.teacher.net_g(item['lq']).clamp(0, 1)
    kept = second(model)
    train(model, [item])
    crops = [image[..., top:top + 16, left:left + 16] for top in range(17) for left in range(17)]
    assert any(torch.equal(kept[0].lq, crop) for crop in crops)


@pytest.mark.parametrize('option', [{'flip': True, 'rotate': False}, {'flip': False, 'rotate': True}, {'invert': True}])
def test_the_label_does_not_go_through_the_augmentation(tmp_path, option):
    """The student sees F(x'), the teacher x'; what is compared is turned back."""
    model = build_model(options(tmp_path, {'enlarge': 0, **STILL, **option}))
    kept, seen = second(model), set()
    of_teacher, of_student = [], []
    model.teacher.net_g.register_forward_pre_hook(lambda module, args: of_teacher.append(args[0]))
    model.net_g.register_forward_pre_hook(lambda module, args: of_student.append(args[0].detach()))
    for iteration, item in enumerate(batches(12), 1):
        of_student.clear()
        model.feed_data(item)
        model.optimize_parameters(iteration)
        plain, shown = of_teacher[-1], of_student[-1]
        seen.add(torch.equal(plain, shown))
        same_colours = plain.mean() == pytest.approx(float(shown.mean()), abs=1e-5)
        assert same_colours or torch.allclose(plain, 1 - shown, atol=1e-6)
    assert seen == {True, False}, 'drawn anew in each iteration'
    assert len(kept) == 12


def test_turning_back_is_the_inverse():
    images = torch.rand(1, 3, 4, 6)
    torch.manual_seed(0)
    forms = set()
    for _ in range(300):
        forward, back = upcycling._augmentation({'flip': True, 'rotate': True, 'invert': True}, 0., 1.)
        assert torch.allclose(back(forward(images)), images, atol=1e-6)
        forms.add((forward(images).shape, tuple(forward(images).flatten().tolist())))
    assert len(forms) == 16


def test_both_inputs_are_summed(tmp_path):
    values = {}
    for inputs in ('given', 'upcycled', 'both'):
        train_opt = {'response_kd_opt': {'type': 'L1Loss', 'inputs': inputs}}
        torch.manual_seed(5)
        model = build_model(options(tmp_path, {'enlarge': 0, **STILL}, train_opt))
        values[inputs] = train(model, batches(1))[0]['l_g_response_kd']
    assert values['both'] == pytest.approx(values['given'] + values['upcycled'], rel=1e-5)
    assert values['given'] != values['upcycled']


def test_feature_losses_on_both_inputs_share_their_adaptors(tmp_path):
    train_opt = {'response_kd_opt': None, 'feature_kd_opt': {'inputs': 'both'},
                 'feature_affinity_opt': {'inputs': 'upcycled', 'layers': {'body.1': 'body.1'}}}
    model = build_model(options(tmp_path, None, train_opt))
    kept, before = second(model), weights(model.aux)
    [log] = train(model, batches(1))
    assert set(kept[0].features) == {'student', 'teacher'} and 'body.1' in kept[0].features['teacher']
    assert log['l_g_feature_kd'] > 0 and log['l_g_feature_affinity'] > 0
    assert any(not torch.equal(value, before[name]) for name, value in weights(model.aux).items())


def test_maps_are_turned_back_as_images_are(tmp_path):
    """A student equal to its teacher has equal maps, however it was shown the input: convolutions of one value."""
    layers = {'conv_first': 'conv_first'}
    train_opt = {'response_kd_opt': None, 'feature_affinity_opt': {'inputs': 'upcycled', 'layers': layers}}
    model = build_model(options(tmp_path, None, train_opt, network_g=dict(TEACHER)))
    model.net_g.load_state_dict(model.teacher.net_g.state_dict())
    for net in (model.net_g, model.teacher.net_g):
        net.conv_first.weight.data[:] = net.conv_first.weight.data.mean((2, 3), keepdim=True)
    for log in train(model, batches(1)):
        assert log['l_g_feature_affinity'] < 1e-6


def test_the_second_input_of_a_cached_teacher_is_live(tmp_path, monkeypatch):
    opt = options(tmp_path, {'enlarge': 0, **STILL}, {'response_kd_opt': {'inputs': 'both'}})
    opt['teacher']['cache'] = str(tmp_path / 'cache')
    model = build_model(opt)
    [item] = batches(1)
    calls = []
    model.teacher.net_g.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[-1]))
    train(model, [{**item, 'teacher': torch.zeros_like(item['gt'])}])
    assert calls == [8], 'the given input is read, the reduced one is computed'


def test_without_second_inputs_nothing_changes(tmp_path):
    results = []
    for extra in ({}, {'upcycling': {}}):
        torch.manual_seed(1)
        model = build_model(model_options(tmp_path, {'response_kd_opt': {}, **extra}, teacher=save_teacher(tmp_path)))
        train_seeded(model, batches(2))
        results.append(weights(model.net_g))
    assert_equal_weights(*results)


@pytest.mark.parametrize('stop', [1, 2])
def test_resume_is_exact(tmp_path, stop):
    whole, resumed = stopped_and_resumed(lambda: build_model(options(tmp_path)), tmp_path, batches(4), stop)
    assert_equal_weights(weights(resumed.net_g), weights(whole.net_g))


@pytest.mark.parametrize('order', ['simultaneous', 'g_first', 'd_first'])
def test_with_a_gan_in_every_order(tmp_path, order):
    train_opt = {'update_order': order, 'response_kd_opt': {'inputs': 'both'}}
    model = build_model(options(tmp_path, None, train_opt, gan_options))
    log = train(model, batches(2))[-1]
    assert {'l_g_response_kd', 'l_g_gan', 'l_d_real'} <= set(log)


def test_what_is_refused(tmp_path):
    assert '`train.upcycling`, which says how they are made, is missing' in \
        refusal(options(tmp_path, None, {'upcycling': None}))
    assert '`train.upcycling.enlarge` cannot be 2' in refusal(options(tmp_path, {'enlarge': 2}))
    assert 'Unknown key `train.upcycling.flips`' in refusal(options(tmp_path, {'flips': True}))
    features = {'feature_kd_opt': {'inputs': 'both'}}
    assert 'Write `invert: false`' in refusal(options(tmp_path, {'invert': True}, features))
    small = options(tmp_path)
    small['datasets']['train']['gt_size'] = 16
    assert 'reduces LR crops of 8 pixels to 4' in refusal(small)


def test_tokens_are_turned_back_as_the_images_are():
    maps = torch.rand(2, 3, 4, 4)
    for turns in range(4):
        def back(images, turns=turns):
            return torch.rot90(images, -turns, (-2, -1)).flip(-1)
        tokens = upcycling._turned_back('layer', maps.flatten(2).unsqueeze(-1), back)
        assert torch.equal(tokens, back(maps).flatten(2).unsqueeze(-1))
    with pytest.raises(OptionError, match='has 15 tokens, which are no square'):
        upcycling._turned_back('layer', torch.rand(2, 3, 15, 1), back)
