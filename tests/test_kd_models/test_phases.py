"""What a phase of Adv-KD's students is taught."""
import pytest
import torch
from basicsr.archs import build_network

from kd_models.phases import states_that_teach, trajectory, wanted
from kd_utils.options import OptionError
from kd_utils.resize import bicubic

UNET = {'type': 'DiffusionUNet', 'scale': 2, 'block_out_channels': [8, 16], 'layers_per_block': 1,
        'norm_num_groups': 4, 'timesteps': 40, 'steps': 4}


def test_which_states_teach():
    assert states_that_teach(11, 10) == list(range(11))
    assert states_that_teach(5, 10) == [2, 4, 6, 8, 10]
    assert states_that_teach(3, 4) == [1, 3, 4] and states_that_teach(1, 10) == [10]


def test_more_phases_than_states_are_refused():
    assert states_that_teach(5, 4) == [0, 1, 2, 3, 4]
    with pytest.raises(OptionError, match='has 6 phases, and the teacher passes through 5 states only. Write'):
        states_that_teach(6, 4)


@pytest.mark.parametrize('target', ['xt', 'x0'])
def test_a_trajectory_has_the_states_that_teach(target):
    """X_0 is the noise in both ways of telling; the last one is the teacher's image."""
    net, noise, lq = build_network(UNET).eval(), torch.randn(2, 3, 16, 16), torch.rand(2, 3, 8, 8)
    condition = net.condition(lq)
    states = trajectory(net, noise, condition, [0, 2, 4], target)
    way = net.trajectory(noise, condition)
    passed = way.states if target == 'xt' else [noise, *way.estimates]
    assert states.shape == (2, 3, 3, 16, 16) and not states.requires_grad and states.abs().max() <= 1
    for k, j in enumerate((0, 2, 4)):
        torch.testing.assert_close(states[:, k], passed[j].clamp(-1, 1))


def test_a_state_is_wanted_in_the_size_of_its_phase():
    states = torch.rand(2, 3, 3, 16, 24)
    torch.testing.assert_close(wanted(states, 0, [1, 1, 2]), bicubic(states[:, 0], (8, 12)))
    assert torch.equal(wanted(states, 2, [1, 1, 2]), states[:, 2])
