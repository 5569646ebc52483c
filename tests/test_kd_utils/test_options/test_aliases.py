"""Other projects' names."""
from __future__ import annotations

import pytest

from kd_utils.options import OptionError, apply_aliases
from kd_utils.schema import get
from tests.test_kd_utils.option_files import MCADKD, parse, read


def test_mcadkd_keys_are_renamed_and_reported(write):
    opt, args = parse(write(MCADKD))
    assert opt['model_type'] == 'MCADKDModel'
    assert opt['teacher'] == {
        'network_g': {'type': 'SwinIR', 'upscale': 2, 'embed_dim': 180},
        'path': {'pretrain_network_g': '/path/to/teacher_checkpoint.pth', 'param_key_g': 'params',
                 'strict_load_g': True}}
    assert opt['network_d'] == {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64}
    assert opt['train']['response_kd_opt']['loss_weight'] == 0.5 and opt['train']['gan_opt']['gan_type'] == 'vanilla'
    assert not {'network_t', 'discriminator'} & opt.keys()
    assert not {'pretrain_network_t', 'param_key_t', 'strict_load_t'} & opt['path'].keys()
    assert not {'resp_kd_opt', 'adversarial_opt'} & opt['train'].keys()
    assert args.messages[0] == '`model_type: MCADKD` is read as `model_type: MCADKDModel`.'
    assert '`network_t` is read as `teacher.network_g`.' in args.messages and len(args.messages) == 9
    assert opt['train']['contrastive_opt']['level'] == 'hybrid' and 'type' not in opt['train']['contrastive_opt']


def test_older_names_of_basicsr_are_renamed():
    opt = {'model_type': 'TestOurModel', 'path': {'pretrain_model_g': 'g.pth', 'strict_load': False}}
    assert len(apply_aliases(opt)) == 2
    assert opt['path'] == {'pretrain_network_g': 'g.pth', 'strict_load_g': False}


def test_old_and_new_key_together_are_refused():
    opt = read(MCADKD)
    opt['network_d'] = {'type': 'VGGStyleDiscriminator'}
    with pytest.raises(OptionError, match='`discriminator` and `network_d` are the same option'):
        apply_aliases(opt)


@pytest.mark.parametrize('entry, key, value', [
    ('train:response_kd_opt:loss_weight=2', 'train.response_kd_opt.loss_weight', 2),
    ('train:resp_kd_opt:loss_weight=3', 'train.response_kd_opt.loss_weight', 3),
    ('train:response_kd_opt={type: MSELoss}', 'train.response_kd_opt', {'type': 'MSELoss'}),
    ('teacher:network_g:embed_dim=60', 'teacher.network_g.embed_dim', 60),
    ('network_t:embed_dim=96', 'teacher.network_g.embed_dim', 96),
    ('teacher:path:pretrain_network_g=b.pth', 'teacher.path.pretrain_network_g', 'b.pth'),
    ('teacher:path:param_key_g=params_ema', 'teacher.path.param_key_g', 'params_ema'),
    ('network_d=~', 'network_d', None),
    ('train:contrastive_opt:type=patch', 'train.contrastive_opt.level', 'patch'),
    ('train:contrastive_opt:level=image', 'train.contrastive_opt.level', 'image'),
    ('train={adversarial_opt: {gan_type: hinge}}', 'train.gan_opt.gan_type', 'hinge'),
    ('model_type=MCADKD', 'model_type', 'MCADKDModel'),
])
def test_what_is_forced_is_that_key_by_whatever_name(write, entry, key, value):
    """The file has the authors' names."""
    opt, _ = parse(write(MCADKD), '--force_yml', entry)
    assert get(opt, key) == value
    names = set(opt) | set(opt['path']) | set(opt['train'])
    assert not names & {'network_t', 'discriminator', 'pretrain_network_t', 'resp_kd_opt', 'adversarial_opt'}


def test_a_forced_alias_is_reported_and_means_what_it_means_in_a_file(write):
    file = write('name: x\nmodel_type: TestOurModel\ntrain: {response_kd_opt: {loss_weight: 1}}\n')
    opt, args = parse(file, '--force_yml', 'path:pretrain_network_t=t.pth', 'train:resp_kd_opt:loss_weight=2')
    assert opt['teacher'] == {'path': {'pretrain_network_g': 't.pth', 'param_key_g': 'params'}}
    assert opt['train']['response_kd_opt'] == {'loss_weight': 2}
    assert '`path.pretrain_network_t` of --force_yml is read as `teacher.path.pretrain_network_g`.' in args.messages
    assert '`teacher.path.param_key_g` is taken to be `params`, as where this file comes from.' in args.messages


def test_a_forced_model_of_another_project_keeps_its_names(write):
    opt, _ = parse(write(MCADKD), '--force_yml', 'model_type=TestForeignModel', 'train:resp_kd_opt:loss_weight=2')
    assert opt['train']['resp_kd_opt']['loss_weight'] == 2 and 'response_kd_opt' not in opt['train']


def test_aliases_leave_other_projects_alone():
    opt = {'model_type': 'TestForeignModel', 'discriminator': {}, 'network_t': {}}
    assert apply_aliases(opt) == [] and set(opt) == {'model_type', 'discriminator', 'network_t'}
    assert apply_aliases({'model_type': 'TestOurModel', 'discriminator': {'type': 'x'}})
    assert apply_aliases({'model_type': ['odd'], 'path': None, 'train': 3}) == []
