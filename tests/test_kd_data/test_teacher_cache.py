"""The teacher's crop belongs to those of GT and LQ; what is stored is what the teacher gives for the whole image."""
import json
import os
import random
import shutil

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from torch.nn import functional as F

from kd_data.draws import SeededDraws
from kd_data.teacher_cache import TeacherCache
from kd_utils.options import OptionError
from tests.support import train_yaml


def enlarge(lq):
    """A teacher that commutes with crops, flips and turns, so that any crop of its image is known from the LR crop."""
    return F.interpolate(lq, scale_factor=2, mode='nearest')


def fits(item):
    """Whether the item's teacher image is what `enlarge` gives for its LR crop, rounded."""
    return torch.equal(item['teacher'], enlarge(item['lq'][None])[0].half().float())


def gradient(lq):
    """A teacher that knows where in the image it is."""
    height, width = 2 * lq.shape[-2], 2 * lq.shape[-1]
    return (torch.arange(height * width, dtype=torch.float32) / 4096).view(1, 1, height, width).repeat(1, 3, 1, 1)


def paired(images, **changes):
    opt = {**train_yaml(images)['datasets']['train'], 'phase': 'train', 'scale': 2}
    return build_dataset({**opt, **changes})


def filled(dataset, folder, teacher=enlarge):
    cache = TeacherCache(dataset, folder)
    cache.claim({'weights': 'abc'})
    for _ in cache.fill(cache.missing(), teacher):
        pass
    return cache


def names(folder):
    return sorted(os.listdir(folder))


@pytest.fixture
def own_images(tmp_path, images):
    """Images that a test may change."""
    shutil.copytree(images, tmp_path / 'images')
    return tmp_path / 'images'


@pytest.mark.parametrize('changes', [{}, {'color': 'y'}, {'mean': [0.4] * 3, 'std': [0.5] * 3}, {'use_rot': False},
                                     {'use_hflip': False}, {'gt_size': 64}],
                         ids=['plain', 'y', 'normalized', 'no_rot', 'no_hflip', 'whole'])
def test_the_crop_is_that_of_lq_and_gt_and_the_draws_are_those_without_a_cache(tmp_path, images, changes):
    plain = SeededDraws(paired(images, **changes), seed=1)
    cached = SeededDraws(filled(paired(images, **changes), tmp_path / 'cache'), seed=1)
    for draw in range(40):
        expected, state = plain[draw % 6, draw], random.getstate()
        item = cached[draw % 6, draw]
        assert random.getstate() == state
        assert all(torch.equal(item[key], expected[key]) for key in ('lq', 'gt'))
        assert item['teacher'].shape == item['gt'].shape and item['teacher'].dtype == torch.float32
        assert fits(item)


def test_the_values_are_those_of_the_whole_image(tmp_path, images):
    """A teacher that sees where it is: the crop of its whole image, not its image of the crop."""
    cache = filled(paired(images, use_hflip=False, use_rot=False), tmp_path / 'cache', gradient)
    for draw in range(10):
        random.seed(draw)
        item = cache[draw % 6]
        whole = cv2.imread(item['lq_path']).astype(np.float32) / 255
        lq = item['lq'].permute(1, 2, 0).flip(2).numpy()
        top, left = next((y, x) for y in range(17) for x in range(17)
                         if np.allclose(whole[y:y + 16, x:x + 16], lq, atol=1e-6))
        expected = gradient(torch.empty(1, 3, 32, 32))[0, :, 2 * top:2 * top + 32, 2 * left:2 * left + 32]
        # half precision rounds values up to 1 by 2^-12 at most
        assert (item['teacher'] - expected).abs().max() <= 2**-12 and not torch.equal(item['teacher'], expected)


@pytest.mark.parametrize('workers', [0, 2])
def test_lmdb(tmp_path, images, workers):
    from kd_cli.prepare import main as prepare
    for folder in ('hr', 'lr'):
        prepare(['lmdb', str(images / folder), str(tmp_path / f'{folder}.lmdb')])
    dataset = paired(images, dataroot_gt=str(tmp_path / 'hr.lmdb'), dataroot_lq=str(tmp_path / 'lr.lmdb'),
                     io_backend={'type': 'lmdb'})
    for batch in torch.utils.data.DataLoader(filled(dataset, tmp_path / 'cache'), 2, num_workers=workers):
        assert torch.equal(batch['teacher'], enlarge(batch['lq']).half().float())


def test_a_list_and_names_of_its_own(tmp_path, own_images):
    for i in range(6):
        (own_images / 'lr' / f'{i}.png').rename(own_images / 'lr' / f'{i}x2.png')
    (tmp_path / 'list.txt').write_text('4.png (64,64,3)\n1.png (64,64,3)\n')
    cache = filled(paired(own_images, filename_tmpl='{}x2', meta_info_file=str(tmp_path / 'list.txt')),
                   tmp_path / 'cache')
    assert [os.path.basename(cache[i]['lq_path']) for i in range(2)] == ['4x2.png', '1x2.png']
    assert fits(cache[0]) and fits(cache[1])


def test_a_changed_image_is_made_anew_and_an_unchanged_one_is_not(tmp_path, own_images):
    filled(paired(own_images), tmp_path / 'cache')
    path = own_images / 'lr' / '2.png'
    changed = cv2.imread(str(path))
    changed[5, 5] ^= 1
    before = os.stat(path)
    cv2.imwrite(str(path), changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # not even the date tells
    os.utime(own_images / 'lr' / '3.png')
    cache = TeacherCache(paired(own_images), tmp_path / 'cache')
    index, = cache.missing()
    assert cache.dataset.paths[index]['lq_path'] == str(path)
    with pytest.raises(FileNotFoundError):
        cache[index]
    filled(paired(own_images), tmp_path / 'cache')
    assert cache.missing() == [] and fits(cache[index])


def test_renamed_images_are_found(tmp_path, own_images):
    filled(paired(own_images), tmp_path / 'cache')
    for folder in ('hr', 'lr'):
        (own_images / folder / '0.png').rename(own_images / folder / 'z.png')
    cache = TeacherCache(paired(own_images), tmp_path / 'cache')
    assert cache.missing() == [] and all(fits(cache[i]) for i in range(6))


def test_a_stopped_filling_goes_on_with_what_is_missing(tmp_path, images, monkeypatch):
    cache, asked = TeacherCache(paired(images), tmp_path / 'cache'), []

    def teacher(lq):
        asked.append(lq)
        return enlarge(lq)

    def killed(*_):
        raise KeyboardInterrupt

    cache.claim({'weights': 'abc'})
    filling = cache.fill(cache.missing(), teacher)
    next(filling)
    next(filling)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', killed)
        with pytest.raises(KeyboardInterrupt):
            next(filling)
    assert len(asked) == 3 and len(list((tmp_path / 'cache').glob('.*.npy'))) == 1  # written, but not whole for sure
    assert cache.missing() == [2, 3, 4, 5]
    cache = filled(paired(images), tmp_path / 'cache', teacher)
    assert len(asked) == 7 and cache.missing() == []


@pytest.mark.parametrize('left', [0, 1, 60, -1])
def test_a_damaged_image_is_made_anew(tmp_path, images, left):
    cache = filled(paired(images), tmp_path / 'cache')
    content = cache.files[2].read_bytes()
    cache.files[2].write_bytes(content[:left])
    assert cache.missing() == [2]
    filled(paired(images), tmp_path / 'cache')
    assert cache.files[2].read_bytes() == content


def test_a_damaged_record_is_refused(tmp_path, images):
    filled(paired(images), tmp_path / 'cache')
    (tmp_path / 'cache/teacher.json').write_text('{"weights": "ab')
    with pytest.raises(OptionError, match='teacher.json` is damaged. Remove'):
        filled(paired(images), tmp_path / 'cache')


def test_processes_share_the_work(tmp_path):
    cache = TeacherCache.__new__(TeacherCache)
    cache.dataset, cache.files = range(5), [tmp_path / 'absent.npy'] * 5
    assert [cache.missing(rank, 2) for rank in range(2)] == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize('teacher, changes, key', [
    ({'weights': 'abd'}, {}, 'weights'),
    ({'weights': 'abc'}, {'color': 'y'}, 'color'),
    ({'weights': 'abc'}, {'mean': [0.4] * 3, 'std': [0.5] * 3}, 'mean, std'),
])
def test_a_cache_of_something_else_is_refused(tmp_path, images, teacher, changes, key):
    filled(paired(images), tmp_path / 'cache')
    before = names(tmp_path / 'cache')
    with pytest.raises(OptionError, match=f'made with other {key}. Name another folder, or remove this one'):
        TeacherCache(paired(images, **changes), tmp_path / 'cache').claim(teacher)
    assert names(tmp_path / 'cache') == before


def test_a_folder_of_other_files_is_refused(tmp_path, images):
    cache = filled(paired(images), tmp_path / 'cache')
    (tmp_path / 'cache' / 'teacher.json').unlink()
    with pytest.raises(OptionError, match='no teacher.json that says which teacher'):
        cache.claim({'weights': 'abc'})
    (tmp_path / 'file').touch()
    with pytest.raises(OptionError, match='cannot be made or written'):
        TeacherCache(paired(images), tmp_path / 'file').claim({'weights': 'abc'})


def test_the_record_says_what_made_the_images(tmp_path, images):
    filled(paired(images), tmp_path / 'cache')
    record = json.loads((tmp_path / 'cache' / 'teacher.json').read_text())
    assert record == {'weights': 'abc', 'color': None, 'mean': None, 'std': None}
    assert len(names(tmp_path / 'cache')) == 7
