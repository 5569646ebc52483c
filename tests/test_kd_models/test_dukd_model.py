"""DUKD: what it takes for granted."""
from basicsr.models import build_model

from kd_models.dukd_model import DUKDModel
from tests.support import batches, build, model_options, save_teacher, train_seeded


def test_dukd_has_it_on_by_itself(tmp_path):
    opt = model_options(tmp_path, teacher=save_teacher(tmp_path), model_type='DUKDModel')
    model = build_model(opt)
    assert model.terms['response_kd'].inputs == 'both' and set(model.terms) == {'pixel', 'response_kd'}


def test_what_the_file_has_is_kept(tmp_path):
    own = {'pixel_opt': None, 'response_kd_opt': {'type': 'MSELoss', 'inputs': 'upcycled'},
           'upcycling': {'flip': False}}
    opt = model_options(tmp_path, own, teacher=save_teacher(tmp_path), model_type='DUKDModel')
    DUKDModel.complete(opt)
    assert {key: opt['train'][key] for key in own} == own


def test_the_response_is_compared_on_both_inputs(tmp_path):
    """The loss on both is more than that on the given one alone."""
    logs = []
    for losses in ({}, {'response_kd_opt': {'type': 'L1Loss', 'loss_weight': 1.0}, 'upcycling': None}):
        opt = model_options(tmp_path, losses, teacher=save_teacher(tmp_path), model_type='DUKDModel')
        logs += train_seeded(build(opt), batches(1))
    assert logs[0]['l_g_pix'] == logs[1]['l_g_pix']
    assert logs[0]['l_g_response_kd'] > 1.2 * logs[1]['l_g_response_kd']
