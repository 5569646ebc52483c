"""Promise 8: with our terms off the models equal BasicSR's bit for bit, networks, optimizers and losses."""
import pytest
import torch
from basicsr.models import build_model

from tests.support import UNET, assert_equal_weights, batches, gan_options, model_options, save_teacher, train, weights

PERCEPTUAL = {'perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 0.1, 'conv2_2': 1.0},
                                 'perceptual_weight': 1.0, 'style_weight': 0.5}}
VGG_D = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 2}


def run(options, seed=3, iterations=4, size=16):
    torch.manual_seed(seed)
    model = build_model(options)
    return model, train(model, batches(iterations, size=size)), torch.rand(1)


def compare(ours, stock):
    (ours, our_logs, our_random), (stock, stock_logs, stock_random) = ours, stock
    assert_equal_weights(weights(ours.net_g), weights(stock.net_g))
    if hasattr(stock, 'net_g_ema'):
        assert_equal_weights(weights(ours.net_g_ema), weights(stock.net_g_ema))
    if hasattr(stock, 'net_d'):
        assert_equal_weights(weights(ours.net_d), weights(stock.net_d))
    for our_log, stock_log in zip(our_logs, stock_logs, strict=True):
        expected = {name.replace('l_pix', 'l_g_pix').replace('l_percep', 'l_g_percep').replace('l_style', 'l_g_style'):
                    value for name, value in stock_log.items()}
        assert {name: value for name, value in our_log.items() if name != 'self_distill_distance'} == expected
    assert torch.equal(our_random, stock_random)  # the same random numbers were drawn on the way


@pytest.mark.parametrize('train_opt', [{}, {'ema_decay': 0.9}, {'ema_decay': 0.9, **PERCEPTUAL}],
                         ids=['plain', 'ema', 'perceptual'])
def test_srmodel(tmp_path, vgg_without_download, train_opt):
    compare(run(model_options(tmp_path, train_opt)), run(model_options(tmp_path, train_opt, model_type='SRModel')))


@pytest.mark.parametrize('iters', [{}, {'net_d_iters': 2, 'net_d_init_iters': 1}], ids=['every', 'd_iters'])
@pytest.mark.parametrize('network_d, size', [(UNET, 16), (VGG_D, 64)], ids=['unet_sn', 'vgg_bn'])
@pytest.mark.parametrize('stock, mode', [('SRGANModel', 'standard'), ('ESRGANModel', 'relativistic')])
def test_gan_models(tmp_path, vgg_without_download, stock, mode, network_d, size, iters):
    train_opt = {'ema_decay': 0.9, **PERCEPTUAL, **iters}
    ours = gan_options(tmp_path, {**train_opt, 'gan_mode': mode}, network_d=network_d)
    ours['datasets']['train']['gt_size'] = 2 * size
    theirs = gan_options(tmp_path, train_opt, network_d=network_d, model_type=stock)
    compare(run(ours, size=size), run(theirs, size=size))


@pytest.mark.parametrize('distance', [{'type': 'MSELoss', 'augment': True},
                                      {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 1}, 'criterion': 'l1'}])
@pytest.mark.parametrize('stock, mode', [('SRGANModel', 'standard'), ('ESRGANModel', 'relativistic')])
def test_self_distillation_at_weight_0(tmp_path, vgg_without_download, stock, mode, distance):
    """The distance is measured and logged; networks, losses and random numbers do not notice."""
    train_opt = {'ema_decay': 0.9, **PERCEPTUAL}
    weightless = {'self_distill_opt': {**distance, 'loss_weight': 0}, 'gan_mode': mode}
    ours = run(gan_options(tmp_path, {**train_opt, **weightless}, model_type='SDGANModel'))
    compare(ours, run(gan_options(tmp_path, train_opt, model_type=stock)))
    assert [log['self_distill_distance'] > 0 for log in ours[1]] == [False, True, True, True]
    assert not any('l_g_self_distill' in log for log in ours[1])


def test_with_a_teacher_that_no_loss_asks_for(tmp_path):
    """A teacher, its adaptors and their random numbers change nothing in a stage without teacher terms."""
    distilled = {'feature_kd_opt': {'type': 'MLPFeatureLoss'}, 'response_kd_opt': {'type': 'L1Loss'},
                 'stages': [{'name': 'supervised', 'iters': 100, 'losses': ['pixel', 'gan']}]}
    ours = run(gan_options(tmp_path, distilled, teacher=save_teacher(tmp_path)))
    compare(ours, run(gan_options(tmp_path, model_type='SRGANModel')))


def test_starting_from_weights(tmp_path):
    """From a file that holds both `params` and `params_ema`."""
    torch.manual_seed(0)
    source = build_model(model_options(tmp_path, {'ema_decay': 0.9}))
    train(source, batches(2))
    source.save(0, 2)
    path = {**model_options(tmp_path)['path'], 'pretrain_network_g': str(tmp_path / 'models' / 'net_g_2.pth')}
    compare(run(model_options(tmp_path, {'ema_decay': 0.9}, path=path)),
            run(model_options(tmp_path, {'ema_decay': 0.9}, path=path, model_type='SRModel')))
