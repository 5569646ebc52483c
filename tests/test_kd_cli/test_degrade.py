"""kd-prepare degrade: pairs that train, the same on any number of processes, and what is refused."""
from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
import yaml
from basicsr.data.paired_image_dataset import PairedImageDataset

from kd_cli import degrade, prepare
from kd_utils.options import OptionError, load_yaml
from tests.test_kd_cli.test_prepare import image, run, stamps


@pytest.fixture
def photos(tmp_path):
    """Four photographs: one even in size, one odd, a JPEG, and one in another folder."""
    for name, size, seed in (('hr/even.png', (96, 88), 0), ('hr/odd.png', (97, 93), 1), ('hr/photo.jpg', (96, 96), 2),
                             ('other/even.png', (96, 88), 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), image(*size, seed))
    return tmp_path / 'hr'


def degraded(photos, name, *arguments):
    """The names and pixels of the LR images that a command makes."""
    folder = photos.parent / name
    run('degrade', photos, folder, '--recipe', 'real-esrgan', *arguments)
    return {path.name: cv2.imread(str(path)) for path in sorted(folder.iterdir()) if not path.name.startswith('.')}


def equal(one, two):
    return {name: np.array_equal(one[name], two[name]) for name in one}


def test_pairs_train(photos, tmp_path):
    """Cropped, converted and linked HR images, one for each copy, of four times the size."""
    lr = degraded(photos, 'lr', '--copies', 2, '--hr-out', tmp_path / 'hr2')
    data = PairedImageDataset({'phase': 'train', 'dataroot_gt': str(tmp_path / 'hr2'), 'scale': 4, 'gt_size': 64,
                               'dataroot_lq': str(tmp_path / 'lr'), 'io_backend': {'type': 'disk'},
                               'use_hflip': False, 'use_rot': False})
    assert len(data) == 6
    for item in map(data.__getitem__, range(6)):
        assert item['lq'].shape == (3, 16, 16) and item['gt'].shape == (3, 64, 64)
    assert lr['odd_c2.png'].shape == (24, 23, 3)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'hr2/odd_c2.png')),
                                  cv2.imread(str(photos / 'odd.png'))[:96, :92])
    assert (tmp_path / 'hr2/photo_c1.png').read_bytes().startswith(b'\x89PNG')
    assert os.path.samefile(tmp_path / 'hr2/odd_c1.png', tmp_path / 'hr2/odd_c2.png')
    assert os.path.samefile(tmp_path / 'hr2/even_c2.png', photos / 'even.png')


def test_lr_shows_the_same_thing_degraded(photos):
    """The colours at their places, and noise."""
    hr = np.zeros((96, 88, 3), np.uint8)
    hr[:, :44], hr[:, 44:] = (200, 100, 30), (60, 120, 220)
    cv2.imwrite(str(photos / 'even.png'), hr)
    lr = degraded(photos, 'lr', '--scale', 2)['even.png'].astype(np.float32)
    assert lr.shape == (48, 44, 3)
    np.testing.assert_allclose(lr[:, :18].mean((0, 1)), (200, 100, 30), atol=12)
    np.testing.assert_allclose(lr[:, 26:].mean((0, 1)), (60, 120, 220), atol=12)
    assert lr[:, :18].std((0, 1)).min() > 1


def test_copies_and_seeds_differ_and_the_same_ones_do_not(photos, tmp_path):
    hr = ('--hr-out', tmp_path / 'hr2')
    one, again = (degraded(photos, name, '--copies', 2, *hr) for name in ('one', 'again'))
    assert all(equal(one, again).values()) and not np.array_equal(one['even_c1.png'], one['even_c2.png'])
    assert not any(equal(one, degraded(photos, 'seed', '--copies', 2, '--seed', 1, *hr)).values())
    alone = degraded(photos, 'alone')
    np.testing.assert_array_equal(alone['even.png'], one['even_c1.png'])


def test_one_image_under_two_names_is_degraded_twice(photos):
    (photos / 'twin.png').write_bytes((photos / 'even.png').read_bytes())
    lr = degraded(photos, 'lr')
    assert not np.array_equal(lr['twin.png'], lr['even.png'])


def test_other_images_and_processes_do_not_matter(photos, tmp_path):
    one = degraded(photos, 'one')
    two = degraded(photos, 'two', '--workers', 2)
    (photos / 'odd.png').unlink()
    fewer = degraded(photos, 'fewer')
    assert all(equal(one, two).values()) and all(equal(fewer, one).values()) and len(fewer) == 2


def test_it_is_completed_and_not_made_twice(photos, tmp_path, capsys):
    lr, hr = tmp_path / 'lr', tmp_path / 'hr2'
    whole = degraded(photos, 'lr', '--copies', 2, '--hr-out', hr)
    before = {**stamps(lr), **stamps(hr)}
    (lr / 'odd_c2.png').unlink()
    (hr / 'photo_c1.png').unlink()
    assert all(equal(whole, degraded(photos, 'lr', '--copies', 2, '--hr-out', hr)).values())
    assert '2 files written' in capsys.readouterr().out
    after = {**stamps(lr), **stamps(hr)}
    assert after.keys() == before.keys()
    degraded(photos, 'lr', '--copies', 2, '--hr-out', hr)
    assert {**stamps(lr), **stamps(hr)} == after and 'complete already' in capsys.readouterr().out


def test_where_nothing_can_be_linked_it_is_copied(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(degrade.os, 'link', lambda *_: (_ for _ in ()).throw(OSError('no links here')))
    degraded(photos, 'lr', '--copies', 2, '--hr-out', tmp_path / 'hr2')
    assert not os.path.samefile(tmp_path / 'hr2/even_c1.png', photos / 'even.png')
    assert (tmp_path / 'hr2/even_c1.png').read_bytes() == (photos / 'even.png').read_bytes()


def test_an_interrupted_write_leaves_no_image(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.os, 'replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        degrade.make_degraded(photos, tmp_path / 'lr', 'real-esrgan')
    assert not stamps(tmp_path / 'lr')


def test_a_recipe_of_ones_own(photos, tmp_path):
    """RealESRNet's `gt_usm: false`, and no blur at all."""
    opt = load_yaml(degrade.RECIPES['real-esrgan'])
    for key in ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm'):
        del opt[key]
    (tmp_path / 'own.yml').write_text(yaml.safe_dump({**opt, 'gt_usm': False}))
    own, shipped = (degrade._read_recipe(recipe, None) for recipe in (str(tmp_path / 'own.yml'), 'real-esrgan'))
    assert own == {**shipped, 'gt_usm': False}
    run('degrade', photos, tmp_path / 'own', '--recipe', tmp_path / 'own.yml')
    assert not np.array_equal(cv2.imread(str(tmp_path / 'own/even.png')), degraded(photos, 'lr')['even.png'])


@pytest.mark.parametrize('arguments, message', [
    ({'copies': 2}, 'Add --hr-out DIR, which gets an HR image for each'),
    ({'copies': 0}, '--copies is 0. Write 1 or more.'),
    ({'recipe': 'real-esrgn'}, 'There is no option file `real-esrgn`'),
    ({'recipe': 'train/KD/alone_compact16_x4.yml'}, 'degrades nothing: its training set is a PairedImageDataset'),
    ({'scale': 8}, ''),
    ({'hr_out': 'lr'}, '--hr-out is the folder of the LR images'),
    ({'lr_dir': 'hr'}, 'Name a folder outside of it for the output'),
])
def test_refusals(photos, tmp_path, arguments, message):
    arguments = {name: tmp_path / value if name in ('hr_out', 'lr_dir') else value for name, value in arguments.items()}
    if 'scale' in arguments:
        cv2.imwrite(str(photos / 'small.png'), image(87, 100))
        message = 'small.png is 100x87, and this degradation needs 88 pixels a side .1 of 4 images have less.'
    with pytest.raises(OptionError, match=message):
        degrade.make_degraded(photos, **{'lr_dir': tmp_path / 'lr', 'recipe': 'real-esrgan', **arguments})
    assert not (tmp_path / 'lr').exists()


def test_another_seed_is_refused_in_the_same_folder(photos, tmp_path):
    degraded(photos, 'lr')
    with pytest.raises(OptionError, match='seed=0, not with .*seed=1'):
        degrade.make_degraded(photos, tmp_path / 'lr', 'real-esrgan', seed=1)


def test_another_content_of_a_recipe_is_refused_in_the_same_folder(photos, tmp_path):
    opt = load_yaml(degrade.RECIPES['real-esrgan'])
    for jpeg in ([30, 95], [20, 95]):
        (tmp_path / 'own.yml').write_text(yaml.safe_dump({**opt, 'jpeg_range': jpeg}))
        if jpeg == [30, 95]:
            run('degrade', photos, tmp_path / 'lr', '--recipe', tmp_path / 'own.yml')
    with pytest.raises(OptionError, match='was made with'):
        degrade.make_degraded(photos, tmp_path / 'lr', str(tmp_path / 'own.yml'))


def test_the_smallest_images_are_degraded(photos):
    """Whatever is drawn for them."""
    opt = degrade._read_recipe('real-esrgan', None)
    side = degrade.Synthesis(opt, degrade.CPU).smallest
    path = photos / 'small.png'
    cv2.imwrite(str(path), image(side, side))
    for seed in range(40):
        degrade.seed_everything(seed)
        assert degrade._degraded(path, opt).shape == (side // 4, side // 4, 3)
