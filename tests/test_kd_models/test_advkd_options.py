"""What Adv-KD's presets write where the file is silent."""
import pytest

from kd_models.advkd_model import AdvKDModel
from kd_models.advkd_options import PENALTIES, PRESETS, progressive_stages
from kd_utils.options import OptionError
from tests.support import model_options, save_teacher
from tests.test_kd_models.test_advkd_model import FAITHFUL, STUDENT, UNET


def test_the_iterations_of_each_phase():
    stages = progressive_stages(6600, 11, ['gan'])
    assert [stage['iters'] for stage in stages] == [100 * (k + 1) for k in range(11)]
    assert sum(stage['iters'] for stage in progressive_stages(1000, 5, ['gan'])) == 1000


def test_losses_on_images_are_on_in_the_last_stage():
    losses = ['pixel', 'gan', 'phase_kd']
    first, last = progressive_stages(3, 2, losses)
    assert first == {'name': 'phase 1', 'iters': 1, 'losses': ['gan', 'phase_kd'], 'optimizer': 'fresh', 'phase': 1}
    assert last == {'name': 'phase 2', 'iters': 2, 'losses': losses, 'optimizer': 'fresh', 'phase': 2}
    with pytest.raises(OptionError, match='is 1, too few for the 4 stages of `preset: faithful`. Write 10 or more'):
        progressive_stages(1, 4, losses)


@pytest.mark.parametrize('preset, student, sides', [('practical', STUDENT, [16, 16, 32]),
                                                    ('faithful', FAITHFUL, [16, 16, 16, 32, 32])])
def test_a_preset_is_written_where_the_file_is_silent(tmp_path, preset, student, sides):
    opt = model_options(tmp_path, {'pixel_opt': None, 'preset': preset, 'gan_opt': {'loss_weight': 7}},
                        model_type='AdvKDModel', network_g=dict(student), teacher=save_teacher(tmp_path, UNET))
    AdvKDModel.complete(opt)
    train_opt = opt['train']
    for key, value in {**PRESETS[preset], **PENALTIES[preset]}.items():
        if key not in ('gan_opt', 'optim_g'):
            assert train_opt[key] == value
    assert train_opt['gan_opt'] == {'loss_weight': 7} and train_opt['optim_d'] == train_opt['optim_g']
    network_d = opt['network_d']
    assert network_d['type'] == 'PhaseDiscriminators' and network_d['conditional']
    assert network_d['sizes'] == sides and network_d['faithful'] == (preset == 'faithful')
    assert len(train_opt.get('stages') or ()) == (5 if preset == 'faithful' else 0)
