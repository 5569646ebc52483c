"""A model whose teacher's images come with the batch."""
import pytest
import torch
from basicsr.models import build_model

from kd_data.teacher_cache import item_key
from kd_utils.options import OptionError
from tests.support import UNET, batches, gan_options, model_options, refusal, save_teacher, train

RESPONSE = {'response_kd_opt': {'type': 'L1Loss'}, 'pixel_opt': None}


def cached(folder, **network_d):
    return {**save_teacher(folder, **network_d), 'cache': 'folder'}


def with_teacher(data):
    return [{**item, 'teacher': 1 - item['gt']} for item in data]


def test_the_losses_read_the_batch_and_the_teacher_never_runs(tmp_path, monkeypatch):
    model = build_model(model_options(tmp_path, RESPONSE, teacher=cached(tmp_path)))
    monkeypatch.setattr(model.teacher.net_g, 'forward', None)
    item, = with_teacher(batches(1))
    with torch.no_grad():
        expected = (model.net_g(item['lq']) - item['teacher']).abs().mean()
    assert train(model, [item])[0]['l_g_response_kd'] == pytest.approx(float(expected), rel=1e-5)


def test_the_teachers_discriminator_still_runs(tmp_path):
    options = gan_options(tmp_path, {**RESPONSE, 'feature_kd_d_opt': {'type': 'MLPFeatureLoss'}},
                          teacher=cached(tmp_path, network_d={**UNET, 'num_feat': 6}))
    assert train(build_model(options), with_teacher(batches(1)))[0]['l_d_feature_kd'] > 0


def test_losses_on_feature_maps_are_refused(tmp_path):
    options = model_options(tmp_path, {**RESPONSE, 'feature_kd_opt': {'type': 'MLPFeatureLoss'}},
                            teacher=cached(tmp_path))
    with pytest.raises(OptionError, match='feature_kd_opt` compares feature maps.*Take one of the two out'):
        build_model(options)


def test_a_loop_that_gives_no_images_of_the_teacher_is_refused(tmp_path):
    model = build_model(model_options(tmp_path, RESPONSE, teacher=cached(tmp_path)))
    train(model, with_teacher(batches(1)))
    with pytest.raises(OptionError, match='read by the loop of kd_cli only. Call kd_cli.train.main'):
        train(model, batches(1))


def test_a_cache_that_no_loss_reads_is_not_asked_for(tmp_path):
    assert train(build_model(model_options(tmp_path, teacher=cached(tmp_path))), batches(1))


def test_the_fingerprint_tells_teachers_apart(tmp_path):
    def fingerprint(section):
        return build_model(model_options(tmp_path, RESPONSE, teacher=section)).teacher.fingerprint()

    section = save_teacher(tmp_path)
    first = fingerprint(section)
    assert fingerprint(section) == first
    path = section['path']['pretrain_network_g']
    state = torch.load(path)
    state['params']['conv_last.bias'][0] += 1e-6
    torch.save(state, path)
    assert fingerprint(section)['weights'] != first['weights']
    section['network_g']['res_scale'] = 0.5  # without weights of its own
    assert fingerprint(section)['network_g'] != first['network_g']


FEATURES = {**RESPONSE, 'feature_kd_opt': {'type': 'MLPFeatureLoss'}}


def test_feature_maps_come_with_the_batch(tmp_path, monkeypatch):
    """Of exactly the teacher's images and maps the training is the one without a cache, and the teacher never runs."""
    section = save_teacher(tmp_path)
    plain = build_model(model_options(tmp_path, FEATURES, teacher=section))
    cache = {'folder': 'x', 'features': True}
    kept = build_model(model_options(tmp_path, FEATURES, teacher={**section, 'cache': cache}))
    kept.net_g.load_state_dict(plain.net_g.state_dict())
    kept.aux.load_state_dict(plain.aux.state_dict())
    data = []
    for item in batches(3):
        made = kept.cacheable(item['lq'])
        assert made.keys() == {'image', *kept.cached_layers()}
        data.append({**item, **{item_key('teacher', layer): maps for layer, maps in made.items()}})
    monkeypatch.setattr(kept.teacher.net_g, 'forward', None)
    logs = train(kept, data)
    assert logs == train(plain, batches(3)) and logs[0]['l_g_feature_kd'] > 0


def test_maps_that_no_loss_reads_are_not_kept(tmp_path, warnings_logged):
    model = build_model(model_options(tmp_path, RESPONSE, teacher={
        **save_teacher(tmp_path), 'cache': {'folder': 'x', 'features': True}}))
    assert model.cached_layers() == () and model.cacheable(batches(1)[0]['lq']).keys() == {'image'}
    assert any('`teacher.cache.features` is of no use' in text for text in warnings_logged)


@pytest.mark.parametrize('cache, message', [
    ({'features': True}, '`teacher.cache.folder` is missing. Write a path.'),
    ({'folder': 'x', 'dtype': 'bf16'}, "`teacher.cache.dtype` cannot be 'bf16'. Write one of"),
    ({'folder': 'x', 'feature': True}, 'Unknown key `teacher.cache.feature`. Did you mean `features`'),
    (3, '`teacher.cache` cannot be 3. Write a path'),
])
def test_what_a_section_may_say(tmp_path, cache, message):
    options = model_options(tmp_path, RESPONSE, teacher={**save_teacher(tmp_path), 'cache': cache})
    assert message in refusal(options)
