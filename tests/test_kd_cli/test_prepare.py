"""kd-prepare: what it writes, that it can be run again, and what it refuses."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.matlab_functions import imresize
from PIL import Image

from kd_cli import prepare
from kd_utils.options import OptionError


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 1.5).round().astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Three photographs: one even in size, one odd, one JPEG."""
    folder = tmp_path / 'hr'
    folder.mkdir()
    cv2.imwrite(str(folder / 'even.png'), image(40, 48))
    cv2.imwrite(str(folder / 'odd.png'), image(41, 51, 1))
    cv2.imwrite(str(folder / 'photo.jpg'), image(48, 48, 2))
    return folder


def stamps(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.startswith('.')}


def run(*arguments) -> None:
    prepare.main([str(argument) for argument in arguments])


def test_lr_is_basicsrs_imresize_of_the_cropped_image(photos, tmp_path):
    run('lr', photos, tmp_path / 'lr', '--scale', 2)
    hr = cv2.imread(str(photos / 'odd.png'))[:40, :50]
    expected = np.clip((imresize(hr.astype(np.float32) / 255, 0.5) * 255).round(), 0, 255)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'lr' / 'odd.png')), expected)


def test_lr_and_hr_out_make_pairs_that_train(photos, tmp_path):
    run('lr', photos, tmp_path / 'lr', '--scale', 2, '--hr-out', tmp_path / 'hr2')
    data = PairedImageDataset({'phase': 'train', 'dataroot_gt': str(tmp_path / 'hr2'), 'scale': 2, 'gt_size': 32,
                               'dataroot_lq': str(tmp_path / 'lr'), 'io_backend': {'type': 'disk'},
                               'use_hflip': True, 'use_rot': True})
    assert [(tuple(item['lq'].shape), tuple(item['gt'].shape)) for item in (data[0], data[1], data[2])] == \
        [((3, 16, 16), (3, 32, 32))] * 3


def test_lr_warns_of_images_that_do_not_pair(photos, tmp_path, capsys):
    run('lr', photos, tmp_path / 'lr', '--scale', 2)
    assert '2 images' in capsys.readouterr().err


def test_lr_leaves_a_finished_folder_and_completes_an_unfinished_one(photos, tmp_path, capsys):
    lr = tmp_path / 'lr'
    run('lr', photos, lr, '--scale', 2)
    before = stamps(lr)
    run('lr', photos, lr, '--scale', 2)
    assert stamps(lr) == before
    assert 'complete already' in capsys.readouterr().out
    (lr / 'even.png').unlink()
    run('lr', photos, lr, '--scale', 2)
    after = stamps(lr)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == ['even.png']


def test_an_interrupted_write_leaves_no_image(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.os, 'replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare.make_lr(photos, tmp_path / 'lr', 2)
    assert not stamps(tmp_path / 'lr')


def test_another_scale_is_refused_in_the_same_folder(photos, tmp_path, capsys):
    run('lr', photos, tmp_path / 'lr', '--scale', 2)
    with pytest.raises(SystemExit) as stop:
        run('lr', photos, tmp_path / 'lr', '--scale', 4)
    assert stop.value.code == 2
    assert 'was made with command=lr scale=2' in capsys.readouterr().err


@pytest.mark.parametrize('content, message', [
    ({}, 'holds no image'),
    ({'a.png': 16, 'a.bmp': 16}, 'would get one name'),
])
def test_bad_folders_are_refused(tmp_path, content, message):
    folder = tmp_path / 'in'
    folder.mkdir()
    for name, side in content.items():
        cv2.imwrite(str(folder / name), image(side, side))
    with pytest.raises(OptionError, match=message):
        prepare.make_lr(folder, tmp_path / 'lr', 2)
    with pytest.raises(OptionError, match='There is no folder'):
        prepare.make_lr(tmp_path / 'nowhere', tmp_path / 'lr', 2)


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'broken.png').write_bytes(b'not an image')
    with pytest.raises(OptionError, match='broken.png cannot be read'):
        prepare.make_lr(tmp_path / 'in', tmp_path / 'lr', 2)


COMMANDS = [['lr', '--scale', 2], ['subimages', '--size', 16, '--step', 16], ['lmdb']]


def refused(capsys, *arguments) -> str:
    """The one message that the command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count('error:') == 1 and 'Traceback' not in error
    return error


@pytest.mark.parametrize('command', COMMANDS[:2], ids=lambda command: command[0])
@pytest.mark.parametrize('dst', ['hr', 'hr/out', 'hr/../other/../hr/a/b'])
def test_output_among_the_sources_is_refused(photos, tmp_path, capsys, command, dst):
    assert 'the folder of the source images' in refused(capsys, command[0], photos, tmp_path / dst, *command[1:])
    assert sorted(path.name for path in photos.iterdir()) == ['even.png', 'odd.png', 'photo.jpg']


def test_output_through_a_link_is_refused_too(photos, tmp_path, capsys):
    (tmp_path / 'link').symlink_to(photos)
    assert 'the source images' in refused(capsys, 'subimages', photos, tmp_path / 'link', '--size', 16, '--step', 16)


def test_hr_out_is_a_folder_of_its_own(photos, tmp_path, capsys):
    for folder, message in (('hr/cropped', 'the source images'), ('lr', 'the folder of the LR images')):
        assert message in refused(capsys, 'lr', photos, tmp_path / 'lr', '--scale', 2, '--hr-out', tmp_path / folder)
    assert not (tmp_path / 'lr').exists()


def test_output_next_to_the_sources_or_above_them_is_fine(photos, tmp_path):
    run('lr', photos, tmp_path / 'hr_x2', '--scale', 2)
    run('lr', photos, tmp_path, '--scale', 2)
    assert stamps(tmp_path / 'hr_x2').keys() == {'even.png', 'odd.png', 'photo.png'}


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize('name, kept', [('odd.png', 0), ('odd.png', 100), ('odd.png', 3000), ('photo.jpg', 0),
                                        ('photo.jpg', 100), ('photo.jpg', 1000)])
def test_a_damaged_image_is_named_by_every_command(photos, tmp_path, capsys, command, name, kept):
    path = photos / name
    assert path.stat().st_size > kept
    path.write_bytes(path.read_bytes()[:kept])
    assert f'{path} cannot be read' in refused(capsys, command[0], photos, tmp_path / 'out.lmdb', *command[1:])
    if command == ['lmdb']:
        assert not (tmp_path / 'out.lmdb').exists()


def test_a_damaged_image_is_named_by_several_workers(photos, tmp_path):
    (photos / 'odd.png').write_bytes(b'')
    with pytest.raises(OptionError, match='odd.png cannot be read'):
        prepare.make_subimages(photos, tmp_path / 'out', 16, 16, workers=2)


def test_a_damaged_image_is_named_after_its_lr_image_was_made(photos, tmp_path, capsys):
    run('lr', photos, tmp_path / 'lr', '--scale', 2)
    (photos / 'odd.png').write_bytes(b'')
    assert 'odd.png cannot be read' in refused(capsys, 'lr', photos, tmp_path / 'lr', '--scale', 2)


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize('dst', ['file.lmdb', 'file.lmdb/out.lmdb'])
def test_a_file_in_place_of_the_output_is_named(photos, tmp_path, capsys, command, dst):
    (tmp_path / 'file.lmdb').write_text('mine')
    error = refused(capsys, command[0], photos, tmp_path / dst, *command[1:])
    assert str(tmp_path / 'file.lmdb') in error and 'another one' in error
    assert (tmp_path / 'file.lmdb').read_text() == 'mine'


def test_a_damaged_record_is_named(photos, tmp_path):
    (tmp_path / 'lr').mkdir()
    (tmp_path / 'lr' / prepare.RECORD).write_text('{"comm')
    with pytest.raises(OptionError, match=f'{prepare.RECORD} is damaged'):
        prepare.make_lr(photos, tmp_path / 'lr', 2)


def test_a_photo_taken_on_its_side_is_cut_upright(tmp_path):
    (tmp_path / 'in').mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.fromarray(image(32, 64)).save(tmp_path / 'in' / 'a.jpg', exif=exif)
    assert prepare.make_subimages(tmp_path / 'in', tmp_path / 'out', 32, 32) == 2
    assert {cv2.imread(str(path)).shape for path in (tmp_path / 'out').glob('*.png')} == {(32, 32, 3)}


@pytest.mark.parametrize('shape, thresh, corners', [
    ((32, 32), 0, [(0, 0)]),
    ((32, 40), 0, [(0, 0), (0, 8)]),
    ((32, 40), 8, [(0, 0)]),
    ((48, 48), 0, [(0, 0), (0, 16), (16, 0), (16, 16)]),
    ((20, 50), 0, [(0, 0), (0, 16), (0, 18)]),
])
def test_tiles_cover_the_image(shape, thresh, corners):
    assert prepare.tile_corners(shape, 32, 16, thresh) == corners


def test_subimages_of_hr_and_lr_pair(tmp_path):
    hr = image(64, 80)
    for folder, name, img in (('hr', '0001', hr), ('lr', '0001x2', prepare.resize(hr, 0.5))):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / f'{name}.png'), img)
    run('subimages', tmp_path / 'hr', tmp_path / 'hr_sub', '--size', 32, '--step', 24)
    run('subimages', tmp_path / 'lr', tmp_path / 'lr_sub', '--size', 16, '--step', 12)
    names = sorted(stamps(tmp_path / 'hr_sub'))
    assert names == sorted(stamps(tmp_path / 'lr_sub'))
    assert names[0] == '0001_s001.png' and len(names) == 9
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'hr_sub' / '0001_s005.png')), hr[24:56, 24:56])
    assert prepare.make_subimages(tmp_path / 'hr', tmp_path / 'hr_sub', 32, 24) == 0


def test_workers_write_the_same(photos, tmp_path):
    prepare.make_subimages(photos, tmp_path / 'one', 16, 16)
    prepare.make_subimages(photos, tmp_path / 'two', 16, 16, workers=2)
    for path in (tmp_path / 'one').glob('*.png'):
        assert path.read_bytes() == (tmp_path / 'two' / path.name).read_bytes()


def test_lmdb_is_read_by_basicsr(photos, tmp_path):
    prepare.make_lr(photos, tmp_path / 'lr', 2, tmp_path / 'hr2')
    for folder in ('lr', 'hr2'):
        assert prepare.make_lmdb(tmp_path / folder, tmp_path / f'{folder}.lmdb') == 3
        assert prepare.make_lmdb(tmp_path / folder, tmp_path / f'{folder}.lmdb') == 0
    data = PairedImageDataset({'phase': 'val', 'dataroot_gt': str(tmp_path / 'hr2.lmdb'), 'scale': 2,
                               'dataroot_lq': str(tmp_path / 'lr.lmdb'), 'io_backend': {'type': 'lmdb'}})
    expected = cv2.imread(str(tmp_path / 'hr2' / 'even.png'))[..., ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal((data[0]['gt'].numpy() * 255).round(), expected)


def test_lmdb_refusals(photos, tmp_path):
    with pytest.raises(OptionError, match='does not end in .lmdb'):
        prepare.make_lmdb(photos, tmp_path / 'data')
    prepare.make_lmdb(photos, tmp_path / 'data.lmdb')
    (photos / 'even.png').unlink()
    with pytest.raises(OptionError, match='holds other images'):
        prepare.make_lmdb(photos, tmp_path / 'data.lmdb')


def test_photos_come_in_two_splits_without_common_content(tmp_path, monkeypatch):
    src = tmp_path / 'src'
    src.mkdir()
    for i, name in enumerate(prepare.TRAIN_PHOTOS + prepare.HELDOUT_PHOTOS):
        cv2.imwrite(str(src / name), image(125, 99, i))
    written = prepare.make_photos(tmp_path / 'demo', 2, src)
    train, heldout = tmp_path / 'demo' / 'train', tmp_path / 'demo' / 'heldout'
    assert written == 2 * 2 * len(prepare.TRAIN_PHOTOS) + 3 * len(prepare.HELDOUT_PHOTOS)
    assert stamps(train / 'HR').keys() == stamps(train / 'LRbicX2').keys()
    # a tile of the LR image, not the LR image of a tile: its inner border is that of the whole photograph
    lr = prepare.resize(cv2.imread(str(src / 'brick.png'))[:120, :96], 0.5)
    np.testing.assert_array_equal(cv2.imread(str(train / 'LRbicX2' / 'brick_s002.png')), lr[12:, :48])
    held = cv2.imread(str(heldout / 'LRbicX2' / 'coffee.png'))
    np.testing.assert_array_equal(cv2.imread(str(heldout / 'bicubicX2' / 'coffee.png')), prepare.resize(held, 2))
    assert prepare.make_photos(tmp_path / 'demo', 2, src) == 0


def test_the_photos_are_in_the_installed_scikit_image():
    folder = prepare.photos_folder()
    assert not [name for name in prepare.TRAIN_PHOTOS + prepare.HELDOUT_PHOTOS if not (folder / name).exists()]
    assert not set(prepare.TRAIN_PHOTOS) & set(prepare.HELDOUT_PHOTOS)
