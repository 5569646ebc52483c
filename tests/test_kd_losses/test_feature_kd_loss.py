"""MLPFeatureLoss against NumPy."""
import numpy as np
import pytest
import torch

from kd_losses.feature_kd_loss import MLPFeatureLoss
from kd_utils.options import OptionError

LAYERS = {'body.1': 'body.0', 'conv': 'conv'}
CHANNELS = {'body.1': (2, 4), 'conv': (3, 3)}


def maps(channels_of, seed):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(2, c, 3, 5, generator=generator) for layer, c in channels_of.items()}


@pytest.mark.parametrize('hidden, width', [('teacher', 4), ('student', 2), (7, 7)])
def test_against_numpy(hidden, width):
    loss = MLPFeatureLoss(layers=LAYERS, channels=CHANNELS, hidden=hidden, loss_weight=0.3)
    assert loss.adaptors['body_1'][0].out_channels == width
    student, teacher = maps({'body.0': 2, 'conv': 3}, 0), maps({'body.1': 4, 'conv': 3}, 1)
    distances = []
    for of_teacher, of_student in LAYERS.items():
        first, _, second = loss.adaptors[of_teacher.replace('.', '_')]
        w1, b1, w2, b2 = (p.detach().numpy() for p in (first.weight[:, :, 0, 0], first.bias,
                                                       second.weight[:, :, 0, 0], second.bias))
        hidden_map = np.einsum('hc,ncij->nhij', w1, student[of_student].numpy()) + b1[None, :, None, None]
        lifted = np.einsum('th,nhij->ntij', w2, np.maximum(hidden_map, 0)) + b2[None, :, None, None]
        distances.append(np.mean((lifted - teacher[of_teacher].numpy())**2))
    assert loss(student, teacher).item() == pytest.approx(0.3 * np.mean(distances), rel=1e-5)


def test_gradient_reaches_student_and_adaptors_only():
    loss = MLPFeatureLoss(layers=LAYERS, channels=CHANNELS)
    student = {k: v.requires_grad_() for k, v in maps({'body.0': 2, 'conv': 3}, 0).items()}
    teacher = {k: v.requires_grad_() for k, v in maps({'body.1': 4, 'conv': 3}, 1).items()}
    loss(student, teacher).backward()
    assert all(x.grad is not None for x in student.values()) and all(x.grad is None for x in teacher.values())
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize('hidden', ['wide', 0, -1, True, 1.5])
def test_hidden_must_be_a_width(hidden):
    with pytest.raises(OptionError, match='Write `teacher`, `student` or a number'):
        MLPFeatureLoss(layers=LAYERS, channels=CHANNELS, hidden=hidden)
