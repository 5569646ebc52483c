"""What the base promises: what learns, what does not, in which stage, in which order, and what is saved."""
import json
import math

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from kd_models.advkd_model import AdvKDModel
from kd_models.diffusion_model import DiffusionSRModel
from kd_models.distillation_model import DistillationModel
from kd_models.report import trained_and_frozen
from kd_models.terms import TERMS
from kd_utils.options import OptionError
from tests.support import (
    EDSR,
    GAN,
    TEACHER,
    UNET,
    assert_equal_weights,
    batches,
    gan_options,
    model_options,
    save_teacher,
    train,
    weights,
)

KD = {'response_kd_opt': {'type': 'L1Loss', 'loss_weight': 0.5}, 'feature_kd_opt': {'type': 'MLPFeatureLoss'}}
FULL = {**KD, 'feature_kd_d_opt': {'type': 'MLPFeatureLoss'}, 'ema_decay': 0.9,
        'ldl_opt': {'type': 'L1Loss'}, 'r1_reg_weight': 10, 'net_d_reg_every': 2}
TEACHER_D = {**UNET, 'num_feat': 8}
ORDERS = ['simultaneous', 'g_first', 'd_first']


def build(options):
    torch.manual_seed(1)
    return build_model(options)


def full_options(folder, **changes):
    teacher = save_teacher(folder, TEACHER, TEACHER_D)
    return gan_options(folder, {**FULL, **changes}, teacher=teacher)


@pytest.mark.parametrize('mode', ['standard', 'relativistic'])
@pytest.mark.parametrize('order', ORDERS)
def test_everything_learns_and_the_teacher_does_not(tmp_path, order, mode):
    """Promise 1."""
    model = build(full_options(tmp_path, update_order=order, gan_mode=mode))
    trained = {'net_g': model.net_g, 'net_d': model.net_d, **model.aux}
    before = {name: weights(net) for name, net in trained.items()}
    teacher_before = weights(model.teacher.net_g), weights(model.teacher.net_d)
    model.net_g.train()
    logs = train(model, batches(2))
    for name, net in trained.items():
        for key, value in net.named_parameters():
            assert not torch.equal(value, before[name][key]), f'{name}.{key} did not move'
    for net, old in zip((model.teacher.net_g, model.teacher.net_d), teacher_before, strict=True):
        assert_equal_weights(weights(net), old)
        assert not any(module.training for module in net.modules())
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert set(logs[-1]) == {'l_g_pix', 'l_g_ldl', 'l_g_gan', 'l_g_response_kd', 'l_g_feature_kd', 'l_d_real',
                             'l_d_fake', 'l_d_feature_kd', 'l_d_r1', 'out_d_real', 'out_d_fake'}
    assert all(math.isfinite(value) for value in logs[-1].values())


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


def test_saved_student_is_a_plain_basicsr_checkpoint(tmp_path):
    """Promise 5: the stock model loads it strictly, and gives the same images."""
    model = build(full_options(tmp_path))
    train(model, batches(1))
    model.save(0, -1)
    path = {**model.opt['path'], 'pretrain_network_g': str(tmp_path / 'models' / 'net_g_latest.pth'),
            'param_key_g': 'params_ema'}
    stock = build_model(model_options(tmp_path, model_type='SRModel', is_train=False, path=path))
    for m in (model, stock):
        m.feed_data(batches(1)[0])
        m.test()
    assert torch.equal(model.output, stock.output)


@pytest.mark.parametrize('order', ORDERS)
def test_resume_continues_bit_for_bit(tmp_path, order):
    data = batches(4)
    whole = build(full_options(tmp_path, update_order=order))
    expected = train(whole, data)
    half = build(full_options(tmp_path, update_order=order))
    train(half, data[:2])
    half.save(0, 2)
    resumed_options = full_options(tmp_path, update_order=order)
    resumed_options['path'].update(pretrain_network_g=str(tmp_path / 'models' / 'net_g_2.pth'),
                                   pretrain_network_d=str(tmp_path / 'models' / 'net_d_2.pth'))
    torch.manual_seed(77)  # whatever is drawn at construction is overwritten
    resumed = build_model(resumed_options)
    resumed.resume_training(torch.load(tmp_path / 'training_states' / '2.state', weights_only=True))
    assert train(resumed, data[2:], first=3) == expected[2:]
    for name in ('net_g', 'net_g_ema', 'net_d', 'aux'):
        assert_equal_weights(weights(getattr(resumed, name)), weights(getattr(whole, name)))


STAGES = [{'name': 'supervised', 'iters': 2, 'losses': ['pixel']},
          {'name': 'distill', 'iters': 2, 'losses': ['pixel', 'feature_kd'], 'train_d': True},
          {'name': 'adversarial', 'iters': 2, 'losses': ['pixel', 'feature_kd', 'gan'], 'optimizer': 'fresh'}]


def test_stages(tmp_path, monkeypatch):
    """Each stage runs what it names and nothing else: the supervised one neither teacher nor discriminator."""
    teacher_calls, d_calls = [], []
    model = build(full_options(tmp_path, stages=STAGES, total_iter=6, ldl_opt=None, r1_reg_weight=0))
    monkeypatch.setattr(model.teacher.net_g, 'forward', _counted(model.teacher.net_g.forward, teacher_calls))
    monkeypatch.setattr(model.net_d, 'forward', _counted(model.net_d.forward, d_calls))
    d_before, counts, logs = weights(model.net_d), [], []
    for iteration, item in enumerate(batches(6), 1):
        logs += train(model, [item], first=iteration)
        counts.append((len(teacher_calls), len(d_calls)))
        if iteration == 2:
            assert_equal_weights(weights(model.net_d), d_before)
    assert counts == [(0, 0), (0, 0), (1, 2), (2, 4), (3, 7), (4, 10)]
    kd_d = {'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake', 'l_d_feature_kd'}
    assert [log.pop('stage') for log in logs] == [1, 1, 2, 2, 3, 3]
    assert [set(log) for log in logs] == [{'l_g_pix'}] * 2 + [{'l_g_pix', 'l_g_feature_kd', *kd_d}] * 2 \
        + [{'l_g_pix', 'l_g_feature_kd', 'l_g_gan', *kd_d}] * 2


def _counted(forward, calls):
    def counted(*args):
        calls.append(args[0].shape)
        return forward(*args)
    return counted


def test_fresh_optimizer_forgets_at_the_first_iteration_of_its_stage(tmp_path):
    model = build(full_options(tmp_path, stages=STAGES, total_iter=6, ldl_opt=None))
    train(model, batches(4))
    weight = next(model.net_g.parameters())
    assert model.optimizer_g.state[weight]['step'] == 4
    train(model, batches(1), first=5)
    assert model.optimizer_g.state[weight]['step'] == 1
    train(model, batches(1), first=6)
    assert model.optimizer_g.state[weight]['step'] == 2


def test_a_fresh_optimizer_is_that_of_the_discriminator_too(tmp_path):
    model = build(full_options(tmp_path, stages=STAGES, total_iter=6, ldl_opt=None))

    def steps():
        return [{int(state['step']) for state in optimizer.state.values()} for optimizer in model.optimizers]

    train(model, batches(4))
    assert steps() == [{4, 2}, {2}]  # adaptors and discriminator begin with the second stage
    train(model, batches(1), first=5)
    assert steps() == [{1}, {1}]


@pytest.mark.parametrize('turns, expected', [({'net_d_init_iters': 2}, [3, 4, 5, 6]), ({'net_d_iters': 2}, [2, 4, 6]),
                                             ({'net_d_init_iters': 2, 'net_d_iters': 2}, [4, 6]), ({}, [*range(1, 7)])])
def test_the_generator_waits_for_its_turn(tmp_path, turns, expected):
    """The discriminator is alone for the first `net_d_init_iters` iterations, and ahead by `net_d_iters` from then."""
    model = build(gan_options(tmp_path, turns))
    logs, learnt = [], []
    for iteration, item in enumerate(batches(6), 1):
        before = weights(model.net_g)['conv_last.weight']
        logs += train(model, [item], first=iteration)
        learnt += [] if torch.equal(model.net_g.conv_last.weight, before) else [iteration]
    assert learnt == expected == [iteration for iteration, log in enumerate(logs, 1) if 'l_g_pix' in log]
    assert all('l_d_real' in log for log in logs)


def test_stage_weights_scale_a_loss(tmp_path):
    stages = [{'name': 'all', 'iters': 100, 'losses': ['pixel'], 'weights': {'pixel': 0.25}}]
    plain, scaled = build(model_options(tmp_path)), build(model_options(tmp_path, {'stages': stages}))
    log, scaled_log = train(plain, batches(1))[0], train(scaled, batches(1))[0]
    assert scaled_log['l_g_pix'] == pytest.approx(log['l_g_pix'] / 4)
    for a, b in zip(plain.net_g.parameters(), scaled.net_g.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad / 4)


@pytest.mark.parametrize('name, log', [('pixel_opt', 'l_g_pix'), ('response_kd_opt', 'l_g_response_kd'),
                                       ('feature_kd_opt', 'l_g_feature_kd'), ('gan_opt', 'l_g_gan'),
                                       ('ldl_opt', 'l_g_ldl')])
def test_a_weight_is_applied_once(tmp_path, name, log):
    """Promise 7: doubling `loss_weight` doubles the loss and its gradient."""
    def measure(weight):
        options = full_options(tmp_path)
        options['train'][name]['loss_weight'] = weight
        options['train']['stages'] = [{'name': 'one', 'iters': 100, 'losses': [name[:-4]], 'train_d': True}]
        model = build(options)
        value = train(model, batches(1))[0][log]
        return value, torch.cat([p.grad.flatten() for p in model.net_g.parameters() if p.grad is not None])
    (one, gradient_one), (two, gradient_two) = measure(1.0), measure(2.0)
    assert two == pytest.approx(2 * one, rel=1e-5) and one != 0
    torch.testing.assert_close(gradient_two, 2 * gradient_one, rtol=1e-4, atol=1e-8)


def test_yaml_order_of_losses_does_not_matter(tmp_path):
    names = ['pixel', 'response_kd', 'feature_kd', 'gan', 'ldl']
    results = []
    for order in (names, names[::-1]):
        options = full_options(tmp_path)
        section = options['train']
        opts = {f'{name}_opt': section.pop(f'{name}_opt') for name in names}
        section.update({f'{name}_opt': opts[f'{name}_opt'] for name in order})
        section['stages'] = [{'name': 'all', 'iters': 100, 'losses': order}]
        model = build(options)
        train(model, batches(2))
        results.append(weights(model.net_g))
    assert_equal_weights(*results)


def test_update_orders_differ_as_they_should(tmp_path):
    """The discriminator's fake images: from before (simultaneous) or after (g_first) the generator's update."""
    seen = {}
    for order in ORDERS:
        model = build(gan_options(tmp_path, {'update_order': order}))
        fakes = []
        update = model.adversary.update_discriminator
        model.adversary.update_discriminator = \
            lambda step, *a, update=update, fakes=fakes, **k: (fakes.append(step.output.detach().clone()),
                                                               update(step, *a, **k))[1]
        before = build(gan_options(tmp_path, {'update_order': order}))
        train(model, batches(1))
        lq = batches(1)[0]['lq']
        with torch.no_grad():
            seen[order] = (torch.equal(fakes[0], before.net_g(lq)), torch.equal(fakes[0], model.net_g(lq)))
    assert seen == {'simultaneous': (True, False), 'g_first': (False, True), 'd_first': (True, False)}


def test_d_first_gives_the_generator_the_updated_discriminator(tmp_path):
    values = {}
    for order in ('simultaneous', 'd_first'):
        model = build(gan_options(tmp_path, {'update_order': order}))
        values[order] = train(model, batches(1))[0]['l_g_gan']
    assert values['simultaneous'] != values['d_first']


def test_teacher_discriminator_gives_the_gradient_where_a_stage_says_so(tmp_path):
    stages = [{'name': 'one', 'iters': 100, 'losses': ['gan'], 'discriminator': 'teacher'}]
    model = build(model_options(tmp_path, {'stages': stages, 'gan_opt': GAN['gan_opt']},
                                teacher=save_teacher(tmp_path, TEACHER, TEACHER_D)))
    lq = batches(1)[0]['lq']
    with torch.no_grad():
        expected = model.terms['gan'].criterion(model.teacher.net_d(model.net_g(lq)), True, is_disc=False).item()
    log = train(model, batches(1))[0]
    assert log == {'l_g_gan': pytest.approx(expected)}


def test_training_a_discriminator_alone(tmp_path):
    """How a teacher discriminator is made: the generator is not updated."""
    options = gan_options(tmp_path, {'stages': [{'name': 'd', 'iters': 100, 'losses': [], 'train_d': True}]})
    model = build(options)
    g_before, d_before = weights(model.net_g), weights(model.net_d)
    train(model, batches(2))
    assert_equal_weights(weights(model.net_g), g_before)
    assert not torch.equal(model.net_d.conv0.weight, d_before['conv0.weight'])


def test_the_generator_stands_still_in_a_stage_without_its_losses(tmp_path):
    """Statistics and random depth too, while other stages train it."""
    options = gan_options(tmp_path, {'stages': [
        {'name': 'g', 'iters': 2, 'losses': ['pixel']}, {'name': 'd', 'iters': 1, 'losses': [], 'train_d': True},
        {'name': 'both', 'iters': 97, 'losses': ['pixel', 'gan']}]})
    model, modes = build(options), []
    for iteration, data in enumerate(batches(4), 1):
        model.feed_data(data)
        model.optimize_parameters(iteration)
        modes.append(model.net_g.training)
    assert modes == [True, True, False, True]


def test_ema_follows_parameters_and_buffers(tmp_path, monkeypatch):
    """BasicSR leaves the buffers of the EMA network at their initial values."""
    from basicsr.utils.registry import ARCH_REGISTRY

    class BatchNormNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, 1, 1), torch.nn.BatchNorm2d(12),
                                            torch.nn.PixelShuffle(2))

        def forward(self, x):
            return self.body(x)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'BatchNormNet', BatchNormNet)
    model = build(model_options(tmp_path, {'ema_decay': 0.5}, network_g={'type': 'BatchNormNet'}))
    start = weights(model.net_g)
    train(model, batches(1))
    for name, value in model.net_g.named_parameters():
        torch.testing.assert_close(dict(model.net_g_ema.named_parameters())[name], (start[name] + value) / 2)
    assert model.net_g.body[1].num_batches_tracked == 1
    assert torch.equal(model.net_g_ema.body[1].running_mean, model.net_g.body[1].running_mean)


def test_swinir_is_padded_to_its_window(tmp_path):
    """Any image size, in training's tests too, and equal to SwinIRModel."""
    swinir = {'type': 'SwinIR', 'upscale': 2, 'in_chans': 3, 'img_size': 16, 'window_size': 8, 'img_range': 1.,
              'depths': [1], 'embed_dim': 8, 'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffle',
              'resi_connection': '1conv'}
    model, stock = (build(model_options(tmp_path, network_g=swinir, model_type=name))
                    for name in ('DistillationModel', 'SwinIRModel'))
    for m in (model, stock):
        m.feed_data({'lq': batches(1, size=21)[0]['lq'][:1]})
        m.test()
    assert model.output.shape[-2:] == (42, 42)
    assert torch.equal(model.output, stock.output)


class Loader(list):
    """A validation loader."""

    def __init__(self, items, name='Val'):
        super().__init__(items)
        self.dataset = type('Dataset', (), {'opt': {'name': name}})


PSNR = {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}}


def test_validation_writes_each_image_and_the_mean(tmp_path):
    items = [{**item, 'lq_path': [f'{i}.png']} for i, item in enumerate(batches(2, batch=1))]
    model = build(model_options(tmp_path, val={'metrics': PSNR, 'val_freq': 1, 'save_img': True}))
    model.validation(Loader(items), 3, None, save_img=True)
    line = json.loads((tmp_path / 'validation.jsonl').read_text())
    assert line == {'iter': 3, 'dataset': 'Val', 'metrics': model.metric_results}
    assert model.best_metric_results['Val']['psnr']['iter'] == 3
    assert (tmp_path / 'visualization' / '0' / '0_3.png').exists()

    path = {**model.opt['path'], 'results_root': str(tmp_path)}
    tested = build(model_options(tmp_path, is_train=False, path=path, val={'metrics': PSNR, 'suffix': None},
                                 datasets={'val': {**model.opt['datasets']['train'], 'phase': 'val'}}))
    tested.validation(Loader(items), 'test', None, save_img=True)
    content = json.loads((tmp_path / 'metrics_Val.json').read_text())
    assert set(content['images']) == {'0', '1'}
    values = [image['psnr'] for image in content['images'].values()]
    assert content['mean']['psnr'] == pytest.approx(sum(values) / 2) == pytest.approx(line['metrics']['psnr'])
    assert (tmp_path / 'visualization' / 'Val' / '0_test.png').exists()


def test_a_metric_against_the_teacher(tmp_path):
    """In training and in a test, with and without GT."""
    metrics = {'agreement': {**PSNR['psnr'], 'reference': 'teacher'}, **PSNR}
    teacher = save_teacher(tmp_path)
    path = {**model_options(tmp_path)['path'], 'results_root': str(tmp_path)}
    network = dict(network_g=TEACHER, teacher=teacher, val={'metrics': metrics, 'val_freq': 1}, path=path)
    for is_train in (True, False):
        data = model_options(tmp_path)['datasets']['train']
        model = build(model_options(tmp_path, is_train=is_train, **network,
                                    datasets={'train' if is_train else 'test': {**data, 'phase': 'val'}}))
        model.net_g.load_state_dict(torch.load(teacher['path']['pretrain_network_g'])['params'])
        for keys in (('lq', 'gt'), ('lq',)):
            items = [{**{key: item[key] for key in keys}, 'lq_path': ['0.png']} for item in batches(1, batch=1)]
            model.validation(Loader(items), 1, None, save_img=False)
            assert model.metric_results['agreement'] == float('inf')
            assert ('psnr' in model.metric_results) == ('gt' in keys)


def test_validation_without_ground_truth_leaves_out_what_needs_it(tmp_path):
    items = [{'lq': item['lq'], 'lq_path': [f'{i}.png']} for i, item in enumerate(batches(2, batch=1))]
    model = build(model_options(tmp_path, val={'metrics': PSNR, 'val_freq': 1}))
    train(model, batches(1))  # leaves a GT behind
    model.validation(Loader(items), 1, None, save_img=False)
    assert not (tmp_path / 'validation.jsonl').exists()


def test_what_is_trained_and_what_is_frozen_is_logged(tmp_path, caplog):
    logger = get_root_logger()
    logger.propagate, level = True, logger.level
    logger.setLevel('INFO')
    try:
        with caplog.at_level('INFO', logger='basicsr'):
            build(full_options(tmp_path))
    finally:
        logger.propagate, logger.level = False, level
    text = caplog.text
    assert 'aux.feature_kd_d' in text and 'Frozen: teacher net_g, teacher net_d' in text
    student, teacher = build_network(EDSR), build_network(TEACHER)
    for net in (student, teacher):
        assert f'{sum(p.numel() for p in net.parameters()):,}' in text


@pytest.mark.parametrize('change, message', [
    ({'train': {'feature_kd_opt': {'layers': {'body.9': 'body.0'}}}}, r'has no layer `body.9`. Did you mean `body\.'),
    ({'train': {'feature_kd_opt': {'layers': {'body.1': 'boddy.1'}}}}, r'\(the student\).*no layer `boddy.1`'),
    ({'train': {'feature_kd_opt': {'layers': {'conv_last': 'conv_first'}}}}, 'one spatial size'),
    ({'teacher_scale': 4}, r'teacher net_g turns an LR crop of 16x16 into 64x64'),
    ({'network_g': {**EDSR, 'upscale': 4}}, r'student net_g turns an LR crop of 16x16 into 64x64'),
    ({'teacher_path': None}, r'teacher\.path\.pretrain_network_g` is missing'),
])
def test_what_does_not_fit_is_refused_at_construction(tmp_path, change, message):
    teacher_net = {**TEACHER, 'upscale': change.pop('teacher_scale', 2)}
    teacher = save_teacher(tmp_path, teacher_net)
    if 'teacher_path' in change:
        teacher['path'].pop('pretrain_network_g')
        change.pop('teacher_path')
    options = model_options(tmp_path, change.pop('train', {'response_kd_opt': {'type': 'L1Loss'}}), teacher=teacher)
    options.update(change)
    with pytest.raises(OptionError, match=message):
        build(options)


def test_losses_are_registered_by_name():
    """Those of the terms, of a method's own table too."""
    assert {'pixel', 'ldl', 'perceptual', 'gan', 'response_kd', 'feature_kd', 'contrastive',
            'self_distill'} <= set(DistillationModel.losses)
    assert DistillationModel.losses == {name: term.default_type for name, term in TERMS.items()}
    assert AdvKDModel.losses['phase_kd'] == 'L1Loss' and DiffusionSRModel.losses == {'diffusion': 'MSELoss'}


def test_images_of_one_channel_for_a_network_of_three_are_refused(tmp_path):
    options = model_options(tmp_path)
    options['datasets']['train']['color'] = 'y'
    with pytest.raises(OptionError, match='gives images of one channel, and `network_g` takes 3'):
        build_model(options)


def test_a_discriminator_that_nothing_trains_is_said(tmp_path):
    model = build_model(gan_options(tmp_path, {'gan_opt': None, 'optim_d': None}))
    assert trained_and_frozen(model.training).endswith('Frozen: net_d, which nothing trains.')


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


def test_warm_up_without_a_scheduler(tmp_path):
    model = build(model_options(tmp_path, {'scheduler': None}))
    model.update_learning_rate(1, warmup_iter=4)
    assert model.get_current_learning_rate() == [1e-3 / 4]


@pytest.mark.parametrize('option', [{}, {'type': 'SGD', 'lr': 1e-3}])
def test_a_state_of_another_kind_of_run_is_refused(tmp_path, option):
    model = build(model_options(tmp_path))
    train(model, batches(1))
    model.save(0, 1)
    state = torch.load(tmp_path / 'training_states' / '1.state')
    other = build(model_options(tmp_path, {'optim_g': option}) if option else gan_options(tmp_path))
    with pytest.raises(OptionError, match='of a run with other networks, losses or optimizers'):
        other.resume_training(state)


@pytest.mark.parametrize('fused', [(False, True), (True, False)])
def test_a_state_of_another_device_goes_on(tmp_path, fused):
    """On a GPU Adam is fused; a CPU's can be, too."""
    model, resumed = (build(model_options(tmp_path, {'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': value}}))
                      for value in fused)
    train(model, batches(2))
    model.save(0, 2)
    resumed.net_g.load_state_dict(model.net_g.state_dict())
    resumed.resume_training(torch.load(tmp_path / 'training_states' / '2.state'))
    for of_both in (model, resumed):
        train(of_both, batches(1), first=3)
    for name, value in weights(model.net_g).items():
        torch.testing.assert_close(weights(resumed.net_g)[name], value)


def test_an_extended_run_follows_the_new_schedule(tmp_path):
    def rates(model, first, last):
        return [(model.update_learning_rate(i), model.get_current_learning_rate())[1] for i in range(first, last + 1)]
    cosine = {'type': 'CosineAnnealingRestartLR', 'eta_min': 1e-5}
    short, long = ({'total_iter': n, 'scheduler': {**cosine, 'periods': [n]}} for n in (4, 8))
    model = build(model_options(tmp_path, short))
    rates(model, 1, 4)
    model.save(0, 4)
    extended, whole = build(model_options(tmp_path, long)), build(model_options(tmp_path, long))
    extended.resume_training(torch.load(tmp_path / 'training_states' / '4.state'))
    assert rates(extended, 5, 8) == rates(whole, 1, 8)[4:]


def test_images_of_one_stem_are_two_images(tmp_path):
    names = ('x/a.png', 'x/a.bmp', 'y/a.png', 'y/a.bmp')
    items = [{**item, 'lq_path': [name]} for name, item in zip(names, batches(4, batch=1), strict=True)]
    path = {**model_options(tmp_path)['path'], 'results_root': str(tmp_path)}
    model = build(model_options(tmp_path, is_train=False, path=path, val={'metrics': PSNR},
                                datasets={'val': {**model_options(tmp_path)['datasets']['train'], 'phase': 'val'}}))
    model.validation(Loader(items), 'test', None, save_img=False)
    content = json.loads((tmp_path / 'metrics_Val.json').read_text())
    assert list(content['images']) == ['a', 'a.bmp', 'a.png', 'a_2.bmp']


def test_a_student_with_weight_norm_and_grey_images(tmp_path, monkeypatch):
    """It cannot be copied, so it is measured itself; its channels are those of its options."""
    from basicsr.utils.registry import ARCH_REGISTRY

    class Grey(torch.nn.Module):
        def __init__(self, in_chans):
            super().__init__()
            self.conv = torch.nn.utils.weight_norm(torch.nn.Conv2d(in_chans, 4, 3, 1, 1))
            self.conv(torch.zeros(1, 1, 4, 4))  # its weight is a non-leaf tensor from here on

        def forward(self, x):
            return torch.nn.functional.pixel_shuffle(self.conv(x), 2)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Grey', Grey)
    model = build(model_options(tmp_path, network_g={'type': 'Grey', 'in_chans': 1}))
    assert model.net_g.training
    train(model, [{key: value[:, :1] for key, value in batches(1)[0].items()}])


def test_a_half_written_line_of_a_killed_run_is_ended(tmp_path):
    items = [{**item, 'lq_path': [f'{i}.png']} for i, item in enumerate(batches(1, batch=1))]
    (tmp_path / 'validation.jsonl').write_text('{"iter": 1')
    model = build(model_options(tmp_path, val={'metrics': PSNR, 'val_freq': 1}))
    model.validation(Loader(items), 2, None, save_img=False)
    model.validation(Loader(items), 3, None, save_img=False)
    lines = (tmp_path / 'validation.jsonl').read_text().splitlines()
    assert lines[0] == '{"iter": 1' and [json.loads(line)['iter'] for line in lines[1:]] == [2, 3]
