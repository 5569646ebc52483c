"""Several teachers by name: each loss asks its own, and each is protected as the one teacher is."""
import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from torch.nn.functional import l1_loss

from kd_models.report import trained_and_frozen
from kd_utils.checkpoint import CheckpointError
from tests.support import (
    EDSR,
    TEACHER,
    UNET,
    assert_equal_weights,
    batches,
    gan_options,
    model_options,
    refusal,
    save_teacher,
    stopped_and_resumed,
    train,
    weights,
)

WIDE = {**EDSR, 'num_feat': 10, 'num_block': 3}


def named(folder, **networks) -> dict:
    """A `teachers` section with the weights of each in a folder of its own."""
    sections = {}
    for number, (name, network) in enumerate(networks.items()):
        (folder / name).mkdir(exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(number)
            sections[name] = save_teacher(folder / name, network)
            state = build_network(network).state_dict()
        torch.save({'params': state}, folder / name / 'teacher_g.pth')
    return sections


def images(model, lq):
    with torch.no_grad():
        return {name: teacher.net_g(lq) for name, teacher in model.teachers.items()}


@pytest.mark.parametrize('combine', ['each', 'mean'])
def test_response_against_two_by_hand(tmp_path, combine):
    option = {'type': 'L1Loss', 'teacher': ['a', 'b'], 'combine': combine}
    model = build_model(model_options(tmp_path, {'response_kd_opt': option},
                                      teachers=named(tmp_path, a=TEACHER, b=WIDE)))
    [item] = batches(1)
    found = images(model, item['lq'])
    with torch.no_grad():
        output = model.net_g(item['lq'])
    [log] = train(model, [item])
    a, b = found['teacher.a'], found['teacher.b']
    expected = l1_loss(output, (a + b) / 2) if combine == 'mean' else (l1_loss(output, a) + l1_loss(output, b)) / 2
    assert not torch.allclose(a, b)
    assert log['l_g_response_kd'] == pytest.approx(float(expected), rel=1e-5)


def test_each_loss_asks_the_teacher_that_it_names(tmp_path):
    """Two feature losses at once, of different kinds, on different teachers, and a response to the unnamed one."""
    losses = {'feature_kd_opt': {'teacher': 'a'}, 'response_kd_opt': {},
              'feature_affinity_opt': {'teacher': 'b', 'layers': {'body.1': 'body.1'}}}
    model = build_model(model_options(tmp_path, losses, teacher=save_teacher(tmp_path),
                                      teachers=named(tmp_path, a=TEACHER, b=WIDE)))
    [item] = batches(1)
    found = images(model, item['lq'])
    with torch.no_grad():
        output = model.net_g(item['lq'])
        student = model.training.features.run('student', ['feature_affinity'], lambda: model.net_g(item['lq']))[1]
        of_b = model.training.features.run('teacher.b', ['feature_affinity'],
                                           lambda: model.teachers['teacher.b'].net_g(item['lq']))[1]
        affinity = model.terms['feature_affinity'].criterion(student, of_b)
    assert list(student) == ['body.1'] and of_b['body.1'].shape[1] == 10
    [log] = train(model, [item])
    assert log['l_g_response_kd'] == pytest.approx(float(l1_loss(output, found['teacher'])), rel=1e-5)
    assert log['l_g_feature_affinity'] == pytest.approx(float(affinity), rel=1e-4)
    assert log['l_g_feature_kd'] > 0 and set(model.aux) == {'feature_kd'}


def test_only_the_teachers_of_the_stage_are_run(tmp_path):
    stages = [{'name': 'one', 'iters': 1, 'losses': ['pixel', 'response_kd']},
              {'name': 'two', 'iters': 1, 'losses': ['pixel']}]
    train_opt = {'response_kd_opt': {'teacher': 'b'}, 'stages': stages, 'total_iter': 2}
    model = build_model(model_options(tmp_path, train_opt, teachers=named(tmp_path, a=TEACHER, b=WIDE)))
    calls = []
    for name, teacher in model.teachers.items():
        teacher.net_g.register_forward_hook(lambda *_, name=name: calls.append(name))
    train(model, batches(2))
    assert calls == ['teacher.b']


def test_teachers_stay_as_they_are_and_are_said(tmp_path):
    teachers = {'a': named(tmp_path, a=TEACHER)['a'], 'b': save_teacher(tmp_path, WIDE, UNET)}
    train_opt = {'feature_kd_opt': {'teacher': 'a'}, 'feature_kd_d_opt': {'teacher': 'b'}}
    model = build_model(gan_options(tmp_path, train_opt, teachers=teachers))
    nets = [net for teacher in model.teachers.values() for net in (teacher.net_g, teacher.net_d) if net is not None]
    before = [weights(net) for net in nets]
    logs = train(model, batches(3))
    for net, old in zip(nets, before, strict=True):
        assert_equal_weights(weights(net), old)
        assert not net.training
    assert logs[0]['l_d_feature_kd'] > 0
    assert trained_and_frozen(model.training).endswith('Frozen: teacher.a net_g, teacher.b net_g, teacher.b net_d.')


def test_resume_is_exact(tmp_path):
    def build():
        return build_model(model_options(tmp_path, {'response_kd_opt': {'teacher': ['a', 'b']}, 'ema_decay': 0.9},
                                         teachers=named(tmp_path, a=TEACHER, b=WIDE)))
    torch.manual_seed(0)
    whole, resumed = stopped_and_resumed(build, tmp_path, batches(4), 2)
    assert_equal_weights(weights(resumed.net_g), weights(whole.net_g))
    assert_equal_weights(weights(resumed.net_g_ema), weights(whole.net_g_ema))


def test_weights_that_do_not_fit_are_named(tmp_path):
    teachers = named(tmp_path, a=TEACHER, b=WIDE)
    teachers['b']['network_g'] = {**WIDE, 'num_feat': 11}
    with pytest.raises(CheckpointError, match='b/teacher_g.pth does not fit EDSR'):
        build_model(model_options(tmp_path, {'response_kd_opt': {'teacher': 'a'}}, teachers=teachers))


def test_what_is_refused(tmp_path):
    teachers = named(tmp_path, a=TEACHER, b=WIDE)

    def text(train=None, **top):
        return refusal(model_options(tmp_path, {'response_kd_opt': {}} if train is None else train,
                                     **{'teachers': teachers, **top}))

    untrained = {'network_g': dict(WIDE), 'path': {}}
    assert '`train.response_kd_opt` needs `teacher`' in text() and 'as in `teacher: a`' in text()
    assert 'names `c`, and there is no such teacher' in text({'response_kd_opt': {'teacher': 'c'}})
    assert 'Did you mean `aa`?' not in text({'response_kd_opt': {'teacher': 'c'}})
    assert 'must name each teacher once' in text({'response_kd_opt': {'teacher': ['a', 'a']}})
    assert 'Unknown key `train.pixel_opt.teacher`' in text({'pixel_opt': {'type': 'L1Loss', 'teacher': 'a'}})
    assert 'the loss `pixel` compares with no teacher' in text({'pixel_opt': {'type': 'L1Loss', 'teacher': 'a'}})
    assert '`train.feature_kd_opt.teacher` cannot be' in text({'feature_kd_opt': {'teacher': ['a', 'b']}})
    message = text({'response_kd_opt': {'teacher': 'a'}}, teachers={**teachers, 'b': untrained})
    assert '`teachers.b.path.pretrain_network_g` is missing, and an untrained network teaches nothing' in message
    assert '`teachers.0` is no name for a teacher' in text(teachers={0: untrained})
    assert '`teachers.gt` is no name' in text(teachers={'gt': untrained})
    message = text({'feature_kd_d_opt': {'teacher': 'a'}})
    assert '`train.feature_kd_d_opt` needs `network_d`, which is missing' in message
    message = refusal(gan_options(tmp_path, {'feature_kd_d_opt': {'teacher': 'a'}}, teachers=teachers))
    assert '`train.feature_kd_d_opt` needs `teachers.a.network_d`, which is missing' in message
