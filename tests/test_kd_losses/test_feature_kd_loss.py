"""MLPFeatureLoss against NumPy."""
import numpy as np
import pytest
import torch

from kd_losses.feature_kd_loss import MLPFeatureLoss, Standardized
from kd_utils.options import OptionError

LAYERS = {'body.1': 'body.0', 'conv': 'conv'}
CHANNELS = {'body.1': (2, 4), 'conv': (3, 3)}


def maps(channels_of, seed):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(2, c, 3, 5, generator=generator) for layer, c in channels_of.items()}


@pytest.mark.parametrize('hidden, width', [('teacher', 4), ('student', 2), (7, 7)])
def test_against_numpy(hidden, width):
    loss = MLPFeatureLoss(layers=LAYERS, channels=CHANNELS, hidden=hidden, normalize='none', loss_weight=0.3)
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


def test_normalized_maps_against_numpy():
    """Both sides are standardized per channel by the statistics of all batches so far; the first R^2 is 1 - MSE."""
    loss = MLPFeatureLoss(layers={'conv': 'conv'}, channels={'conv': (3, 3)})
    student, teacher = maps({'conv': 3}, 0), {'conv': 40 * maps({'conv': 3}, 1)['conv'] + 7}

    def standard(x):
        return (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    with torch.no_grad():
        lifted = loss.adaptors['conv'](torch.from_numpy(standard(student['conv'].numpy()))).numpy()
    expected = np.mean((lifted - standard(teacher['conv'].numpy()))**2)
    value = loss(student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert loss.explained.item() == pytest.approx(1 - expected, rel=1e-3)


def test_scale_of_the_maps_does_not_count_when_normalized():
    student, teacher = maps({'body.0': 2, 'conv': 3}, 0), maps({'body.1': 4, 'conv': 3}, 1)
    values = []
    for factor in (1, 70):
        torch.manual_seed(0)
        loss = MLPFeatureLoss(layers=LAYERS, channels=CHANNELS)
        scaled = ({k: v / factor for k, v in student.items()}, {k: v * factor for k, v in teacher.items()})
        values.append(loss(*scaled).item())
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_running_statistics():
    """The plain mean first, an exponential one later; none in eval; constants for the gradient."""
    norm = Standardized(2, momentum=0.1)
    batches = torch.randn(40, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 5 + 3
    for batch in batches[:10]:
        norm(batch)
    torch.testing.assert_close(norm.mean, batches[:10].mean((0, 1, 3, 4)))
    torch.testing.assert_close(norm.square, batches[:10].square().mean((0, 1, 3, 4)))
    before = norm.mean.clone()
    norm(batches[10])
    torch.testing.assert_close(norm.mean, 0.9 * before + 0.1 * batches[10].mean((0, 2, 3)))
    norm.eval()
    kept = {name: value.clone() for name, value in norm.state_dict().items()}
    x = batches[11].clone().requires_grad_()
    norm(x).sum().backward()
    assert all(torch.equal(value, kept[name]) for name, value in norm.state_dict().items())
    assert x.grad.std((0, 2, 3)).max() < 1e-6, 'no gradient through the statistics'
    norm.reset_parameters()
    assert norm.batches == 0 and torch.equal(norm.mean, torch.zeros(2))
