"""SDAKD: the three stages, who is run, trained and distilled in which, and the student that comes out."""
from copy import deepcopy

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY

from kd_cli.loop import train_pipeline
from kd_models.report import trained_and_frozen
from kd_models.sdakd_model import SDAKDModel
from kd_utils.options import OptionError
from tests.support import (
    EDSR,
    TEACHER,
    UNET,
    WithBatchNorm,
    assert_equal_weights,
    batches,
    gan_options,
    refusal,
    save_teacher,
    train,
    train_yaml,
    weights,
    write_yaml,
)

RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 4, 'num_grow_ch': 2}
COMPACT = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_conv': 4, 'upscale': 2}
TEACHER_D = {**UNET, 'num_feat': 8}
STAGES = [(1, 'supervised'), (2, 'supervised'), (3, 'distill'), (4, 'distill'), (5, 'adversarial')]


def sdakd_options(folder, train_opt=None, teacher_d=True, **top):
    section = save_teacher(folder, top.pop('teacher_g', TEACHER), TEACHER_D if teacher_d else None)
    return gan_options(folder, {'total_iter': 16, 'ema_decay': 0.9, **(train_opt or {})}, model_type='SDAKDModel',
                       teacher=section, **top)


def count_calls(net, calls, name):
    net.register_forward_hook(lambda *_: calls.append(name))


def test_the_stages_where_the_yaml_is_silent(tmp_path):
    extra = {name: {} for name in ('perceptual_opt', 'ldl_opt', 'response_kd_opt')}
    options = sdakd_options(tmp_path, {**extra, 'total_iter': 400000})
    SDAKDModel.complete(options)
    assert options['train']['stages'] == [
        {'name': 'supervised', 'iters': 50000, 'losses': ['pixel', 'perceptual']},
        {'name': 'distill', 'iters': 50000, 'losses': ['pixel', 'perceptual', 'response_kd', 'feature_kd'],
         'train_d': True, 'optimizer': 'fresh'},
        {'name': 'adversarial', 'iters': 300000,
         'losses': ['pixel', 'ldl', 'perceptual', 'gan', 'response_kd', 'feature_kd'], 'optimizer': 'fresh'}]
    before = deepcopy(options)
    SDAKDModel.complete(options)
    assert options == before


def test_what_each_stage_logs(tmp_path):
    logs = train(build_model(sdakd_options(tmp_path)), batches(5))
    adversary = {'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake', 'l_d_feature_kd'}
    assert set(logs[0]) == set(logs[1]) == {'l_g_pix', 'stage'}
    assert set(logs[2]) == set(logs[3]) == {'l_g_pix', 'l_g_feature_kd', 'stage'} | adversary
    assert set(logs[4]) == {'l_g_pix', 'l_g_feature_kd', 'l_g_gan', 'stage'} | adversary
    assert [log['stage'] for log in logs] == [1, 1, 2, 2, 3]


def test_the_first_stage_runs_neither_teacher_nor_discriminator(tmp_path):
    model, calls = build_model(sdakd_options(tmp_path)), []
    count_calls(model.teacher.net_g, calls, 'teacher g')
    count_calls(model.teacher.net_d, calls, 'teacher d')
    count_calls(model.net_d, calls, 'student d')
    train(model, batches(2))
    assert calls == []
    train(model, batches(1), first=3)
    assert calls == ['teacher g', 'student d', 'teacher d', 'student d', 'teacher d']
    calls.clear()
    train(model, batches(1), first=5)
    assert calls == ['teacher g', 'student d', 'student d', 'teacher d', 'student d', 'teacher d']


def test_the_second_stage_gives_the_generator_nothing_of_the_discriminator(tmp_path):
    """Its weights are those of a run in which no discriminator is trained."""
    runs = []
    for train_d in (True, False):
        stages = [{'name': 'a', 'iters': 2, 'losses': ['pixel']},
                  {'name': 'b', 'iters': 14, 'losses': ['pixel', 'feature_kd'], 'train_d': train_d},
                  {'name': 'c', 'iters': 1, 'losses': ['pixel', 'gan']}]
        torch.manual_seed(0)
        model = build_model(sdakd_options(tmp_path, {'stages': stages, 'total_iter': 17}))
        before = weights(model.net_d)
        train(model, batches(4))
        runs.append(weights(model.net_g))
        moved = any(not torch.equal(a, b) for a, b in zip(before.values(), weights(model.net_d).values(), strict=True))
        assert moved == train_d
    assert_equal_weights(*runs)


def test_everything_learns_and_the_teachers_stay(tmp_path):
    model = build_model(sdakd_options(tmp_path))
    teachers = [weights(model.teacher.net_g), weights(model.teacher.net_d)]
    before = {name: weights(net) for name, net in model.training.trained.items()}
    train(model, batches(6))
    assert set(before) == {'net_g', 'net_d', 'aux.feature_kd', 'aux.feature_kd_d'}
    for name, net in model.training.trained.items():
        for key, value in net.named_parameters():
            assert not torch.equal(value, before[name][key]), (name, key)
    assert_equal_weights(weights(model.teacher.net_g), teachers[0])
    assert_equal_weights(weights(model.teacher.net_d), teachers[1])


def test_adaptors_go_from_stage_to_stage_unless_fresh(tmp_path):
    def adaptors_at(iteration, **stage):
        options = sdakd_options(tmp_path)
        SDAKDModel.complete(options)
        options['train']['stages'][2].update(stage)
        torch.manual_seed(0)
        model = build_model(options)
        torch.manual_seed(1)  # the loop seeds every iteration
        train(model, batches(iteration))
        return weights(model.aux['feature_kd'])

    end_of_second, kept, renewed = adaptors_at(4), adaptors_at(5), adaptors_at(5, adaptors='fresh')
    close = [torch.allclose(kept[name], end_of_second[name], atol=5e-3) for name in kept]
    assert all(close), 'one step of Adam away'
    assert not any(torch.allclose(renewed[name], end_of_second[name], atol=5e-3) for name in kept if 'weight' in name)


def test_fresh_adaptors_have_no_moments(tmp_path):
    options = sdakd_options(tmp_path)
    SDAKDModel.complete(options)
    options['train']['stages'][2].update(adaptors='fresh', optimizer='keep')
    model = build_model(options)
    train(model, batches(5))
    steps = {name: {int(model.optimizer_g.state[p]['step']) for p in net.parameters()}
             for name, net in (('net_g', model.net_g), ('adaptors', model.aux['feature_kd']))}
    assert steps['adaptors'] == {1} and min(steps['net_g']) > 1


def test_other_stages_on_resume_are_said(tmp_path, warnings_logged):
    model = build_model(sdakd_options(tmp_path))
    model.save(0, 1)
    state = torch.load(tmp_path / 'training_states/1.state', weights_only=True)
    build_model(sdakd_options(tmp_path)).resume_training(state)
    assert not any('not those of the state' in text for text in warnings_logged)
    build_model(sdakd_options(tmp_path, {'total_iter': 80})).resume_training(state)
    assert '`train.stages` are not those of the state' in warnings_logged[-1]


@pytest.mark.parametrize('change, message', [
    ({'total_iter': float('inf')}, '`train.total_iter` cannot be inf'),
    ({'total_iter': 2}, '`train.total_iter` is 2, and SDAKDModel has three stages. Write 3 or more'),
    ({'gan_opt': None}, '`gan_opt` is missing. Add it, or write `train.stages` of your own'),
])
def test_stages_that_cannot_be_made(tmp_path, change, message):
    with pytest.raises(OptionError, match=message):
        SDAKDModel.complete(sdakd_options(tmp_path, change))


def test_a_generator_that_no_stage_updates_is_frozen_with_its_statistics(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'WithBatchNorm', WithBatchNorm)
    stages = [{'name': 'discriminator', 'iters': 100, 'losses': [], 'train_d': True}]
    model = build_model(gan_options(tmp_path, {'stages': stages, 'pixel_opt': None},
                                    network_g={'type': 'WithBatchNorm'}))
    before = weights(model.net_g)
    train(model, batches(2))
    assert_equal_weights(weights(model.net_g), before)
    assert trained_and_frozen(model.training) == 'Trained tensors: net_d 12. Frozen: net_g.'


def test_a_discriminator_is_made_for_a_teacher_and_teaches(tmp_path, images, caplog):
    """By the commands: the file of one run is `teacher.network_d` of the next; log and tensorboard name the stages."""
    section = save_teacher(tmp_path, TEACHER)
    made = train_yaml(images, name='made', train__total_iter=2, network_g=TEACHER, network_d=TEACHER_D,
                      path__pretrain_network_g=section['path']['pretrain_network_g'], path__param_key_g='params',
                      train__optim_d={'type': 'Adam', 'lr': 1e-3}, train__gan_opt={'gan_type': 'vanilla'},
                      train__stages=[{'name': 'discriminator', 'iters': 2, 'losses': [], 'train_d': True}])
    del made['train']['pixel_opt'], made['train']['ema_decay']
    train_pipeline(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'made.yml', made))])
    section['network_d'] = TEACHER_D
    section['path']['pretrain_network_d'] = str(tmp_path / 'experiments/made/models/net_d_latest.pth')
    student = train_yaml(images, name='student', model_type='SDAKDModel', teacher=section, network_d=UNET,
                         train__total_iter=8, train__optim_d={'type': 'Adam', 'lr': 1e-3},
                         train__gan_opt={'gan_type': 'vanilla'}, logger__use_tb_logger=True)
    train_pipeline(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'student.yml', student))])
    [log] = (tmp_path / 'experiments/student').glob('train_*.log')
    text = log.read_text()
    for number, (name, span) in enumerate((('supervised', '1-1'), ('distill', '2-2'), ('adversarial', '3-8')), 1):
        assert f'Stage {number} of 3: `{name}`, iterations {span}' in text
    assert 'l_d_feature_kd' in text
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tmp_path / 'tb_logger/student'))
    events.Reload()
    said = [event.tensor_proto.string_val[0].decode() for event in events.Tensors('stage/text_summary')]
    assert [one.split('`')[1] for one in said] == ['supervised', 'distill', 'adversarial']


def test_ema_may_start_from_the_active_generator(tmp_path):
    options = sdakd_options(tmp_path)
    SDAKDModel.complete(options)
    options['train']['stages'][2]['ema'] = 'fresh'
    model = build_model(options)
    train(model, batches(4))
    active = weights(model.net_g)
    train(model, batches(1), first=5)
    expected = {name: 0.9 * active[name] + 0.1 * value for name, value in model.net_g.state_dict().items()}
    for name, value in model.net_g_ema.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_optimizers_start_anew_at_the_stages(tmp_path):
    model = build_model(sdakd_options(tmp_path))
    train(model, batches(3))
    steps = {int(state['step']) for state in model.optimizer_g.state.values()}
    assert steps == {1}, 'the second stage began at iteration 3'


def test_without_a_teacher_discriminator(tmp_path):
    """None is published for most teachers: the student's is trained and not distilled."""
    logs = train(build_model(sdakd_options(tmp_path, teacher_d=False)), batches(5))
    assert 'l_d_feature_kd' not in logs[4] and 'l_d_real' in logs[2] and 'l_g_gan' in logs[4]


@pytest.mark.parametrize('change, absent', [({'feature_kd_d_opt': None}, 'l_d_feature_kd'),
                                            ({'feature_kd_opt': None}, 'l_g_feature_kd')])
def test_a_part_is_left_out_by_a_tilde(tmp_path, change, absent):
    logs = train(build_model(sdakd_options(tmp_path, change)), batches(5))
    assert absent not in logs[4] and 'l_g_gan' in logs[4]


@pytest.mark.parametrize('stop', [1, 2, 3, 4, 5])
def test_resumed_across_the_stages(tmp_path, stop):
    """Stopped before, at and after both boundaries (after 2 and 4): the rest of the run is the same, bit for bit."""
    data = batches(6)

    def built(**path):
        options = sdakd_options(tmp_path)
        options['path'].update(path)
        torch.manual_seed(0)
        return build_model(options)

    whole = built()
    logs = train(whole, data)
    part = built()
    train(part, data[:stop])
    part.save(0, stop)
    resumed = built(pretrain_network_g=str(tmp_path / f'models/net_g_{stop}.pth'), param_key_g='params',
                    strict_load_g=True, pretrain_network_d=str(tmp_path / f'models/net_d_{stop}.pth'))
    resumed.resume_training(torch.load(tmp_path / f'training_states/{stop}.state'))
    assert train(resumed, data[stop:], stop + 1) == logs[stop:]
    for name in ('net_g', 'net_d', 'net_g_ema', 'aux'):
        assert_equal_weights(weights(getattr(resumed, name)), weights(getattr(whole, name)))


@pytest.mark.parametrize('network', [RRDB, COMPACT, {**RRDB, 'scale': 2}], ids=['rrdb', 'compact', 'rrdb-x2'])
def test_the_student_is_a_plain_network_at_its_width_and_depth(tmp_path, network):
    """Also where student and teacher differ in depth: the default layers lie at equal relative depth."""
    deep = {'num_block': 6} if 'num_block' in network else {'num_conv': 9}
    scale = 2 if network.get('scale', network.get('upscale')) else 4
    teacher_g = {**network, 'num_feat': 8, **deep}
    options = sdakd_options(tmp_path, teacher_g=teacher_g, network_g=dict(network), scale=scale)
    model = build_model(options)
    train(model, batches(5, size=32 // scale, scale=scale))
    model.save(0, 5)
    saved = torch.load(tmp_path / 'models/net_g_5.pth')
    for key in ('params', 'params_ema'):
        build_network(dict(network)).load_state_dict(saved[key], strict=True)


@pytest.mark.parametrize('change, message', [
    ({'feature_kd_opt': {'layers': {'body.9': 'body.1'}}}, 'has no layer `body.9`'),
    ({'feature_kd_opt': {'layers': {'upsample.1': 'body.0'}}}, 'Pair layers of one spatial size'),
    ({'feature_kd_d_opt': {'layers': {'conv1': 'conv2'}}}, 'Pair layers of one spatial size'),
    ({'feature_kd_d_opt': {'layers': {'conv1': 'conv11'}}}, 'has no layer `conv11`'),
])
def test_layers_that_do_not_fit_are_refused(tmp_path, change, message):
    assert message in refusal(sdakd_options(tmp_path, change))


def test_a_width_below_one_channel_is_refused(tmp_path):
    assert '`network_g.num_feat` cannot be 0' in refusal(sdakd_options(tmp_path, network_g={**EDSR, 'num_feat': 0}))
    assert '`network_d.num_feat` cannot be 0.5' in refusal(
        sdakd_options(tmp_path, network_d={**UNET, 'num_feat': 0.5}))


def test_a_teacher_discriminator_of_another_input_is_refused(tmp_path):
    options = sdakd_options(tmp_path)
    grey = {**TEACHER_D, 'num_in_ch': 1}
    options['teacher']['network_d'] = grey
    torch.save({'params': build_network(grey).state_dict()}, options['teacher']['path']['pretrain_network_d'])
    assert 'teacher net_d' in refusal(options)


def test_without_a_teacher_it_is_refused(tmp_path):
    options = sdakd_options(tmp_path)
    del options['teacher']
    assert '`train.feature_kd_opt` needs `teacher`, which is missing' in refusal(options)
