"""Adv-KD: which states teach which phase, the losses by hand, growth, reuse, cache, resume, the deployed student."""
import json
import random

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from torch.nn.functional import l1_loss, softplus

from kd_cli.loop import test_pipeline as run_test
from kd_cli.loop import train_pipeline
from kd_data.draws import seed_everything
from kd_models import advkd_model
from kd_models.advkd_model import AdvKDModel
from kd_models.distillation_model import DistillationModel
from kd_models.phases import wanted
from kd_utils.options import OptionError, check_options
from kd_utils.resize import bicubic
from tests.support import (
    assert_equal_weights,
    batches,
    model_options,
    refusal,
    save_teacher,
    train_seeded,
    train_yaml,
    weights,
    write_yaml,
)

UNET = {'type': 'DiffusionUNet', 'scale': 2, 'block_out_channels': [8, 16], 'layers_per_block': 1,
        'norm_num_groups': 4, 'timesteps': 40, 'steps': 4}
STUDENT = {'type': 'DenoisingPhaseNet', 'scale': 2, 'phases': 3, 'num_feat': 4, 'num_block': 1}
OPTIM = {'type': 'Adam', 'lr': 1e-3, 'betas': [0.5, 0.999]}
NETWORK_D = {'type': 'PhaseDiscriminators', 'num_feat': 4}
FAITHFUL = {**STUDENT, 'phases': 5, 'num_block': 2, 'faithful': True}


def options(folder, train_opt=None, teacher=None, **top):
    train_opt = {'pixel_opt': None, 'optim_g': OPTIM, **(train_opt or {})}
    if train_opt.get('gan_opt', {}) is not None:
        faithful = train_opt.get('preset') == 'faithful'
        top = {'network_d': {**NETWORK_D, 'faithful': faithful}, **top}
    section = save_teacher(folder, {**UNET, **(teacher or {})})
    return model_options(folder, train_opt, **{'model_type': 'AdvKDModel', 'network_g': dict(STUDENT),
                                               'teacher': section, **top})


def faithful_options(folder, train_opt=None, **top):
    return options(folder, {'preset': 'faithful', **(train_opt or {})}, **{'network_g': dict(FAITHFUL), **top})


# ---------------------------------------------------------------------------------------------- what teaches a phase


@pytest.mark.parametrize('target', ['xt', 'x0'])
@pytest.mark.parametrize('residual', [True, False])
def test_the_last_phase_is_taught_the_teachers_image(tmp_path, target, residual):
    """X_S is what the teacher's own sampler returns for the same noise; the phases before are smaller."""
    model = build_model(options(tmp_path, {'target': target}, teacher={'residual': residual}))
    item, = batches(1)
    train_seeded(model, [item])
    drawn, net, sizes = model.drawn, model.teacher.net_g, model.net_g.sizes
    way = net.trajectory(drawn['noise'], net.condition(item['lq']))
    j = [1, 3, 4]
    expected = [way.states[i] for i in j] if target == 'xt' else [way.estimates[i - 1] for i in j]
    for k in range(3):
        torch.testing.assert_close(drawn['states'][:, k], expected[k].clamp(-1, 1))
        assert wanted(drawn['states'], k, sizes).shape[-1] == 16 * [1, 1, 2][k]
    torch.testing.assert_close(wanted(drawn['states'], 0, sizes), bicubic(drawn['states'][:, 0], 16))
    assert torch.equal(drawn['states'][:, 2], wanted(drawn['states'], 2, sizes))


def test_the_losses_by_hand(tmp_path):
    """L1 and adversarial loss summed over the phases, D's loss on the states, R1 when it is due."""
    model = build_model(options(tmp_path, {'net_d_reg_every': 1}))
    item, = batches(1)
    before, before_d = weights(model.net_g), weights(model.net_d)
    heads = weights(model.aux['phase_heads'])
    log, = train_seeded(model, [item])
    model.net_g.load_state_dict(before)
    model.net_d.load_state_dict(before_d)
    model.aux['phase_heads'].load_state_dict(heads)
    net, drawn, lq = model.net_g, model.drawn, item['lq']
    maps = net.features(net.enter(lq, drawn['noise']), 2)
    images = [head(x) for head, x in zip([*model.aux['phase_heads'], net.head], maps, strict=True)]
    taught = [wanted(drawn['states'], k, net.sizes) for k in range(3)]
    pairs = list(zip(images, taught, strict=True))
    assert log['l_g_phase_kd'] == pytest.approx(float(sum(l1_loss(s, y) for s, y in pairs)), rel=1e-4)
    fake = [model.net_d(s, lq, drawn['noise'], phase=k) for k, s in enumerate(images)]
    real = [model.net_d(y.requires_grad_(), lq, drawn['noise'], phase=k) for k, y in enumerate(taught)]
    assert log['l_g_gan'] == pytest.approx(0.02 * float(sum(softplus(-x).mean() for x in fake)), rel=1e-4)
    assert log['l_d_real'] == pytest.approx(float(sum(softplus(-x).mean() for x in real)), rel=1e-4)
    assert log['l_d_fake'] == pytest.approx(float(sum(softplus(x).mean() for x in fake)), rel=1e-4)
    slopes = [torch.autograd.grad(x.sum(), y)[0] for x, y in zip(real, taught, strict=True)]
    assert log['l_d_r1'] == pytest.approx(float(sum(g.square().sum((1, 2, 3)).mean() for g in slopes)), rel=1e-4)


def test_self_distillation_by_hand(tmp_path):
    """The EMA's image is made from the noise of the iteration, so that equal networks are at distance 0."""
    distill = {'self_distill_opt': {'type': 'MSELoss', 'loss_weight': 0.5}, 'ema_decay': 0.9}
    model = build_model(options(tmp_path, {'gan_opt': None, **distill}))
    first, second = batches(2)
    log, = train_seeded(model, [first])
    assert log['l_g_self_distill'] == 0
    before, ema = weights(model.net_g), weights(model.net_g_ema)
    log, = train_seeded(model, [second], 2)
    images = []
    for state in (before, ema):
        model.net_g.load_state_dict(state)
        with torch.no_grad():
            images.append(model.net_g(second['lq'], model.drawn['noise']))
    expected = (images[0] - images[1]).square().mean().item()
    assert log['self_distill_distance'] == pytest.approx(expected, rel=1e-4) and expected > 0
    assert log['l_g_self_distill'] == pytest.approx(0.5 * expected, rel=1e-4)


def test_discriminators_depend_on_the_lr_image_and_faithful_ones_on_the_noise():
    torch.manual_seed(0)
    images, lq, noise = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 8, 8), torch.randn(2, 3, 16, 16)
    for faithful in (False, True):
        net = build_network({**NETWORK_D, 'sizes': [8, 16], 'faithful': faithful})
        first = net(images, lq, noise, phase=1)
        assert not torch.equal(net(images, 1 - lq, noise, phase=1), first)
        assert torch.equal(net(images, lq, -noise, phase=1), first) != faithful
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in
                   build_network({**NETWORK_D, 'sizes': [8, 16]}).modules())


# ------------------------------------------------------------------------------------------------------------ training


def test_everything_meant_to_learn_moves_and_the_teacher_does_not(tmp_path):
    model = build_model(options(tmp_path, {'ema_decay': 0.9}))
    modules = {**model.training.trained}
    before = {name: weights(module) for name, module in modules.items()}
    teacher = weights(model.teacher.net_g)
    train_seeded(model, batches(2))
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            assert not torch.equal(value, before[name][key]), f'{name}.{key}'
    assert_equal_weights(weights(model.teacher.net_g), teacher)
    assert all(p.grad is None for p in model.teacher.net_g.parameters()) and not model.teacher.net_g.training
    optimized = {id(p) for optimizer in model.optimizers for group in optimizer.param_groups for p in group['params']}
    assert {id(p) for module in modules.values() for p in module.parameters()} == optimized


def test_one_batch_is_learnt(tmp_path):
    """The image of the last phase approaches the teacher's for the same noise."""
    model = build_model(options(tmp_path, {'gan_opt': None, 'traj_reuse': 100, 'optim_g': {**OPTIM, 'lr': 5e-3}}))
    item, = batches(1)
    logs, distances = [], []
    for iteration in range(1, 41):
        logs += train_seeded(model, [item], iteration)
        state = model.diffusion.encode(model.output, model.diffusion.condition(item['lq']))
        distances.append(float(l1_loss(state, model.drawn['states'][:, -1])))
    assert logs[-1]['l_g_phase_kd'] < 0.8 * logs[0]['l_g_phase_kd'] and distances[-1] < 0.8 * distances[0]
    assert model.net_d is None


@pytest.mark.parametrize('phase', [1, 2, 3, 4, 5])
def test_growing_students_train_up_to_the_newest_phase(tmp_path, phase):
    """Blocks up to it, its own head and discriminator; all others keep their weights."""
    stages = [{'name': 'one', 'iters': 100, 'losses': ['gan'], 'phase': phase}]
    model = build_model(faithful_options(tmp_path, {'stages': stages}))
    before = {name: weights(module) for name, module in model.training.trained.items()}
    train_seeded(model, batches(1))
    heads = [*model.aux['phase_heads'], model.net_g.head]

    def moved(module):
        return any(p.grad is not None for p in module.parameters())

    assert [moved(block) for block in model.net_g.phases] == [k < phase for k in range(5)]
    assert [moved(head) for head in heads] == [k + 1 == phase for k in range(5)]
    now = weights(model.net_d)
    changed = {int(name.split('.')[0]) for name in now if not torch.equal(now[name], before['net_d'][name])}
    assert changed == {phase - 1}
    assert model.output.shape[-1] == 16 * model.net_g.sizes[phase - 1]


def test_the_faithful_preset(tmp_path):
    model = build_model(faithful_options(tmp_path, {'total_iter': 15, 'scheduler': None}))
    assert [(s.phase, s.end - s.start + 1, s.losses, s.optimizer) for s in model.stages] == [
        (k, k, ('gan', ), 'fresh') for k in range(1, 6)]
    assert model.states == [0, 1, 2, 3, 4]
    logs = train_seeded(model, batches(3))
    assert model.drawn['states'].shape[1] == 2  # phase 2 of iterations 2 and 3: X_0, X_1 by one step of the teacher
    assert {'l_g_gan', 'l_d_real', 'l_d_fake', 'l_d_gp', 'stage'} <= set(logs[0]) and 'l_g_phase_kd' not in logs[0]
    for discriminator in list(model.net_d)[:2]:
        assert max(float(p.abs().max()) for p in discriminator.parameters()) <= 0.1 + 1e-6
    assert max(float(p.abs().max()) for p in model.net_d[4].parameters()) > 0.1  # its turn has not come


def test_the_clip_is_a_switch(tmp_path):
    model = build_model(faithful_options(tmp_path, {'weight_clip': 0}))
    train_seeded(model, batches(1))
    assert max(float(p.abs().max()) for p in model.net_d[0].parameters()) > 0.5


def test_a_student_that_grows_gets_a_longer_trajectory(tmp_path):
    """Even where the one before is not used up."""
    model = build_model(faithful_options(tmp_path, {'total_iter': 15, 'traj_reuse': 100}))
    data = batches(4)
    train_seeded(model, data)
    assert model.drawn['states'].shape[1] == 3 and torch.equal(model.drawn['lq'], data[3]['lq'])


def test_a_trajectory_is_used_more_than_once(tmp_path, monkeypatch):
    model = build_model(options(tmp_path, {'traj_reuse': 2}))
    calls, draw = [], model.draw
    monkeypatch.setattr(model, 'draw', lambda phases: (calls.append(phases), draw(phases))[1])
    data = batches(5)
    train_seeded(model, data)
    assert calls == [3, 3, 3]
    assert torch.equal(model.lq, data[4]['lq'])
    train_seeded(model, data[:1], 6)
    assert torch.equal(model.lq, data[4]['lq'])


@pytest.mark.parametrize('stop', [1, 2, 3, 4])
@pytest.mark.parametrize('preset', ['practical', 'faithful'])
def test_resume(tmp_path, preset, stop):
    """Across the boundaries of stages, and in the middle of a trajectory's uses."""
    def opt():
        if preset == 'faithful':
            return faithful_options(tmp_path, {'total_iter': 15, 'ema_decay': 0.9})
        return options(tmp_path, {'traj_reuse': 2, 'ema_decay': 0.9, 'net_d_reg_every': 2})

    data = batches(5)
    seed_everything(1)
    whole, part = build_model(opt()), build_model(opt())
    for name, module in whole.training.trained.items():
        part.training.trained[name].load_state_dict(module.state_dict())
    part.net_g_ema.load_state_dict(whole.net_g_ema.state_dict())
    train_seeded(whole, data)
    train_seeded(part, data[:stop])
    part.save(0, stop)
    again = opt()
    again['path'].update(pretrain_network_g=str(tmp_path / f'models/net_g_{stop}.pth'), strict_load_g=True,
                         pretrain_network_d=str(tmp_path / f'models/net_d_{stop}.pth'))
    resumed = build_model(again)
    resumed.resume_training(torch.load(tmp_path / f'training_states/{stop}.state', weights_only=True))
    train_seeded(resumed, data[stop:], stop + 1)
    for name, module in whole.training.trained.items():
        assert_equal_weights(weights(resumed.training.trained[name]), weights(module))
    assert_equal_weights(weights(resumed.net_g_ema), weights(whole.net_g_ema))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize('train_opt, top, message', [
    ({}, {'network_g': {**STUDENT, 'phases': 6}}, '6 phases, and the teacher passes through 5 states'),
    ({'target': 'x0'}, {'network_g': {**STUDENT, 'phases': 5}}, 'taught by the noise X_0'),
    ({}, {'teacher': {'steps': 3}}, '`steps` is 3, which does not divide'),
    ({}, {'network_g': {**STUDENT, 'sizes': [1, 3, 2]}}, 'a phase of 2 times the LR image cannot follow one of 3'),
    ({}, {'network_g': {**STUDENT, 'sizes': [1, 1.5, 2]}}, 'a phase of 1.5 times'),
    ({}, {'network_g': {**STUDENT, 'sizes': [1, 2]}}, '`sizes` has 2 phases'),
    ({'stages': [{'name': 'a', 'iters': 100, 'losses': ['gan'], 'phase': 4}]}, {}, 'has `phase: 4`, and there are 3'),
    ({'pixel_opt': {'type': 'L1Loss'},
      'stages': [{'name': 'a', 'iters': 100, 'losses': ['gan', 'pixel'], 'phase': 1}]}, {}, 'ends at phase 1'),
    ({'preset': 'best'}, {}, '`train.preset` cannot be .best.. Write one of `practical`, `faithful`'),
    ({'feature_kd_opt': {}}, {}, '`train.feature_kd_opt` is not read by AdvKDModel'),
    ({}, {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2},
          'network_d': {**NETWORK_D, 'sizes': [16]}}, 'EDSR has no phases'),
])
def test_refusals(tmp_path, train_opt, top, message):
    with pytest.raises(OptionError, match=message):
        build_model(options(tmp_path, train_opt, **top))


def test_a_teacher_has_no_discriminator(tmp_path):
    opt = options(tmp_path)
    opt['teacher']['network_d'] = dict(NETWORK_D)
    assert '`teacher.network_d` has no place beside a diffusion model' in refusal(opt)


@pytest.mark.parametrize('preset', ['practical', 'faithful'])
@pytest.mark.parametrize('network_g, message', [
    ({**STUDENT, 'phases': 'a'}, "`network_g.phases` cannot be 'a'"),
    ({'scale': 2}, '`network_g.type` is missing'),
    ('DenoisingPhaseNet', '`network_g` cannot be'),
    ({'type': 'DenoisingPhasNet'}, 'Did you mean `DenoisingPhaseNet`'),
])
def test_mistakes_of_the_student_are_named(tmp_path, preset, network_g, message):
    assert message in refusal(options(tmp_path, {'preset': preset}, network_g=network_g))


@pytest.mark.parametrize('network_d, message', [
    ({'type': 'UNetDiscriminatorSN', 'num_in_ch': 3}, 'UNetDiscriminatorSN is not one discriminator for each phase'),
    ({**NETWORK_D, 'sizes': [16, 16]}, 'the images of the phases have the sides [16, 16, 32] in training'),
    ({**NETWORK_D, 'sizes': [16, 16, 64]}, '`network_d.sizes` is [16, 16, 64]'),
    (None, '`network_d` is empty'),
])
def test_discriminators_that_are_not_of_the_phases(tmp_path, network_d, message):
    assert message in refusal(options(tmp_path, network_d=network_d))


@pytest.mark.parametrize('faithful, key, value, message', [
    (True, 'batch_size_per_gpu', 1, 'phase 1 does not take 1 images of 16x16.*`datasets.train.batch_size_per_gpu` 2'),
    (False, 'gt_size', 4, 'phase 1 does not take 2 images of 2x2.*`datasets.train.gt_size` larger'),
])
def test_batches_too_small_for_the_discriminators(tmp_path, faithful, key, value, message):
    opt = options(tmp_path, network_d={**NETWORK_D, 'faithful': faithful})
    opt['datasets']['train'][key] = value
    with pytest.raises(OptionError, match=message):
        build_model(opt)


def test_without_the_loss_there_are_no_discriminators(tmp_path):
    opt = options(tmp_path, {'gan_opt': None, 'gp_reg_weight': 1, 'weight_clip': 1})
    AdvKDModel.complete(opt)
    assert [message.split('`')[1] for message in check_options(opt, DistillationModel.losses)] == [
        'train.gp_reg_weight', 'train.weight_clip']
    opt['network_d'] = dict(NETWORK_D)
    assert '`network_d` has nothing to learn without `train.gan_opt`' in refusal(opt)


def test_a_faithful_training_is_long_enough_for_its_stages(tmp_path):
    assert '`train.total_iter` is 5, too few for the 5 stages' in refusal(faithful_options(tmp_path, {'total_iter': 5}))


def test_losses_on_the_image_wait_for_the_last_phase(tmp_path):
    model = build_model(faithful_options(tmp_path, {'pixel_opt': {'type': 'L1Loss'}}))
    assert [stage.losses for stage in model.stages] == [('gan', )] * 4 + [('pixel', 'gan')]


@pytest.mark.parametrize('kind', ['FFHQDataset', 'SampleDataset'])
def test_a_training_set_without_lr_images(tmp_path, kind):
    opt = options(tmp_path)
    opt['datasets']['train']['type'] = kind
    message = refusal(opt)
    assert f'`datasets.train.type`: {kind} gives' in message and 'Use PairedImageDataset' in message


def test_another_teacher_is_refused(tmp_path):
    opt = options(tmp_path)
    opt['teacher'] = save_teacher(tmp_path)
    with pytest.raises(OptionError, match='needs a diffusion model as `teacher.network_g`'):
        build_model(opt)


# ------------------------------------------------------------------------------------------ cache, deployment, the loop


def teacher_and_student(images, tmp_path, train_opt=None, **changes):
    yml = train_yaml(images, model_type='AdvKDModel', network_g=dict(STUDENT), network_d=dict(NETWORK_D),
                     teacher=save_teacher(tmp_path, UNET), **changes)
    del yml['train']['pixel_opt']
    yml['train'].update(train_opt or {})
    return yml


def trained(root, yml, *arguments):
    root.mkdir(exist_ok=True)
    train_pipeline(str(root), ['-opt', str(write_yaml(root / 'tiny.yml', yml)), *arguments])
    return torch.load(root / 'experiments' / yml['name'] / 'models' / 'net_g_latest.pth')


def test_the_cache_is_the_teachers_trajectory(tmp_path, images, monkeypatch):
    """The second run reads it: no evaluation of the U-Net; each crop is the crop of noise and states alike."""
    yml = teacher_and_student(images, tmp_path, {'total_iter': 2}, val=None)
    del yml['datasets']['val']
    yml['teacher']['cache'] = str(tmp_path / 'cache')
    first = trained(tmp_path / 'a', yml)
    record = json.loads((tmp_path / 'cache/teacher.json').read_text())
    assert record['trajectory'] == {'states': [1, 3, 4], 'target': 'xt'} and record['network_g']['steps'] == 4
    monkeypatch.setattr(advkd_model, 'trajectory', None)
    assert_equal_weights(trained(tmp_path / 'b', yml)['params'], first['params'])
    for change in ({'steps': 8}, {'seed': 3}):
        yml['teacher']['network_g'] = {**UNET, **change}
        with pytest.raises(OptionError, match='made with other network_g.*Name another folder'):
            trained(tmp_path / 'c', yml)


def test_a_crop_of_the_cache_is_noise_and_states_of_the_same_place(tmp_path, images):
    from basicsr.data import build_dataset

    from kd_data.teacher_cache import TeacherCache
    model = build_model(options(tmp_path))
    opt = {**train_yaml(images)['datasets']['train'], 'phase': 'train', 'scale': 2}
    cache = TeacherCache(build_dataset(opt), str(tmp_path / 'cache'))
    cache.claim(model.cache_record())
    list(cache.fill([0], model.cacheable))
    random.seed(5)
    item = cache[0]
    assert item['teacher'].shape == (12, 32, 32)
    model.feed_data({name: value[None] for name, value in item.items() if torch.is_tensor(value)})
    drawn = model.draw(3)
    assert drawn['noise'].shape == (1, 3, 32, 32) and drawn['states'].shape == (1, 3, 3, 32, 32)
    assert drawn['noise'].std() == pytest.approx(1, abs=0.1) and drawn['states'].abs().max() <= 1
    whole = build_dataset({**opt, 'phase': 'val'})[0]['lq'][None]
    full = model.cacheable(whole)[0].half().float()
    flips = [full, full.flip(2), full.flip(1), full.flip(1, 2)]
    flips += [x.transpose(1, 2) for x in flips]
    assert any(torch.equal(x[:, top:top + 32, left:left + 32], item['teacher'])
               for x in flips for top in range(0, 33, 2) for left in range(0, 33, 2))


@pytest.mark.parametrize('noise', ['paired', 'zero'])
def test_the_deployed_student_is_the_last_output_of_the_whole_one(tmp_path, noise):
    model = build_model(options(tmp_path, network_g={**STUDENT, 'noise': noise}))
    train_seeded(model, batches(2))
    model.save(0, 2)
    content = torch.load(tmp_path / 'models/net_g_2.pth')['params']
    assert not [name for name in content if not name.startswith(('stem', 'phases', 'head.'))]
    student = build_network({**STUDENT, 'noise': noise})
    student.load_state_dict(content)
    lq, z = torch.rand(1, 3, 7, 9), torch.randn(1, 3, 14, 18)
    maps = model.net_g.features(model.net_g.enter(lq, z), 2)
    assert torch.equal(student(lq, z), model.net_g.finish(model.net_g.head(maps[-1]), lq))
    assert torch.equal(student(lq, z), student(lq, z))
    assert torch.equal(student(lq, z), student(lq, -z)) == (noise == 'zero')
    assert torch.equal(student(lq), student(lq))


def test_from_teacher_to_deployment(tmp_path, images):
    """All through YAML: a teacher, its student, and BasicSR's own SRModel with the student's weights."""
    teacher = train_yaml(images, name='teacher', model_type='DiffusionSRModel', network_g=dict(UNET), val=None)
    del teacher['train']['pixel_opt'], teacher['datasets']['val']
    teacher['train']['total_iter'] = 4
    trained(tmp_path, teacher)
    yml = teacher_and_student(images, tmp_path, {'total_iter': 4})
    yml['teacher']['path'] = {'pretrain_network_g': str(tmp_path / 'experiments/teacher/models/net_g_latest.pth')}
    yml['val']['metrics']['psnr_teacher'] = {'type': 'calculate_psnr', 'crop_border': 2, 'reference': 'teacher'}
    trained(tmp_path, yml)
    line = json.loads((tmp_path / 'experiments/tiny/validation.jsonl').read_text().splitlines()[-1])
    assert line['metrics']['psnr_teacher'] > 0
    for model_type in ('AdvKDModel', 'SRModel'):
        test = {'name': model_type, 'model_type': model_type, 'scale': 2, 'num_gpu': 0, 'manual_seed': 0,
                'datasets': {'test_1': yml['datasets']['val']}, 'network_g': yml['network_g'],
                'path': {'pretrain_network_g': str(tmp_path / 'experiments/tiny/models/net_g_latest.pth'),
                         'param_key_g': 'params_ema', 'strict_load_g': True},
                'val': {'save_img': model_type == 'SRModel', 'metrics': {'psnr': yml['val']['metrics']['psnr']}}}
        run_test(str(tmp_path), ['-opt', str(write_yaml(tmp_path / 'test.yml', test))])
    result = json.loads((tmp_path / 'results/AdvKDModel/metrics_Tiny.json').read_text())
    assert result['mean']['psnr'] == pytest.approx(line['metrics']['psnr'], rel=1e-6)
    assert len(list((tmp_path / 'results/SRModel/visualization/Tiny').glob('*.png'))) == 6


def test_the_presets_pass_the_check(tmp_path):
    for opt in (options(tmp_path), faithful_options(tmp_path), options(tmp_path, {'gan_opt': None})):
        AdvKDModel.complete(opt)
        assert check_options(opt, DistillationModel.losses) == []


def test_a_student_that_is_not_there_is_said_before_its_size(tmp_path):
    opt = options(tmp_path)
    opt['nework_g'] = opt.pop('network_g')
    opt['teacher']['network_g'] = {'type': 'DiffusionUNet', 'size': 32}
    AdvKDModel.complete(opt)
    with pytest.raises(OptionError, match='nework_g'):
        check_options(opt, DistillationModel.losses)
