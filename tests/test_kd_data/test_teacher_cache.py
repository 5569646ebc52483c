"""The teacher's crop belongs to those of GT and LQ; what is stored is what the teacher gives for the whole image."""
import json
import logging
import os
import random
import shutil

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils import FileClient
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


def filled(dataset, folder, teacher=enlarge, **options):
    cache = TeacherCache(dataset, folder, **options)
    cache.claim({'weights': 'abc'})
    for _ in cache.fill(cache.missing(), teacher):
        pass
    return cache


def names(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith('.'))


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


# ---------------------------------------------------------------------------------------------------- feature maps


def with_maps(lq):
    """Besides the image, differences of neighbours to the right and below, on the grid of LR and on a finer one."""
    def differences(x):
        right, below = F.pad(x, (0, 1)), F.pad(x, (0, 0, 0, 1))
        return torch.cat([right[..., 1:] - x, 2 * (below[..., 1:, :] - x)], 1)

    return {'image': enlarge(lq), 'body.0': differences(lq), 'fine': differences(enlarge(lq))}


@pytest.mark.parametrize('changes', [{}, {'use_rot': False}, {'use_hflip': False},
                                     {'use_hflip': False, 'use_rot': False}])
def test_feature_maps_are_those_of_the_turned_image(tmp_path, images, changes):
    """Which are not the turned maps of the image: a difference to the right is none to the left."""
    cache = filled(paired(images, **changes), tmp_path / 'cache', with_maps, layers=('body.0', 'fine'), dtype='fp32')
    turns = len(cache._turns())
    assert len(names(tmp_path / 'cache')) == 1 + 6 * (1 + 2 * turns)
    for draw in range(60):
        item = SeededDraws(cache, seed=1)[draw % 6, draw]
        assert torch.equal(item['teacher'], enlarge(item['lq'][None])[0])
        expected = with_maps(item['lq'][None])
        for layer in ('body.0', 'fine'):
            maps, of_crop = item[f'teacher:{layer}'], expected[layer][0]
            # at the border the whole image goes on, and the crop does not
            assert maps.shape == of_crop.shape and torch.equal(maps[:, :-1, :-1], of_crop[:, :-1, :-1])


def test_images_of_other_sides_are_turned_too(tmp_path, own_images):
    for folder, scale in (('hr', 2), ('lr', 1)):
        for i in range(6):
            path = str(own_images / folder / f'{i}.png')
            cv2.imwrite(path, cv2.imread(path)[:, :22 * scale])
    cache = filled(paired(own_images), tmp_path / 'cache', with_maps, layers=('fine', ), dtype='fp32')
    for draw in range(60):
        item = SeededDraws(cache, seed=1)[draw % 6, draw]
        assert torch.equal(item['teacher:fine'][:, :-1, :-1], with_maps(item['lq'][None])['fine'][0, :, :-1, :-1])


def test_layers_are_added_to_a_cache_of_images(tmp_path, images):
    filled(paired(images), tmp_path / 'cache')
    before = {name: os.stat(tmp_path / 'cache' / name).st_size for name in names(tmp_path / 'cache')}
    cache = TeacherCache(paired(images), tmp_path / 'cache', layers=('body.0', ))
    assert cache.missing() == list(range(6))
    filled(paired(images), tmp_path / 'cache', with_maps, layers=('body.0', ))
    assert before.items() <= {name: os.stat(tmp_path / 'cache' / name).st_size
                              for name in names(tmp_path / 'cache')}.items()
    assert TeacherCache(paired(images), tmp_path / 'cache').missing() == []
    lost = next((tmp_path / 'cache').glob('*_hvt_body.0.npy'))
    lost.unlink()
    assert len(cache.missing()) == 1


@pytest.mark.parametrize('scale', [0.5, 1.5, (1, 2)])
def test_maps_that_no_crop_belongs_to_are_refused(tmp_path, images, scale):
    def teacher(lq):
        return {'image': enlarge(lq), 'deep': F.interpolate(lq, scale_factor=scale)}

    with pytest.raises(OptionError, match='maps of `deep` are .* for an image of 32x32, so that a crop'):
        filled(paired(images), tmp_path / 'cache', teacher, layers=('deep', ))


def test_caches_of_two_teachers_keep_their_maps_apart(tmp_path, images):
    first = filled(paired(images), tmp_path / 'a', with_maps, layers=('body.0', ))
    both = filled(first, tmp_path / 'b', lambda lq: {'image': 1 - enlarge(lq), 'body.0': -with_maps(lq)['body.0']},
                  name='teacher.b', layers=('body.0', ))
    item = both[0]
    assert torch.equal(item['teacher.b:body.0'], -item['teacher:body.0'])
    assert item['teacher:body.0'].abs().max() > 0


# -------------------------------------------------------------------------------------------------------- precision


def beyond(lq):
    """A teacher whose image leaves [0, 1] a little and is not on the grid of 8 bits."""
    return enlarge(lq) * 1.2 - 0.1


@pytest.mark.parametrize('dtype, expected, size', [
    ('uint8', lambda x: (x.clamp(0, 1) * 255).round() / 255, 1), ('fp16', lambda x: x.half().float(), 2),
    ('fp32', lambda x: x, 4)])
def test_precision(tmp_path, images, dtype, expected, size):
    cache = filled(paired(images), tmp_path / 'cache', beyond, dtype=dtype)
    for draw in range(12):
        item = SeededDraws(cache, seed=1)[draw % 6, draw]
        torch.testing.assert_close(item['teacher'], expected(beyond(item['lq'][None]))[0], rtol=0, atol=1e-7)
    assert os.path.getsize(cache.files[0]) == pytest.approx(size * 3 * 64 * 64, abs=128)


def test_feature_maps_are_in_half_precision_beside_images_in_8_bits(tmp_path, images):
    cache = filled(paired(images), tmp_path / 'cache', with_maps, layers=('body.0', ), dtype='uint8')
    maps = cache[0]['teacher:body.0']
    assert maps.min() < 0 and torch.equal(maps, maps.half().float())


def test_another_precision_is_refused_and_so_are_8_bits_of_other_ranges(tmp_path, images):
    filled(paired(images), tmp_path / 'cache')
    with pytest.raises(OptionError, match='made with other dtype'):
        filled(paired(images), tmp_path / 'cache', dtype='fp32')
    with pytest.raises(OptionError, match='uint8` is for images in .0, 1., and `datasets.train.mean`'):
        TeacherCache(paired(images, mean=[0.4] * 3, std=[0.5] * 3), tmp_path / 'other', dtype='uint8')


# ------------------------------------------------------------------------------------------------------------- space


def test_the_space_is_said_before_it_is_taken(tmp_path, images, caplog, monkeypatch):
    logger = logging.getLogger('basicsr')
    monkeypatch.setattr(logger, 'propagate', True)
    logger.setLevel(logging.INFO)
    cache = TeacherCache(paired(images), tmp_path / 'cache', layers=('body.0', ))
    cache.claim({})
    filling = cache.fill(cache.missing(), with_maps)
    next(filling)
    needed = 6 * (3 * 64 * 64 + 8 * 6 * 32 * 32) * 2
    assert f'6 images will take about {needed / 2**30:.2f} GiB' in caplog.text
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(0, 0, needed * 5 // 6 - 1))
    missing = cache.missing()
    with pytest.raises(OptionError, match='5 images take about .* GiB left. Name another folder'):
        next(cache.fill(missing, with_maps))
    assert cache.missing() == missing == [1, 2, 3, 4, 5]


def test_a_full_disk_is_said(tmp_path, images, monkeypatch):
    cache = TeacherCache(paired(images), tmp_path / 'cache')
    cache.claim({})
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OptionError, match='cannot be written .No space left on device.. What is there is kept'):
        next(cache.fill(cache.missing(), enlarge))


# ------------------------------------------------------------------------------------------------------------ hashes


@pytest.fixture
def read(monkeypatch):
    """The LR images whose bytes are read."""
    paths, get = [], FileClient.get
    monkeypatch.setattr(FileClient, 'get', lambda self, path, *key: (paths.append(path), get(self, path, *key))[1])
    return paths


def test_unchanged_images_are_not_read_again(tmp_path, own_images, read):
    filled(paired(own_images), tmp_path / 'cache')
    read.clear()
    cache = TeacherCache(paired(own_images), tmp_path / 'cache')
    assert read == [] and cache.missing() == []
    os.utime(own_images / 'lr' / '3.png')
    assert TeacherCache(paired(own_images), tmp_path / 'cache').missing() == []
    assert read == [str(own_images / 'lr' / '3.png')]


def test_replaced_and_new_images_are_read(tmp_path, own_images, read):
    filled(paired(own_images), tmp_path / 'cache')
    shutil.copy2(own_images / 'lr' / '1.png', own_images / 'lr' / '2.png')  # with its date
    for folder in ('hr', 'lr'):
        shutil.copy2(own_images / folder / '4.png', own_images / folder / 'new.png')
    read.clear()
    cache = TeacherCache(paired(own_images), tmp_path / 'cache')
    assert sorted(map(os.path.basename, read)) == ['2.png', 'new.png']
    assert cache.missing() == [], 'both are images of which the teacher has made its own'


@pytest.mark.parametrize('content', [b'', b'PK', None])
def test_a_damaged_index_is_made_anew(tmp_path, images, read, content):
    filled(paired(images), tmp_path / 'cache')
    index = tmp_path / 'cache' / '.hashes.npz'
    whole = index.read_bytes()
    index.write_bytes(whole[:len(whole) // 2] if content is None else content)
    read.clear()
    cache = filled(paired(images), tmp_path / 'cache')
    assert len(read) == 6 and cache.missing() == []
    read.clear()
    TeacherCache(paired(images), tmp_path / 'cache')
    assert read == []


def test_an_unchanged_lmdb_is_not_read_again(tmp_path, images, read):
    from kd_cli.prepare import main as prepare
    for folder in ('hr', 'lr'):
        prepare(['lmdb', str(images / folder), str(tmp_path / f'{folder}.lmdb')])
    dataset = {'dataroot_gt': str(tmp_path / 'hr.lmdb'), 'dataroot_lq': str(tmp_path / 'lr.lmdb'),
               'io_backend': {'type': 'lmdb'}}
    filled(paired(images, **dataset), tmp_path / 'cache')
    read.clear()
    assert TeacherCache(paired(images, **dataset), tmp_path / 'cache').missing() == [] and read == []
    os.utime(tmp_path / 'lr.lmdb' / 'data.mdb')
    assert TeacherCache(paired(images, **dataset), tmp_path / 'cache').missing() == [] and len(read) == 6


def test_an_image_that_is_none_is_refused_by_name(tmp_path, own_images):
    (own_images / 'lr' / '3.png').write_bytes(b'no image')
    with pytest.raises(OptionError, match='3.png` cannot be read as an image'):
        TeacherCache(paired(own_images), tmp_path / 'cache')
