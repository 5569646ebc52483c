"""The files that options name: whether they are there, and fit together."""
from __future__ import annotations

import pytest
from PIL import Image

from kd_cli import prepare
from kd_utils.options import check_files, images
from tests.test_kd_utils.option_files import REMOVE, change, file_refusal, save_image


def test_files_that_are_there(files):
    check_files(files)


@pytest.mark.parametrize(('key', 'value', 'fragments'), [
    ('datasets.train.dataroot_gt', 'gt2', ['`datasets.train.dataroot_gt`: there is no `gt2`.', 'KD_DATA']),
    ('datasets.train.dataroot_gt', 'gt/a.png', ['`gt/a.png` is a file.']),
    ('datasets.train.dataroot_gt', '.', ['there are no images in `.`']),
    ('datasets.train.dataroot_lq', 'other', ['2 images in dataroot_gt, 1 in dataroot_lq', '`a.png` has no partner']),
    ('datasets.train.filename_tmpl', '{}', ["`a.png` has no partner `a.png`. If that is `ax4.png`, write "
                                            "`filename_tmpl: '{}x4'`."]),
    ('datasets.train.meta_info_file', 'list.txt', ['`datasets.train.meta_info_file`: there is no file `list.txt`.']),
    ('datasets.train.io_backend', {'type': 'lmdb'}, ['`gt` is no LMDB of images']),
    ('teacher.path.pretrain_network_g', 'weights/RealESRGAN_x4plus.pth',
     ['`teacher.path.pretrain_network_g`: `weights/RealESRGAN_x4plus.pth` is missing.',
      'Download RealESRGAN_x4plus.pth from https://github.com/xinntao/Real-ESRGAN/releases', 'into `weights/`']),
    ('teacher.path.pretrain_network_g', 'weights/ent.pth', ['`weights/ent.pth` is missing.', 'mean `net.pth`?']),
    ('path.pretrain_network_g', 'weights', ['`path.pretrain_network_g`: `weights` is a folder.']),
    ('train.perceptual_opt', {'type': 'TestOurWeightsLoss', 'weights': 'vgg.pth'},
     ['`train.perceptual_opt.weights`: `vgg.pth` is missing.']),
    ('path.resume_state', 'weights/5.state', ['`path.resume_state`: `weights/5.state` is no training state.']),
    ('path.resume_state', 'weights/net.pth', ['`weights/net.pth` is no training state.']),
])
def test_files_that_are_missing(files, key, value, fragments):
    message = file_refusal(change(files, key, value))
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(('name', 'page'), [
    ('RealESRGAN_x4plus.pth', 'xinntao/Real-ESRGAN'), ('RealESRGAN_x4plus_netD.pth', 'xinntao/Real-ESRGAN'),
    ('RealESRGAN_x2plus.pth', 'xinntao/Real-ESRGAN'), ('realesr-general-x4v3.pth', 'xinntao/Real-ESRGAN'),
    ('realesr-animevideov3.pth', 'xinntao/Real-ESRGAN'), ('EDSR_Lx4_f256b32_DIV2K_official.pth', 'ModelZoo.md'),
    ('RCAN_BIX4-official.pth', 'ModelZoo.md'), ('ESRGAN_SRx4_DF2KOST_official.pth', 'ModelZoo.md'),
    ('MSRResNet_x4_f64b16_DIV2K.pth', 'ModelZoo.md'),
    ('001_classicalSR_DIV2K_s48w8_SwinIR-M_x2.pth', 'JingyunLiang/SwinIR'),
])
def test_public_teachers_have_a_download_page(files, name, page):
    message = file_refusal(change(files, 'teacher.path.pretrain_network_g', f'experiments/pretrained_models/{name}'))
    assert f'Download {name} from https://github.com/' in message and page in message
    assert 'put it into `experiments/pretrained_models/`' in message


def test_files_of_one_kind_only(files, tmp_path):
    (tmp_path / 'lq/cx4.png').write_bytes(b'')
    assert '`cx4.png` has no partner. Add its GT image' in file_refusal(files)
    (tmp_path / 'lq/cx4.png').unlink()
    (tmp_path / 'gt/notes.txt').write_bytes(b'')
    assert '`notes.txt` in `gt` is no image.' in file_refusal(files)
    (tmp_path / 'gt/notes.txt').unlink()
    (tmp_path / 'lq/bx4.png').rename(tmp_path / 'lq/bx4.jpg')
    assert 'There is `bx4.jpg`: save both as .png.' in file_refusal(files)
    (tmp_path / 'lq/bx4.jpg').rename(tmp_path / 'lq/z.png')
    assert 'set `filename_tmpl`' in file_refusal(files)


def test_empty_folders_and_lists(files, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert 'the folder `empty` is empty' in file_refusal(change(files, 'datasets.train.dataroot_gt', 'empty'))


@pytest.mark.parametrize(('text', 'fragment'), [
    ('', '`list.txt` lists no images'),
    ('c.png (480,480,3)\n', '`datasets.train.meta_info_file`: `c.png`, of line 1, is not in `gt`.'),
    ('a.png (480,480,3)\nb.png\nc.png\n', '`c.png`, of line 3, is not in `gt`.'),
    ('d.png\n', '`dx4.png`, of line 1, is not in `lq`.'),
    ('a.png\n\nb.png\n', 'line 2 of `list.txt` is blank.'),
    ('a.png\n\n', 'line 2 of `list.txt` is blank.'),
    ('a.png (132,128,3)\nb.png\n', None),
])
def test_lists(files, tmp_path, text, fragment):
    opt = change(files, 'datasets.train.meta_info_file', 'list.txt')
    del opt['datasets']['val']
    save_image(tmp_path / 'gt/d.png', (128, 128))
    (tmp_path / 'list.txt').write_text(text)
    if fragment:
        assert fragment in file_refusal(opt)
    else:
        check_files(opt)


def test_lists_of_pairs(files, tmp_path):
    opt = change(files, 'datasets.train.type', 'RealESRGANPairedDataset')
    opt['datasets']['train']['meta_info'] = 'list.txt'
    (tmp_path / 'list.txt').write_text('a.png, ax4.png\nb.png, bx4.png\n')
    check_files(opt)
    (tmp_path / 'list.txt').write_text('a.png, ax4.png\nb.png bx4.png\n')
    assert 'line 2 of `list.txt` is no pair. Write `GT_NAME, LQ_NAME`.' in file_refusal(opt)
    (tmp_path / 'list.txt').write_text('a.png, ax4.png\nb.png, ax4.png\n')
    assert '`gt/b.png` is 128x140, and `lq/ax4.png` is 33x32' in file_refusal(opt)


@pytest.mark.parametrize('listed', [False, True])
def test_sizes(files, tmp_path, listed):
    if listed:
        (tmp_path / 'list.txt').write_text('a.png\nb.png\n')
        files['datasets']['train']['meta_info_file'] = 'list.txt'
    save_image(tmp_path / 'gt/b.png', (129, 140))
    assert file_refusal(files) == (
        '`datasets.train`: `gt/b.png` is 129x140, and `lq/bx4.png` is 32x35, which does not fit the scale 4. Make '
        'pairs that do: `kd-prepare lr gt LR --scale 4 --hr-out HR`.')
    validation = change(files, 'datasets.train', REMOVE)
    check_files(validation)  # BasicSR crops what is over
    for name, size, fits in (('gt', (128, 139), False), ('gt', (128, 174), True), ('lq', (33, 35), False),
                             ('lq', (16, 16), False), ('lq', (32, 35), True)):
        save_image(tmp_path / ('gt/b.png' if name == 'gt' else 'lq/bx4.png'), size)
        if fits:
            check_files(validation)
        else:
            assert '`datasets.val`: `gt/b.png` is ' in file_refusal(validation)


def test_crops_larger_than_an_image(files, tmp_path):
    save_image(tmp_path / 'gt/b.png', (124, 128))
    save_image(tmp_path / 'lq/bx4.png', (31, 32))
    assert file_refusal(files) == ('`datasets.train.gt_size` is 128, but `gt/b.png` is only 124x128. '
                                   'Write 124 or less, or take such images out.')


@pytest.mark.parametrize(('content', 'fragment'), [(b'', 'is empty'), (b'words', 'cannot be read as an image')])
def test_images_that_cannot_be_read(files, tmp_path, content, fragment):
    (tmp_path / 'lq/bx4.png').write_bytes(content)
    assert f'`datasets.train`: `lq/bx4.png` {fragment}.' in file_refusal(files)
    files['datasets'] = {'val': {'type': 'SingleImageDataset', 'dataroot_lq': 'lq', 'io_backend': {'type': 'disk'}}}
    assert f'`datasets.val`: `lq/bx4.png` {fragment}.' in file_refusal(files)


def test_photos_are_turned_as_opencv_turns_them(files, tmp_path):
    import cv2
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / 'turned.jpg', (40, 20), exif=exif)
    assert images.image_size('key', str(tmp_path / 'turned.jpg')) == (20, 40)
    assert cv2.imread(str(tmp_path / 'turned.jpg')).shape == (40, 20, 3)


def test_photos_of_several_pictures_are_turned_too(tmp_path):
    """MPO, as telephones write it under the name of a JPEG."""
    import cv2
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new('RGB', (40, 20))
    picture.save(tmp_path / 'turned.jpg', format='MPO', save_all=True, append_images=[picture], exif=exif)
    assert Image.open(tmp_path / 'turned.jpg').format == 'MPO'
    assert images.image_size('key', str(tmp_path / 'turned.jpg')) == (20, 40)
    assert prepare._size(tmp_path / 'turned.jpg') == (40, 20) == cv2.imread(str(tmp_path / 'turned.jpg')).shape[:2]


def test_lmdb(lmdb_files):
    check_files(lmdb_files)
    check_files(change(lmdb_files, 'datasets.train.dataroot_gt', 'gt.lmdb/'))
    message = file_refusal(change(lmdb_files, 'datasets.train.io_backend', {'type': 'disk'}))
    assert '`io_backend: {type: lmdb}`' in message


def test_an_lmdb_of_another_name(lmdb_files, tmp_path):
    (tmp_path / 'lq.lmdb').rename(tmp_path / 'lq_lmdb')
    message = file_refusal(change(lmdb_files, 'datasets.train.dataroot_lq', 'lq_lmdb'))
    assert message.startswith('`datasets.train.dataroot_lq`: BasicSR takes an LMDB only if its name ends in .lmdb')


@pytest.mark.parametrize(('gt', 'lq', 'fragment'), [
    ('a.png\n', 'a.png\nb.png\n', '`lq.lmdb` has the image `b`, which the other LMDB lacks.'),
    ('a.png\nb.png\n', 'a.png\n', '`gt.lmdb` has the image `b`, which the other LMDB lacks.'),
    ('a.png (128,200,3) 1\n', 'a.png (32,50,3) 1\n', None),
    ('a.png (128,200,3) 1\n', 'a.png (64,100,3) 1\n', '`gt.lmdb/a` is 200x128, and `lq.lmdb/a` is 100x64'),
    ('a.png (120,120,3) 1\n', 'a.png (30,30,3) 1\n', '`datasets.train.gt_size` is 128, but `gt.lmdb/a` is only'),
])
def test_lmdbs_that_differ(lmdb_files, tmp_path, gt, lq, fragment):
    (tmp_path / 'gt.lmdb/meta_info.txt').write_text(gt)
    (tmp_path / 'lq.lmdb/meta_info.txt').write_text(lq)
    if fragment:
        assert fragment in file_refusal(lmdb_files)
    else:
        check_files(lmdb_files)


def test_a_folder_that_is_not_ffhqs(files, tmp_path):
    files['datasets']['train'] = {'type': 'FFHQDataset', 'dataroot_gt': 'other', 'io_backend': {'type': 'disk'}}
    assert 'reads 00000000.png to 00069999.png' in file_refusal(files)
    assert '`kd-prepare lmdb other other.lmdb`' in file_refusal(files)
    for name in ('00000000.png', '00069999.png'):
        save_image(tmp_path / 'other' / name, (8, 8))
    check_files(files)


def test_weights_of_foreign_losses_are_no_files(files):
    check_files(change(files, 'train.pixel_opt', {'type': 'TestForeignWeightsLoss', 'weights': 'vgg'}))
    check_files(change(files, 'train.pixel_opt', {'type': 'TestForeignWeightsLoss', 'weights': [1, 2]}))


def test_resuming_replaces_the_students_weights(files, tmp_path):
    (tmp_path / 'weights/5.state').write_bytes(b'')
    opt = change(files, 'path.pretrain_network_g', 'gone.pth')
    assert '`gone.pth` is missing' in file_refusal(opt)
    opt = change(opt, 'path.resume_state', 'weights/5.state')
    check_files(opt)
    assert '`gone.pth` is missing' in file_refusal({**opt, 'is_train': False}), 'a test resumes nothing'


def test_a_test_asks_no_teacher(files):
    opt = change(files, 'teacher.path.pretrain_network_g', 'gone.pth')
    opt['is_train'] = False
    check_files(opt)


def test_a_foreign_datasets_roots_must_exist(files):
    files['datasets']['val'] = {'type': 'TestForeignDataset', 'dataroot_gt': 'gt/a.png', 'dataroots': ['nowhere']}
    check_files(files)
    assert 'there is no `nowhere`' in file_refusal(change(files, 'datasets.val.dataroot_gt', 'nowhere'))
