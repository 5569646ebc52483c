"""MultiScaleContrastiveLoss: what InfoNCE is, which negatives count, what is trained."""
import math

import numpy as np
import pytest
import torch
from torch import multiprocessing
from torch.nn import functional as F

from benchmarks.operations import Operations
from kd_losses.contrastive_loss import MultiScaleContrastiveLoss, Temperature, _crops
from kd_utils.options import OptionError


def images(count=4, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(count, 3, size, size, generator=generator) for _ in range(3))


def loss_of(level='image', **options):
    torch.manual_seed(0)
    return MultiScaleContrastiveLoss(level=level, **{'patch_size': 8, 'num_patches': 3, 'd_emb': 16, **options})


def embeddings(loss, level, *views):
    with torch.no_grad():
        return [loss.heads[level](x).numpy() for x in views]


def test_image_level_is_cross_entropy_with_diagonal_labels():
    student, teacher, _ = images()
    loss = loss_of(tau=0.1)
    s, t = (loss.heads['image'](x) for x in (student, teacher))
    expected = F.cross_entropy(s @ t.t() / 0.1, torch.arange(4))
    parts = loss(student, teacher)
    torch.testing.assert_close(parts['image'], expected)
    torch.testing.assert_close(parts['loss'], 0.05 * 0.3 * expected)
    assert parts['tau_image'].item() == pytest.approx(0.1)


def test_decoupled_form_against_numpy():
    student, teacher, _ = images()
    loss = loss_of(tau=0.1, include_positive=False)
    s, t = embeddings(loss, 'image', student, teacher)
    c = s @ t.T / 0.1
    expected = np.mean([-c[i, i] + np.log(sum(np.exp(c[i, j]) for j in range(4) if j != i)) for i in range(4)])
    assert loss(student, teacher)['image'].item() == pytest.approx(expected, rel=1e-5)


def test_hard_mining_keeps_the_most_similar_negatives():
    student, teacher, _ = images(6)
    loss = loss_of(tau=0.1, mining='hard', k_image=2)
    s, t = embeddings(loss, 'image', student, teacher)
    c = s @ t.T / 0.1
    expected = 0
    for i in range(6):
        hardest = sorted((c[i, j] for j in range(6) if j != i), reverse=True)[:2]
        expected += -c[i, i] + np.log(np.exp(c[i, i]) + np.exp(hardest).sum())
    assert loss(student, teacher)['image'].item() == pytest.approx(expected / 6, rel=1e-5)
    everything = loss_of(tau=0.1)(student, teacher)['image']
    assert loss_of(tau=0.1, mining='hard', k_image=99)(student, teacher)['image'] == everything


def test_degraded_negative_is_the_anchors_own():
    student, teacher, degraded = images()
    loss = loss_of(tau=0.1, negatives='in_batch+degraded')
    s, t, d = embeddings(loss, 'image', student, teacher, degraded)
    c, own = s @ t.T / 0.1, (s * d).sum(1) / 0.1
    expected = np.mean([-c[i, i] + np.log(np.exp(c[i]).sum() + np.exp(own[i])) for i in range(4)])
    assert loss(student, teacher, degraded)['image'].item() == pytest.approx(expected, rel=1e-5)


def test_patches_are_cropped_at_the_same_places_and_overlapping_ones_are_no_negatives():
    """Every image holds its own coordinates, so that a crop tells where it was taken."""
    y, x = torch.meshgrid(torch.arange(24.), torch.arange(24.), indexing='ij')
    coordinates = torch.stack([torch.stack([torch.full_like(x, float(i)), y, x]) for i in range(4)])
    loss = loss_of('patch')
    torch.manual_seed(1)
    views, overlap = loss._patches([coordinates, coordinates.clone()], torch.eye(4, dtype=torch.bool))
    assert torch.equal(*views) and views[0].shape == (12, 3, 8, 8)
    place = views[0][:, :, 0, 0]  # (image, top, left)
    for a in range(12):
        for b in range(12):
            together = place[a, 0] == place[b, 0] and (place[a, 1:] - place[b, 1:]).abs().max() < 8
            assert overlap[a, b] == bool(together)
    assert overlap.diagonal().all() and overlap.sum() > 12  # some do overlap in this draw


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_crops_and_their_gradients_are_those_of_slices(layout):
    """Bit for bit, where crops overlap too."""
    images = torch.rand(3, 3, 20, 24).contiguous(memory_format=layout).requires_grad_()
    owner, top, left = torch.arange(3).repeat_interleave(6), torch.randint(0, 13, (18, )), torch.randint(0, 17, (18, ))
    sliced = torch.stack([images[i, :, y:y + 8, x:x + 8] for i, y, x in zip(owner, top, left, strict=True)])
    crops = _crops([images], owner, top, left, 8)[0]
    assert torch.equal(crops, sliced)
    weight = torch.rand(18, 3, 8, 8)
    gradients = [torch.autograd.grad((views * weight).sum(), images)[0] for views in (crops, sliced)]
    assert torch.equal(*gradients) and (gradients[0] > weight.max()).any(), 'some crops overlap'


def test_crops_are_not_made_one_by_one():
    """The number of operations does not grow with the number of crops."""
    counts = []
    for patches in (2, 30):
        loss = loss_of('patch', num_patches=patches)
        student, teacher, _ = images()
        with Operations() as operations:
            loss(student.requires_grad_(), teacher)['loss'].backward()
        counts.append(operations.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize('level', ['image', 'patch'])
def test_half_precision_stops_at_the_embeddings(level):
    """Cosines and their exponentials are those of fp32; at tau 0.01 bf16 would be off by 0.2 and more."""
    student, teacher, _ = images()
    loss = loss_of(level, tau=0.011, tau_min=0.01)
    seen = []
    loss.heads[level].register_forward_hook(lambda head, images, embedding: seen.append(embedding.detach().clone()))
    with torch.autocast('cpu', torch.bfloat16):
        torch.manual_seed(1)
        parts = loss(student, teacher)
    torch.manual_seed(1)
    same = torch.eye(4, dtype=torch.bool)
    excluded = loss._patches([student, teacher], same)[1] if level == 'patch' else same
    expected = loss._info_nce(level, list(seen[0].chunk(2)), loss.temperatures[level](), excluded)
    assert seen[0].dtype is parts['loss'].dtype is torch.float32
    assert torch.equal(parts[level], expected)


def test_patch_level_against_numpy():
    student, teacher, _ = images()
    loss = loss_of('patch', tau=0.1)
    torch.manual_seed(1)
    (s, t), overlap = loss._patches([student, teacher], torch.eye(4, dtype=torch.bool))
    s, t = embeddings(loss, 'patch', s, t)
    c, n = s @ t.T / 0.1, len(s)
    expected = np.mean([-c[i, i] + np.log(np.exp(c[i, i]) + sum(np.exp(c[i, j]) for j in range(n) if not overlap[i, j]))
                        for i in range(n)])
    torch.manual_seed(1)
    assert loss(student, teacher)['patch'].item() == pytest.approx(expected, rel=1e-5)


def test_hard_mining_at_patch_level():
    student, teacher, _ = images()
    loss = loss_of('patch', tau=0.1, mining='hard', k_patch=2)
    torch.manual_seed(1)
    (s, t), overlap = loss._patches([student, teacher], torch.eye(4, dtype=torch.bool))
    s, t = embeddings(loss, 'patch', s, t)
    c, n, expected = s @ t.T / 0.1, len(s), 0
    for i in range(n):
        hardest = sorted((c[i, j] for j in range(n) if not overlap[i, j]), reverse=True)[:2]
        expected += -c[i, i] + np.log(np.exp(c[i, i]) + np.exp(hardest).sum())
    torch.manual_seed(1)
    assert loss(student, teacher)['patch'].item() == pytest.approx(expected / n, rel=1e-5)


@pytest.mark.parametrize('level', ['image', 'patch'])
def test_two_crops_of_one_photograph_are_no_negatives(level):
    student, teacher, _ = images()
    loss = loss_of(level, tau=0.1)
    torch.manual_seed(1)
    together = loss(student, teacher, sources=torch.tensor([5, 7, 5, 9]))[level]
    photographs = [0, 1, 0, 2]
    if level == 'patch':
        torch.manual_seed(1)
        (student, teacher), overlap = loss._patches([student, teacher], torch.eye(4, dtype=torch.bool))
        photographs, positions = np.repeat(photographs, 3), np.repeat(range(4), 3)
    else:
        overlap, positions = np.eye(4, dtype=bool), range(4)
    s, t = embeddings(loss, level, student, teacher)
    c, n, expected = s @ t.T / 0.1, len(s), 0
    for i in range(n):
        others = [j for j in range(n) if not overlap[i, j]
                  and (photographs[i] != photographs[j] or positions[i] == positions[j])]
        expected += -c[i, i] + np.log(np.exp(c[i, i]) + np.exp(c[i, others]).sum())
    assert together.item() == pytest.approx(expected / n, rel=1e-5)


@pytest.mark.parametrize('include_positive', [True, False])
def test_anchors_without_negatives_are_left_out(include_positive):
    """Of three images two are of one photograph: each has one negative; of two such images none has any."""
    student, teacher, _ = images()
    loss = loss_of(tau=0.1, include_positive=include_positive)
    student.requires_grad_()
    lonely = loss(student[:2], teacher[:2], sources=torch.tensor([3, 3]))
    lonely['loss'].backward()
    assert lonely['image'] == 0 and not student.grad.any() and student.grad.isfinite().all()
    mixed = loss(student[:3], teacher[:3], sources=torch.tensor([3, 3, 4]))['image']
    s, t = embeddings(loss, 'image', student[:3], teacher[:3])
    c = s @ t.T / 0.1
    pairs = [(0, [2]), (1, [2]), (2, [0, 1])]
    expected = [-c[i, i] + np.log((np.exp(c[i, i]) if include_positive else 0) + np.exp(c[i, others]).sum())
                for i, others in pairs]
    assert mixed.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_at_weight_0_no_random_numbers_are_used_up():
    student, teacher, _ = images()
    torch.manual_seed(4)
    loss = loss_of('hybrid', loss_weight=0)
    before = torch.get_rng_state()
    assert loss(student, teacher)['loss'] == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_hybrid_is_the_weighted_sum():
    student, teacher, _ = images()
    parts = loss_of('hybrid', image_weight=0.2, patch_weight=0.9, loss_weight=0.5)(student, teacher)
    torch.testing.assert_close(parts['loss'], 0.5 * (0.2 * parts['image'] + 0.9 * parts['patch']))


def test_a_perfect_student_is_the_minimum_over_permutations():
    student, teacher, _ = images()
    loss = loss_of()
    best = loss(teacher, teacher)['image']
    for shift in range(1, 4):
        assert best < loss(teacher.roll(shift, 0), teacher)['image']


@pytest.mark.parametrize('level', ['image', 'patch', 'hybrid'])
def test_heads_and_temperatures_learn_and_the_teacher_gets_no_gradient(level):
    student, teacher, _ = images()
    loss = loss_of(level)
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher)['loss'].backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    for name, p in loss.named_parameters():
        assert p.grad.abs().sum() > 0, name


def test_temperature_stays_in_its_bounds_whatever_the_optimizer_does():
    temperature = Temperature(0.07, 0.01, 0.5, learned=True)
    assert temperature().item() == pytest.approx(0.07)
    for sign in (1, -1):
        optimizer = torch.optim.Adam(temperature.parameters(), lr=1.0)
        for _ in range(100):
            optimizer.zero_grad()
            (sign * temperature()).backward()
            optimizer.step()
            assert 0.01 <= temperature().item() <= 0.5 and math.isfinite(temperature.theta.item())
    assert not any(p.requires_grad for p in Temperature(0.07, 0.01, 0.5, learned=False).parameters())


SOURCES = torch.tensor([1, 2, 3, 1])  # the first and the last are of one photograph, on different processes


def gradients(loss, student, teacher, degraded, sources):
    loss(student, teacher, degraded, sources)['loss'].backward()
    return [p.grad for p in loss.parameters()]


# Images that are one crop large, so that the places of the patches are the same however the batch is divided.
PATCHES = {'level': 'patch', 'negatives': 'in_batch+degraded', 'mining': 'hard', 'k_patch': 5}
SETTINGS = {'image': ({}, 24), 'patch': (PATCHES, 8)}


def process(rank, folder, setting):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    half = slice(rank * 2, rank * 2 + 2)
    options, size = SETTINGS[setting]
    student, teacher, degraded = images(size=size)
    student = student[half].requires_grad_()
    result = gradients(loss_of(tau=0.1, **options), student, teacher[half], degraded[half], SOURCES[half])
    for gradient in result:
        torch.distributed.all_reduce(gradient)
    torch.save(([g / 2 for g in result], student.grad / 2), folder / f'{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('setting', SETTINGS)
def test_two_processes_have_each_others_negatives_and_the_gradients_of_one(tmp_path, setting):
    multiprocessing.start_processes(process, (tmp_path, setting), nprocs=2, start_method='fork')
    options, size = SETTINGS[setting]
    student, teacher, degraded = images(size=size)
    student.requires_grad_()
    expected = gradients(loss_of(tau=0.1, **options), student, teacher, degraded, SOURCES)
    results = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    for rank in range(2):
        for a, b in zip(results[rank][0], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.cat([result[1] for result in results]), student.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('options, message', [
    ({'level': 'global'}, 'level is `global`. Write one of: image, patch, hybrid'),
    ({'mining': 'easy'}, 'mining is `easy`'), ({'negatives': 'queue'}, 'negatives is `queue`'),
    ({'tau': 0}, 'tau_min 0.01, tau 0, '), ({'tau': -0.1}, 'tau -0.1'), ({'tau': 0.6}, 'tau 0.6, tau_max 0.5'),
    ({'tau_min': 0}, 'tau_min 0, tau'), ({'image_weight': -1}, 'image_weight is -1. Write 0 or more'),
    ({'mining': 'hard', 'k_image': 0}, 'k_image is 0. Write 1 or more'),
    ({'patch_size': 0}, 'patch_size is 0'), ({'num_patches': -2}, 'num_patches is -2'), ({'d_emb': 2}, 'd_emb is 2'),
    ({'k_patch': 4}, 'of no use with `mining: all`'),
])
def test_choices_that_cannot_work(options, message):
    with pytest.raises(OptionError, match=message):
        loss_of(**options)


def test_batches_that_cannot_work():
    one = [x[:1] for x in images()]
    with pytest.raises(OptionError, match='no negatives in a batch of one'):
        loss_of()(one[0], one[1])
    loss_of(negatives='in_batch+degraded')(*one)
    with pytest.raises(OptionError, match='patches of 8, all of which overlap. Set batch_size_per_gpu to 2 or more'):
        loss_of('patch')(*(x[..., :15, :15] for x in one))
    assert loss_of('patch')(*one)['patch'] > 0
    with pytest.raises(OptionError, match='compares RGB images, and these have 1 channels'):
        loss_of()(*(x[:, :1] for x in images()))
    with pytest.raises(OptionError, match='patch_size is 8, larger than the crop of 6x6'):
        loss_of('patch')(*(x[..., :6, :6] for x in images()))
