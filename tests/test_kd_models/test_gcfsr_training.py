"""Training GCFSR: one noise and one condition for all networks, images in [-1, 1], the recipe, and SDAKD on top."""
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from torch.nn import functional as F

from kd_models.adapters import GCFSRAdapter, build_adapter
from kd_models.step import Step
from kd_utils.options import OptionError, load_yaml
from tests.support import (
    EDSR,
    GCFSR,
    GCFSR_D,
    GCFSR_TEACHER,
    assert_equal_weights,
    face_batches,
    face_options,
    gan_options,
    model_options,
    refusal,
    save_teacher,
    train,
    weights,
)

RECIPE = Path(__file__).parents[2] / 'options/train/SDAKD/gcfsr_512.yml'
BLIND = {**GCFSR, 'type': 'GCFSR_blind'}


def build(options, seed=0):
    torch.manual_seed(seed)
    return build_model(options)


def sdakd_options(folder, network=GCFSR):
    return face_options(folder, {'total_iter': 16}, model_type='SDAKDModel', network_g=network,
                        teacher=save_teacher(folder, {**network, 'narrow': 1 / 32}))


def with_noise(net):
    """As a trained one: a new network's noise has weight 0."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() == 1 and p.numel() == 1 and name.endswith('.weight'):
                p.fill_(0.5)
    return net


# --------------------------------------------------------------------------------------------------------- the adapter


def test_it_is_chosen_by_the_type():
    assert [type(build_adapter(option)) for option in (GCFSR, BLIND)] == [GCFSRAdapter] * 2
    assert type(build_adapter(EDSR)).__name__ == 'Adapter'


def test_values_in_0_to_1():
    images = torch.rand(2, 3, 8, 8)
    assert build_adapter(EDSR).unit(images) is images
    torch.testing.assert_close(build_adapter(GCFSR).unit(images * 2 - 1), images)


@torch.no_grad()
def test_bare_faces_or_enlarged_ones_with_inputs():
    torch.manual_seed(0)
    net, adapter, [batch] = with_noise(build_network(GCFSR)), build_adapter(GCFSR), face_batches(1)
    inputs = adapter.inputs(net, batch['lq'], batch)
    assert [tuple(noise.shape) for noise in inputs['noise']] == [(2, 1, size, size) for size in (16, 32, 32)]
    for _ in range(2):
        image = adapter(net, batch['lq'], **inputs)
        expected, _ = net(batch['lq'], torch.tensor([[1.], [0.25]]), inputs['noise'])  # scales 8 and 2 of at most 8
        assert torch.equal(image, expected)
    bare = torch.rand(2, 3, 8, 8)
    assert torch.equal(adapter(net, bare), net(bare))


def test_another_networks_condition_is_its_own():
    """The scale is shared, what each network makes of it is not."""
    wide = build_network({**GCFSR, 'cond_norm': 16})
    seen = []
    wide.condition_scale1[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    [batch] = face_batches(1)
    build_adapter(GCFSR)(wide, batch['lq'], **build_adapter(GCFSR).inputs(wide, batch['lq'], batch))
    assert torch.equal(seen[0], torch.tensor([[0.5], [0.125]]))


@pytest.mark.parametrize('network', [GCFSR, BLIND], ids=['gcfsr', 'blind'])
def test_student_ema_and_teacher_get_one_noise(tmp_path, network):
    """With equal weights their images are equal; the noise is drawn once, and anew in the next iteration."""
    model = build(face_options(tmp_path, {'response_kd_opt': {}, 'ldl_opt': {}}, network_g=network,
                               teacher=save_teacher(tmp_path, network)))
    for net in (model.net_g_ema, model.teacher.net_g):
        net.load_state_dict(with_noise(model.net_g).state_dict())
    model.ema_decay, steps = 0, []  # its rounding
    forward = model.update.forward
    model.update = lambda step: (forward(step), steps.append(step), {})[2]
    for iteration, batch in enumerate(face_batches(1) * 2, 1):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    for step in steps:
        assert torch.equal(step.output, step.teachers['teacher']) and torch.equal(step.output, step.ema)
    assert not torch.allclose(steps[0].output, steps[1].output, atol=1e-3)


def test_self_distillation_compares_weights_and_not_noise(tmp_path):
    """In [0, 1], with the EMA generator still equal to the student."""
    model = build(face_options(tmp_path, {'self_distill_opt': {'type': 'L1Loss'}}))
    model.net_g_ema.load_state_dict(with_noise(model.net_g).state_dict())
    [first, second] = train(model, face_batches(2))
    assert first['self_distill_distance'] == 0 < second['self_distill_distance']


def test_other_families_draw_nothing(tmp_path):
    model = build(model_options(tmp_path))
    state = torch.get_rng_state()
    step = Step(1, model.stages[0], torch.rand(0), {})
    assert model.adapter.inputs(model.net_g, torch.rand(0), {}) == {} == step.inputs
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------------------------------- the recipe


def test_losses_of_the_shipped_recipe_by_hand(tmp_path, vgg_without_download):
    """D first, on images in [-1, 1]; then G, judged by the D just updated."""
    recipe = {**load_yaml(RECIPE)['train'], 'total_iter': 16}
    assert recipe['net_d_reg_every'] == 16 and recipe['ema_decay'] == pytest.approx(0.5**(32 / 10000))
    assert recipe['optim_g']['betas'] == pytest.approx([0, 0.99**(4 / 5)])
    assert recipe['optim_d']['betas'] == pytest.approx([0, 0.99**(16 / 17)])
    options = face_options(tmp_path, recipe)
    model, [batch] = build(options), face_batches(1)
    model.feed_data(batch)
    torch.manual_seed(5)
    noise = with_noise(model.net_g).make_noise(2)
    output = model.net_g(batch['lq'], torch.tensor([[1.], [0.25]]), noise)[0].detach()
    gt = batch['gt'].clone().requires_grad_()
    real, fake = model.net_d(gt), model.net_d(output)
    r1 = torch.autograd.grad(real.sum(), gt, create_graph=True)[0].pow(2).sum((1, 2, 3)).mean()
    expected = {'l_d_real': F.softplus(-real).mean(), 'l_d_fake': F.softplus(fake).mean(), 'l_d_r1': r1}
    of_d = torch.autograd.grad(expected['l_d_real'] + expected['l_d_fake'] + 10 / 2 * 16 * r1,
                               list(model.net_d.parameters()))
    torch.manual_seed(5)
    model.optimize_parameters(16)
    for value, p in zip(of_d, model.net_d.parameters(), strict=True):
        torch.testing.assert_close(p.grad, value, rtol=1e-3, atol=1e-5)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    vgg = model.terms['perceptual'].criterion.vgg.vgg_net
    assert [name for name, _ in vgg.named_children()][-1] == 'conv4_3'
    maps = [vgg(((images + 1) / 2 - mean) / std) for images in (output, batch['gt'])]
    expected.update(l_g_gan=0.01 * F.softplus(-model.net_d(output)).mean(), l_g_pix=F.l1_loss(output, batch['gt']),
                    l_g_percep=0.01 * F.l1_loss(*maps))
    log = model.get_current_log()
    for name, value in expected.items():
        assert log[name] == pytest.approx(value.item(), rel=1e-4), name
    assert torch.equal(model.output, output)


def test_the_alarm_measures_colours_in_0_to_1(tmp_path):
    model = build(face_options(tmp_path))
    train(model, face_batches(1))
    apart = model.output.mean((2, 3)) - model.lq.mean((2, 3))
    torch.testing.assert_close(model._watched()['drift'], apart.abs().mean() / 2)


# --------------------------------------------------------------------------------------------------------------- SDAKD


def test_three_stages(tmp_path):
    """Generator features only: no discriminator of a teacher is published. R1 is due at even iterations."""
    model = build(sdakd_options(tmp_path))
    teacher, before = weights(model.teacher.net_g), {name: weights(net) for name, net in model.training.trained.items()}
    logs = train(model, face_batches(6))
    kd = {'l_g_feature_kd', 'feature_kd_r2', 'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'}
    assert [set(log) - {'stage'} for log in logs] == [
        {'l_g_pix'}, {'l_g_pix'}, {'l_g_pix'} | kd, {'l_g_pix', 'l_d_r1'} | kd,
        {'l_g_pix', 'l_g_gan'} | kd, {'l_g_pix', 'l_g_gan', 'l_d_r1'} | kd]
    assert set(before) == {'net_g', 'net_d', 'aux.feature_kd'}
    for name, net in model.training.trained.items():
        assert [key for key, p in net.named_parameters() if torch.equal(p, before[name][key])] == []
    assert_equal_weights(weights(model.teacher.net_g), teacher)


def test_a_teachers_discriminator_may_be_distilled(tmp_path):
    teacher = save_teacher(tmp_path, GCFSR_TEACHER, {**GCFSR_D, 'narrow': 1 / 32})
    logs = train(build({**sdakd_options(tmp_path), 'teacher': teacher}), face_batches(3))
    assert logs[2]['l_d_feature_kd'] > 0


@pytest.mark.parametrize('network', [GCFSR, BLIND], ids=['gcfsr', 'blind'])
def test_the_saved_student_is_a_plain_network(tmp_path, network):
    """SRModel loads it strictly and restores a bare LR face as the model that trained it does."""
    model = build(sdakd_options(tmp_path, network))
    train(model, face_batches(3))
    model.save(0, 3)
    path = {'pretrain_network_g': str(tmp_path / 'models/net_g_3.pth'), 'param_key_g': 'params_ema'}
    plain = SRModel({'num_gpu': 0, 'is_train': False, 'dist': False, 'path': path, 'network_g': dict(network)})
    for size in (4, 8, 16):
        for either in (model, plain):
            either.feed_data({'lq': torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(size))})
            either.test()
        assert plain.output.shape == (1, 3, 32, 32) and torch.equal(model.output, plain.output)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize('change, message', [
    ({'network_g': {**GCFSR, 'out_size': 48}}, '`network_g.out_size` cannot be 48. Write a power of two from 32 to'),
    ({'network_d': {**GCFSR_D, 'out_size': 48}}, '`network_d.out_size` cannot be 48. Write a power of two from 32 to'),
    ({'network_g': {**GCFSR, 'out_size': 64}}, 'into 64x64, not into the GT crop of 32x32. Set its `out_size` and'),
    ({'network_d': {**GCFSR_D, 'out_size': 64}}, 'student net_d (GCFSRDiscriminator) does not take an input of'),
    ({'network_g': {**GCFSR, 'num_style_feat': 0}}, '`network_g.num_style_feat` cannot be 0'),
    ({'network_g': {**GCFSR, 'narrow': 0}}, '`network_g.narrow` cannot be 0. Write a number above 0'),
    ({'network_g': {**GCFSR, 'cond_norm': 4}},
     '`datasets.train.downsample_list` has the scale 8, and `network_g` knows the scales 1 to 4. Take out what '
     'is larger, or set its `cond_norm` to the largest'),
    ({'scale': 16}, 'Scale 16 is outside the range of this network, 1 to 8'),
    ({'scale': 3}, 'Give it square faces whose size divides 32'),
    ({'scale': 3}, '`scale: 3` does not fit `network_g`. LR faces are 10x10'),
    ({'scale': 64}, '`scale: 64` does not fit `network_g`. LR faces are 0x0'),
])
def test_sizes_and_scales_that_do_not_fit(tmp_path, change, message):
    assert message in refusal({**sdakd_options(tmp_path), **change})


def test_a_batch_that_the_discriminator_cannot_group_is_refused(tmp_path):
    options = face_options(tmp_path, network_d={**GCFSR_D, 'type': 'StyleGAN2Discriminator'})
    for batch in (3, 8):
        options['datasets']['train']['batch_size_per_gpu'] = batch
        build(options)
    options['datasets']['train']['batch_size_per_gpu'] = 6
    assert 'takes one image, but not 6 at once. Change `datasets.train.batch_size_per_gpu`' in refusal(options)


@pytest.mark.parametrize('change, message', [
    ({'downsample_list': []}, '`datasets.train.downsample_list` cannot be []. Write a list of whole numbers above 0'),
    ({'downsample_list': [0.5]}, '`datasets.train.downsample_list` cannot be [0.5]'),
    ({'downsample': [4]}, 'Unknown key `datasets.train.downsample`. Did you mean `downsample_list`?'),
    ({'gt_size': 64}, 'turns an LR crop of 16x16 into 32x32, not into the GT crop of 64x64. Set its `out_size` and'),
])
def test_training_sets_that_do_not_fit(tmp_path, change, message):
    options = sdakd_options(tmp_path)
    options['datasets']['train'].update(change)
    assert message in refusal(options)


def test_a_teacher_of_a_smaller_range_is_refused(tmp_path):
    options = sdakd_options(tmp_path)
    options['teacher'] = save_teacher(tmp_path, {**GCFSR_TEACHER, 'cond_norm': 4})
    assert 'has the scale 8, and `teacher.network_g` knows the scales 1 to 4' in refusal(options)
    blind = {**options, 'network_g': dict(BLIND), 'teacher': save_teacher(tmp_path, {**BLIND, 'cond_norm': 4})}
    build(blind)  # which knows all scales


def test_networks_and_training_sets_of_two_families_are_refused(tmp_path):
    faces = face_options(tmp_path)
    pairs = gan_options(tmp_path)
    assert 'Set `datasets.train.type: FaceScaleDataset`' in refusal({**pairs, 'network_g': dict(GCFSR)})
    assert 'for which `network_g`, EDSR, is not made' in refusal({**faces, 'network_g': dict(EDSR)})
    mixed = {**faces, 'teacher': save_teacher(tmp_path)}
    assert 'trained on images in [0, 1], and `network_g` on images in [-1, 1]' in refusal(mixed)
    assert 'Set `model_type: DistillationModel`' in refusal({**faces, 'model_type': 'SRModel'})


def test_what_takes_other_values_is_refused(tmp_path):
    options = face_options(tmp_path, {'perceptual_opt': {'layer_weights': {'conv4_3': 1}}})
    assert 'Add `range_norm: true`' in refusal(options)
    assert '`l1_gt_usm` sharpens images in [0, 1]' in refusal({**face_options(tmp_path), 'l1_gt_usm': True})
    for key, kind in (('pixel_opt', 'LPIPSLoss'), ('response_kd_opt', 'MSSSIMLoss')):
        options = face_options(tmp_path, {key: {'type': kind}}, teacher=save_teacher(tmp_path, GCFSR))
        assert f'`train.{key}`: {kind} takes images in [0, 1], and GCFSR is trained in' in refusal(options)
    options = face_options(tmp_path, {'self_distill_opt': {'type': 'VGGPerceptualLoss', 'weights': 'vgg.pth',
                                                           'layer_weights': {'conv4_3': 1}, 'range_norm': True}})
    assert '`train.self_distill_opt` is given images in [0, 1], those of GCFSR too.' in refusal(options)


def test_a_batch_without_scales_is_refused(tmp_path):
    model, [batch] = build(face_options(tmp_path)), face_batches(1)
    del batch['scale']
    model.feed_data(batch)
    with pytest.raises(OptionError, match='gives no `scale` of each face'):
        model.optimize_parameters(1)
