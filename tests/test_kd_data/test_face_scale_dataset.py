"""Faces at random scales: sizes, ranges, rounding, condition, draws, and where they are read from."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils.matlab_functions import imresize

from kd_cli.prepare import make_lmdb
from kd_data.draws import SeededDraws
from kd_utils.options import OptionError
from tests.support import face_set


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    """Three faces-like images of 32x32."""
    folder = tmp_path_factory.mktemp('faces')
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.float32)
        cv2.imwrite(str(folder / f'{i}.png'), cv2.GaussianBlur(image, (0, 0), 1))
    return folder


def dataset(folder, **changes):
    return build_dataset({**face_set(folder), 'phase': 'train', **changes})


def levels(images):
    """[-1, 1] -> 8 bits."""
    return (images + 1) / 2 * 255


@pytest.mark.parametrize('scale', [1, 2, 4, 8])
def test_a_face_is_reduced_and_enlarged_in_8_bits_each(faces, scale):
    item = dataset(faces, downsample_list=[scale], use_hflip=False)[1]
    face = cv2.cvtColor(cv2.imread(str(faces / '1.png')), cv2.COLOR_BGR2RGB)
    assert item['gt_path'] == item['lq_path'] == str(faces / '1.png')
    assert item['gt'].shape == item['lq'].shape == (3, 32, 32) and item['gt'].dtype == torch.float32
    torch.testing.assert_close(levels(item['gt']).permute(1, 2, 0).numpy(), face.astype(np.float32), rtol=0, atol=1e-4)
    reduced = (imresize(face / 255, 1 / scale).clip(0, 1) * 255).round() / 255
    enlarged = (imresize(reduced, scale).clip(0, 1) * 255).round()
    torch.testing.assert_close(levels(item['lq']).permute(1, 2, 0).numpy(), enlarged, rtol=0, atol=1e-4)
    torch.testing.assert_close(levels(item['lq']), levels(item['lq']).round(), rtol=0, atol=1e-4)
    assert torch.equal(item['scale'], torch.tensor([float(scale)]))
    assert scale == 1 or item['lq'].std() < item['gt'].std()


def test_scales_are_drawn_as_often_as_they_are_written(faces):
    draws = SeededDraws(dataset(faces, downsample_list=[8, 8, 8, 2]), seed=0)
    scales = [int(draws[0, i]['scale']) for i in range(400)]
    assert set(scales) == {2, 8} and 270 <= scales.count(8) <= 330


def test_a_draw_is_a_function_of_seed_and_number(faces):
    first, second = (SeededDraws(dataset(faces, downsample_list=[1, 2, 4]), seed=0) for _ in range(2))
    for _ in range(2):
        torch.rand(3)  # whatever else was drawn
        for number in (3, 1, 2):
            a, b = first[1, number], second[1, number]
            assert all(torch.equal(a[name], b[name]) for name in ('lq', 'gt', 'scale'))
    drawn = [first[1, number] for number in range(20)]
    flipped = {torch.equal(item['gt'], drawn[0]['gt']) for item in drawn}
    assert flipped == {True, False} and len({int(item['scale']) for item in drawn}) == 3
    mirrored = next(item['gt'] for item in drawn if not torch.equal(item['gt'], drawn[0]['gt']))
    assert torch.equal(mirrored.flip(2), drawn[0]['gt'])


def test_folder_list_and_lmdb_hold_the_same_faces(faces, tmp_path):
    make_lmdb(faces, tmp_path / 'faces.lmdb')
    (tmp_path / 'list.txt').write_text('2.png\n0.png (32,32,3)\n')
    plain = {'use_hflip': False, 'downsample_list': [2]}
    folder = dataset(faces, **plain)
    lmdb = dataset(tmp_path / 'faces.lmdb', io_backend={'type': 'lmdb'}, **plain)
    listed = dataset(faces, meta_info=str(tmp_path / 'list.txt'), **plain)
    assert (len(folder), len(lmdb), len(listed)) == (3, 3, 2)
    for mine, theirs in ((folder[1], lmdb[1]), (folder[2], listed[0]), (folder[0], listed[1])):
        assert torch.equal(mine['gt'], theirs['gt']) and torch.equal(mine['lq'], theirs['lq'])


@pytest.mark.parametrize('change, message', [
    ({'downsample_list': [4, 12]}, '12 does not divide `gt_size`, 32. Write powers of two.'),
    ({'downsample_list': [64]}, '64 does not divide `gt_size`, 32'),
    ({'io_backend': {'type': 'lmdb'}, 'meta_info': 'list.txt'}, '`datasets.train.meta_info` chooses from a folder'),
    ({'phase': 'val'}, 'is for training only. Use PairedImageDataset with LR faces.'),
])
def test_what_cannot_work_is_refused(faces, change, message):
    with pytest.raises(OptionError, match=message):
        dataset(faces, **change)


def test_a_face_of_another_size_is_refused(faces):
    with pytest.raises(OptionError, match=r'`datasets.train.gt_size` is 16, but `.*0.png` is 32x32. Make faces'):
        dataset(faces, gt_size=16, downsample_list=[2])[0]
