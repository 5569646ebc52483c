"""FAKD's spatial affinities: by hand, for any widths, within bounds of memory."""
import pytest
import torch

from kd_losses.affinity_loss import SpatialAffinityLoss

LAYERS = {'body.3': 'body.1', 'conv': 'last'}


def maps(channels, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, channels, size, size, generator=generator) for name in ('body.3', 'conv')}


def named(found, names=('body.1', 'last')):
    return dict(zip(names, found.values(), strict=True))


def test_the_formula_by_hand():
    student, teacher = maps(3), maps(7, seed=1)
    expected = 0.
    for s, t in zip(student.values(), teacher.values(), strict=True):
        total = 0.
        for image in range(2):
            a, b = (x[image].reshape(x.shape[1], 25).T for x in (s, t))  # (places, channels)
            for i in range(25):
                for j in range(25):
                    total += abs(torch.cosine_similarity(a[i], a[j], 0) - torch.cosine_similarity(b[i], b[j], 0))
        expected += total / (2 * 25 * 25)
    loss = SpatialAffinityLoss(layers=LAYERS, loss_weight=3.)(named(student), teacher)
    assert float(loss) == pytest.approx(3 * float(expected) / 2, rel=1e-4)


def test_scale_and_channels_do_not_count():
    """Maps that differ by a factor and by a rotation of their channels are alike."""
    student = maps(4)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0]
    teacher = {name: 50 * torch.einsum('dc,nchw->ndhw', rotation, x) for name, x in student.items()}
    assert float(SpatialAffinityLoss(layers=LAYERS)(named(student), teacher)) < 1e-6
    assert float(SpatialAffinityLoss(layers=LAYERS)(named(student), maps(4, seed=1))) > 0.1


def test_gradients_reach_the_student_only():
    student, teacher = ({name: x.requires_grad_() for name, x in maps(4, seed=seed).items()} for seed in (0, 1))
    SpatialAffinityLoss(layers=LAYERS)(named(student), teacher).backward()
    assert all(x.grad.abs().sum() > 0 for x in student.values())
    assert all(x.grad is None for x in teacher.values())


def test_large_maps_are_averaged_down():
    """Halves of a map that are constant over 2x2 places have the affinities of the small map."""
    small_s, small_t = maps(4), maps(6, seed=1)
    large_s, large_t = ({name: x.repeat_interleave(2, 2).repeat_interleave(2, 3) for name, x in found.items()}
                        for found in (small_s, small_t))
    loss = SpatialAffinityLoss(layers=LAYERS, largest_side=5)
    assert float(loss(named(large_s), large_t)) == pytest.approx(float(loss(named(small_s), small_t)), rel=1e-5)
    exact = SpatialAffinityLoss(layers=LAYERS, largest_side=10)
    assert float(exact(named(large_s), large_t)) == pytest.approx(float(loss(named(small_s), small_t)), rel=1e-5)


def test_a_place_without_features_is_no_nan():
    student = {name: x * 0 for name, x in maps(4).items()}
    assert torch.isfinite(SpatialAffinityLoss(layers=LAYERS)(named(student), maps(4, seed=1)))


def test_affinities_stay_in_full_precision():
    loss, student, teacher = SpatialAffinityLoss(layers=LAYERS), named(maps(4)), maps(6, seed=1)
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(loss(student, teacher), expected)
        assert loss._affinity(teacher['conv'].bfloat16()).dtype is torch.float32


def test_tokens_of_a_square_are_averaged_as_images_are():
    """Transformers' maps come as (N, C, L, 1)."""
    student, teacher = maps(4, size=8), maps(6, size=8, seed=1)
    as_tokens = [{name: x.flatten(2).unsqueeze(-1) for name, x in found.items()} for found in (student, teacher)]
    loss = SpatialAffinityLoss(layers=LAYERS, largest_side=4)
    assert torch.equal(loss(named(as_tokens[0]), as_tokens[1]), loss(named(student), teacher))
