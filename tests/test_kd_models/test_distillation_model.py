"""What the base promises: what learns, what does not, in which stage, in which order, and what is saved."""
import json
import math

import pytest
import torch
from basicsr.models import build_model

from kd_utils.options import OptionError
from tests.support import (
    EDSR,
    GAN,
    ORDERS,
    TEACHER,
    UNET,
    assert_equal_weights,
    batches,
    build,
    full_options,
    model_options,
    save_teacher,
    train,
    weights,
)


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
    assert set(logs[-1]) == {'l_g_pix', 'l_g_ldl', 'l_g_gan', 'l_g_response_kd', 'l_g_feature_kd', 'feature_kd_r2',
                             'l_d_real',
                             'l_d_fake', 'l_d_feature_kd', 'l_d_r1', 'out_d_real', 'out_d_fake'}
    assert all(math.isfinite(value) for value in logs[-1].values())


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


def test_teacher_discriminator_gives_the_gradient_where_a_stage_says_so(tmp_path):
    stages = [{'name': 'one', 'iters': 100, 'losses': ['gan'], 'discriminator': 'teacher'}]
    model = build(model_options(tmp_path, {'stages': stages, 'gan_opt': GAN['gan_opt']},
                                teacher=save_teacher(tmp_path, TEACHER, {**UNET, 'num_feat': 8})))
    lq = batches(1)[0]['lq']
    with torch.no_grad():
        expected = model.terms['gan'].criterion(model.teacher.net_d(model.net_g(lq)), True, is_disc=False).item()
    log = train(model, batches(1))[0]
    assert log == {'l_g_gan': pytest.approx(expected)}


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


def test_warm_up_without_a_scheduler(tmp_path):
    model = build(model_options(tmp_path, {'scheduler': None}))
    model.update_learning_rate(1, warmup_iter=4)
    assert model.get_current_learning_rate() == [1e-3 / 4]


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
