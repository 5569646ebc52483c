"""Other projects' names."""
from __future__ import annotations

import pytest

from kd_utils.options import OptionError, apply_aliases
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


def test_aliases_leave_other_projects_alone():
    opt = {'model_type': 'TestForeignModel', 'discriminator': {}, 'network_t': {}}
    assert apply_aliases(opt) == [] and set(opt) == {'model_type', 'discriminator', 'network_t'}
    assert apply_aliases({'model_type': 'TestOurModel', 'discriminator': {'type': 'x'}})
    assert apply_aliases({'model_type': ['odd'], 'path': None, 'train': 3}) == []
