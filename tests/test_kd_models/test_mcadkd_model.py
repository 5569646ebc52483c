"""MCAD-KD: every part learns, every weight counts once, and the YAML files of its authors can be brought along."""
from copy import deepcopy

import pytest
import torch
from basicsr.models import build_model
from torch.nn import functional as F

from kd_models.mcadkd_model import MCADKDModel
from kd_utils.options import OptionError, apply_aliases, check_options, load_yaml
from tests.support import EDSR, TEACHER, assert_equal_weights, batches, model_options, save_teacher, train, weights

SMALL = {'contrastive_opt': {'patch_size': 8, 'num_patches': 3, 'd_emb': 16}}
SMALL_D = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}


def options(folder, train_opt=None, **top):
    losses = {'pixel_opt': {'type': 'L1Loss', 'loss_weight': 3.0}, **SMALL, **(train_opt or {})}
    return model_options(folder, losses, **{
        'model_type': 'MCADKDModel', 'teacher': save_teacher(folder), 'network_d': SMALL_D, **top})


def build(opt):
    torch.manual_seed(1)
    return build_model(opt)


def test_everything_learns_and_the_teacher_does_not(tmp_path):
    model = build(options(tmp_path))
    parts = {'net_g': model.net_g, 'net_d': model.net_d, 'contrastive': model.aux['contrastive']}
    before = {name: weights(net) for name, net in parts.items()}
    teacher = weights(model.teacher.net_g)
    logs = train(model, batches(2))
    for name, net in parts.items():
        for key, value in net.named_parameters():
            assert not torch.equal(value, before[name][key]), f'{name}.{key} did not move'
    assert_equal_weights(weights(model.teacher.net_g), teacher)
    assert set(logs[0]) == {'l_g_pix', 'l_g_gan', 'l_g_response_kd', 'l_g_contrastive', 'l_d_real', 'l_d_fake',
                            'out_d_real', 'out_d_fake', 'contrastive_image', 'contrastive_patch',
                            'contrastive_tau_image', 'contrastive_tau_patch'}
    assert logs[0]['contrastive_tau_image'] == pytest.approx(0.07)
    assert logs[1]['contrastive_tau_image'] != logs[0]['contrastive_tau_image']


def test_the_papers_weights_are_the_defaults_and_count_once(tmp_path):
    opt = options(tmp_path)
    for name in ('pixel_opt', 'contrastive_opt'):
        opt['train'].pop(name)
    MCADKDModel.complete(opt)
    train_opt = opt['train']
    assert [train_opt[name]['loss_weight'] for name in ('pixel_opt', 'response_kd_opt', 'gan_opt')] == [3.0, 0.5, 0.01]
    model = build(options(tmp_path))
    log = train(model, batches(1))[0]
    fresh = build(options(tmp_path))
    with torch.no_grad():
        lq, gt = batches(1)[0]['lq'], batches(1)[0]['gt']
        s, t = fresh.net_g(lq), fresh.teacher.net_g(lq)
    assert log['l_g_pix'] == pytest.approx(3.0 * (s - gt).abs().mean().item(), rel=1e-5)
    assert log['l_g_response_kd'] == pytest.approx(0.5 * (s - t).abs().mean().item(), rel=1e-5)
    assert log['l_g_contrastive'] == pytest.approx(
        0.05 * (0.3 * log['contrastive_image'] + 0.7 * log['contrastive_patch']), rel=1e-5)


def test_the_discriminator_comes_first_and_sees_the_ground_truth(tmp_path):
    model = build(options(tmp_path))
    fresh = build(options(tmp_path))
    log = train(model, batches(1))[0]
    with torch.no_grad():
        fresh.net_d.train()
        real = fresh.net_d(batches(1)[0]['gt'])
    assert log['out_d_real'] == pytest.approx(real.mean().item(), rel=1e-5)
    assert model.opt['train']['update_order'] == 'd_first'
    assert [group['lr'] for group in model.optimizer_d.param_groups] == [1e-3]
    for i in range(2, 53):
        model.update_learning_rate(i)
    assert [group['lr'] for group in model.optimizer_d.param_groups] == [5e-4]  # on the schedule


@pytest.mark.parametrize('part', ['pixel', 'response_kd', 'contrastive', 'gan'])
def test_each_part_can_be_left_out(tmp_path, part):
    changes = {'network_d': None} if part == 'gan' else {}
    model = build(options(tmp_path, {f'{part}_opt': None}, **changes))
    assert part not in model.terms and len(model.terms) == 3
    train(model, batches(1))
    assert (model.net_d is None) == (part == 'gan')


def test_what_the_file_does_not_name_is_said_to_be_on(tmp_path):
    opt = options(tmp_path)
    del opt['network_d']
    d = '{"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 64, "skip_connection": true}'
    assert MCADKDModel.complete(opt) == [f'`{key}` is not in the file: MCADKDModel {end}' for key, end in (
        ('network_d', f'takes `{d}`.'),
        ('train.response_kd_opt', 'has it on. To leave it out write `response_kd_opt: ~`.'),
        ('train.gan_opt', 'has it on. To leave it out write `gan_opt: ~`.'),
        ('train.optim_d', 'takes `{"type": "Adam", "lr": 0.001, "betas": [0.9, 0.99]}`.'))]
    assert MCADKDModel.complete(opt) == []


def test_the_degraded_negative_is_the_bicubic_image(tmp_path):
    opt = options(tmp_path, {'contrastive_opt': {**SMALL['contrastive_opt'], 'negatives': 'in_batch+degraded'}})
    model, seen = build(opt), []
    model.terms['contrastive'].criterion.register_forward_pre_hook(lambda module, args: seen.append(args))
    data = batches(1)[0]
    train(model, [{**data, 'lq_path': ['a.png', 'b.png']}])
    expected = F.interpolate(data['lq'], scale_factor=2, mode='bicubic').clamp(0, 1)
    torch.testing.assert_close(seen[0][2], expected)
    assert seen[0][3].shape == (2, ) and seen[0][3][0] != seen[0][3][1]


def test_a_teacher_with_random_layers_answers_alike(tmp_path):
    swinir = {'type': 'SwinIR', 'upscale': 2, 'in_chans': 3, 'img_size': 16, 'window_size': 8, 'depths': [2],
              'embed_dim': 8, 'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect',
              'drop_path_rate': 0.9}
    opt = options(tmp_path)
    model = build({**opt, 'teacher': save_teacher(tmp_path, swinir)})
    train(model, batches(1))
    lq = batches(1)[0]['lq']
    assert torch.equal(model.teacher.generate(lq)[0], model.teacher.generate(lq)[0])


def test_a_state_of_other_heads_is_refused(tmp_path):
    model = build(options(tmp_path))
    model.save(0, 1)
    other = build(options(tmp_path, {'contrastive_opt': {**SMALL['contrastive_opt'], 'd_emb': 32}}))
    with pytest.raises(OptionError, match='a run with other networks, losses or optimizers'):
        other.resume_training(torch.load(tmp_path / 'training_states/1.state', weights_only=True))


@pytest.mark.parametrize('level', ['image', 'patch', 'hybrid'])
def test_resume(tmp_path, level):
    opt = {'contrastive_opt': {**SMALL['contrastive_opt'], 'level': level}}
    data = batches(4)
    whole = build(options(tmp_path, opt))
    torch.manual_seed(5)
    expected = train(whole, data[:2])
    whole.save(0, 2)
    torch.manual_seed(6)
    expected += train(whole, data[2:], first=3)
    resumed_options = options(tmp_path, opt)
    resumed_options['path'].update({f'pretrain_network_{n}': str(tmp_path / 'models' / f'net_{n}_2.pth') for n in 'gd'})
    resumed = build(resumed_options)
    resumed.resume_training(torch.load(tmp_path / 'training_states' / '2.state', weights_only=True))
    torch.manual_seed(6)
    assert train(resumed, data[2:], first=3) == expected[2:]
    assert_equal_weights(weights(resumed.aux), weights(whole.aux))
    assert_equal_weights(weights(resumed.net_d), weights(whole.net_d))


def test_the_authors_key_set(tmp_path):
    """The keys of their YAML files, verbatim in name and place."""
    opt = options(tmp_path)
    teacher = opt.pop('teacher')
    opt.update(model_type='MCADKD', network_t=teacher['network_g'], discriminator=opt.pop('network_d'))
    opt['path'].update(pretrain_network_t=teacher['path']['pretrain_network_g'], strict_load_t=True,
                       param_key_t='params')
    opt['train'].update(
        pixel_opt={'type': 'L1Loss', 'loss_weight': 3.0, 'reduction': 'mean'},
        resp_kd_opt={'type': 'L1Loss', 'loss_weight': 0.5, 'reduction': 'mean'},
        contrastive_opt={'type': 'hybrid', 'patch_size': 8, 'num_patches': 3, 'image_weight': 0.3, 'patch_weight': 0.7,
                         'loss_weight': 0.05, 'd_emb': 16},
        adversarial_opt={'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.01})
    opt['val'] = {'val_freq': 10, 'save_img': False, 'self_ensemble': True}
    apply_aliases(source := deepcopy(opt))  # BasicSR looks the model up by the name written
    read = build(source).opt
    assert read['model_type'] == 'MCADKDModel' and read['teacher']['network_g'] == TEACHER
    assert read['train']['contrastive_opt']['level'] == 'hybrid' and 'type' not in read['train']['contrastive_opt']
    assert read['train']['gan_opt']['loss_weight'] == 0.01 and read['network_d'] == SMALL_D
    messages = apply_aliases(opt)
    for name in ('MCADKD', 'network_t', 'discriminator', 'pretrain_network_t', 'resp_kd_opt', 'adversarial_opt',
                 'contrastive_opt.type'):
        assert any(f'`{name}' in m or f'.{name}' in m or f': {name}`' in m for m in messages), name
    MCADKDModel.complete(opt)
    check_options(opt, MCADKDModel.losses)


def test_the_authors_teacher_is_their_params(tmp_path):
    opt = options(tmp_path)
    opt['path']['pretrain_network_t'] = opt['teacher']['path'].pop('pretrain_network_g')
    messages = apply_aliases(opt)
    assert opt['teacher']['path']['param_key_g'] == 'params'
    assert '`teacher.path.param_key_g` is taken to be `params`, as where this file comes from.' in messages


def test_an_unknown_level_under_the_authors_key(tmp_path):
    opt = options(tmp_path, {'contrastive_opt': {'type': 'global'}})
    with pytest.raises(OptionError, match='cannot be `global`. Write one of: image, patch, hybrid, or the name of'):
        apply_aliases(opt)


@pytest.mark.parametrize('scale, size, crop', [(2, 48, 32), (3, 60, 48), (4, 65, 64)])
def test_patches_larger_than_the_crop_are_refused_at_every_scale(tmp_path, scale, size, crop):
    opt = options(tmp_path, {'contrastive_opt': {'patch_size': size}}, scale=scale,
                  network_g={**EDSR, 'upscale': scale})
    opt['teacher'] = save_teacher(tmp_path, {**TEACHER, 'upscale': scale})
    opt['datasets']['train']['gt_size'] = crop
    with pytest.raises(OptionError, match=f'patch_size is {size}, larger than the crop of {crop}x{crop}'):
        build(opt)


@pytest.mark.parametrize('change, message', [
    ({'contrastive_opt': {'patch_size': 48}}, 'patch_size is 48, larger than the crop of 32x32'),
    ({'contrastive_opt': {'tau': 0}}, 'tau'),
    ({'contrastive_opt': {'level': 'pixel'}}, 'level is `pixel`. Write one of: image, patch, hybrid'),
    ({'contrastive_opt': {'mining': 'semi'}}, 'mining is `semi`'),
    ({'batch': 1}, 'no negatives in a batch of one'),
    ({'scale': 4}, 'teacher net_g turns an LR crop'),
    ({'teacher': None}, 'needs `teacher`'),
])
def test_what_cannot_work_is_refused(tmp_path, change, message):
    opt = options(tmp_path, {name: value for name, value in change.items() if name.endswith('_opt')})
    if 'batch' in change:
        opt['datasets']['train']['batch_size_per_gpu'] = change['batch']
    if 'scale' in change:
        opt['teacher'] = save_teacher(tmp_path, {**TEACHER, 'upscale': 4})
    if 'teacher' in change:
        opt.pop('teacher')
    with pytest.raises(OptionError, match=message):
        build(opt)


def test_self_ensemble_is_the_mean_of_eight_views(tmp_path):
    opt = options(tmp_path, is_train=False, val={'self_ensemble': True}, network_d=None,
                  datasets={'val': {**model_options(tmp_path)['datasets']['train'], 'phase': 'val'}}, network_g=EDSR)
    model = build(opt)
    lq = batches(1, size=12)[0]['lq'][:1, :, :, :10]
    model.feed_data({'lq': lq})
    model.test()
    views = []
    with torch.no_grad():
        for view in range(8):
            x = lq.transpose(2, 3) if view & 4 else lq
            x = x.flip(2) if view & 2 else x
            x = x.flip(3) if view & 1 else x
            y = model.net_g.eval()(x)
            y = y.flip(3) if view & 1 else y
            y = y.flip(2) if view & 2 else y
            views.append(y.transpose(2, 3) if view & 4 else y)
    torch.testing.assert_close(model.output, torch.stack(views).mean(0))
    assert not torch.equal(model.output, views[0])


def test_as_released_trains_neither_discriminator_nor_heads(tmp_path):
    opt = load_yaml('train/MCADKD/as_released_edsr_x2')
    train_opt = opt['train']
    names = ('pixel', 'response_kd', 'contrastive', 'gan')
    found = {name: train_opt[f'{name}_opt']['loss_weight'] for name in names}
    assert found == {'pixel': 9.0, 'response_kd': 0.25, 'contrastive': 0.05, 'gan': 1e-4}
    small = {**train_opt['contrastive_opt'], 'patch_size': 16}
    losses = {name: train_opt[name] for name in ('pixel_opt', 'response_kd_opt', 'gan_opt')}
    stages = [{**train_opt['stages'][0], 'iters': 100}]
    model = build_model(model_options(tmp_path, {**losses, 'contrastive_opt': small, 'optim_d': None, 'stages': stages},
                                      model_type='MCADKDModel', network_d=dict(SMALL_D),
                                      teacher=save_teacher(tmp_path)))
    criterion = model.terms['contrastive'].criterion
    before = weights(criterion), weights(model.net_d), weights(model.net_g)
    log = train(model, batches(2))[-1]
    assert {'l_g_gan', 'l_g_contrastive'} <= set(log) and 'l_d_real' not in log and not len(model.aux)
    assert_equal_weights(weights(criterion), before[0])
    for name, p in model.net_d.named_parameters():
        assert torch.equal(p, before[1][name]), name
    assert any(not torch.equal(value, before[2][name]) for name, value in weights(model.net_g).items())


def test_the_losses_are_there_as_in_stock_models(tmp_path):
    model = build_model(model_options(tmp_path))
    model.feed_data(batches(1)[0])
    model.optimize_parameters(1)
    assert model.log_dict == {'l_g_pix': pytest.approx(float(model.loss_tensors['l_g_pix']))}
