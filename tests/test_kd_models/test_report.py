"""What is about to be trained: the table of the networks, the line on what is frozen, and what does not fit."""
import pytest
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from kd_models.probe import probe
from kd_models.report import networks_table, trained_and_frozen
from kd_utils.options import OptionError
from tests.support import EDSR, TEACHER, UNET, build, full_options, gan_options, model_options, save_teacher


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


def test_images_of_one_channel_for_a_network_of_three_are_refused(tmp_path):
    options = model_options(tmp_path)
    options['datasets']['train']['color'] = 'y'
    with pytest.raises(OptionError, match='gives images of one channel, and `network_g` takes 3'):
        build_model(options)


def test_a_discriminator_that_nothing_trains_is_said(tmp_path):
    model = build_model(gan_options(tmp_path, {'gan_opt': None, 'optim_d': None}))
    assert trained_and_frozen(model.training).endswith('Frozen: net_d, which nothing trains.')


def test_the_table_has_a_teachers_size_as_a_multiple_of_the_students():
    size = 1, 3, 16, 16
    student, teacher = (probe(build_network(option), size) for option in (EDSR, TEACHER))
    _, of_student, of_teacher = networks_table({'student net_g': student, 'teacher.large net_g': teacher}).split('\n')
    assert f'{student.params:,}' in of_student and 'x,' not in of_student
    assert of_teacher.split()[:2] == ['teacher.large', 'net_g'] and f'{teacher.params:,}' in of_teacher
    assert of_teacher.endswith(f'{teacher.params / student.params:.1f}x, {teacher.macs / student.macs:.1f}x')


def test_a_generator_that_no_stage_updates_is_frozen(tmp_path):
    stages = [{'name': 'd', 'iters': 100, 'losses': [], 'train_d': True}]
    model = build_model(gan_options(tmp_path, {'stages': stages, 'pixel_opt': None}, teacher=save_teacher(tmp_path),
                                    network_d=UNET))
    assert trained_and_frozen(model.training) == 'Trained tensors: net_d 12. Frozen: teacher net_g, net_g.'
