"""What a training consists of."""
from tests.support import build, full_options, gan_options, model_options, save_teacher


def test_what_is_trained_by_whom(tmp_path):
    training = build(full_options(tmp_path)).training
    assert list(training.trained) == ['net_g', 'aux.feature_kd', 'aux.feature_kd_d', 'net_d']
    assert training.trains_discriminator and training.aux_d == {'feature_kd_d'}
    assert training.aux_of('g') == {'feature_kd': training.aux['feature_kd']}
    assert training.aux_of('d') == {'feature_kd_d': training.aux['feature_kd_d']}


def test_a_discriminator_without_an_optimizer_is_not_trained(tmp_path):
    training = build(gan_options(tmp_path, {'gan_opt': None, 'optim_d': None})).training
    assert training.net_d is not None and not training.trains_discriminator and list(training.trained) == ['net_g']


def test_what_is_not_there(tmp_path):
    training = build(model_options(tmp_path)).training
    assert training.net_g_ema is None and training.net_d is None and training.teachers == {}
    assert training.degradation is None and training.usm_sharpener is None and training.latent_size is None
    assert (training.lq_size, training.gt_size) == ((1, 3, 16, 16), (1, 3, 32, 32))
    assert list(build(model_options(tmp_path, teacher=save_teacher(tmp_path))).training.teachers) == ['teacher']
