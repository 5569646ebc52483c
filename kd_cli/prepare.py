"""`kd-prepare`: makes training data in BasicSR's layout. Every command can be stopped and run again.

    kd-prepare lr HR LR --scale 2 [--hr-out HR2]        bicubic LR images, and HR cropped to a multiple of the scale
    kd-prepare subimages SRC DST --size 480 --step 240  sub-images: small files are read faster than whole photos
    kd-prepare degrade HR LR --recipe real-esrgan       Real-ESRGAN's LR images, made once
    kd-prepare lmdb SRC DST.lmdb                        one LMDB instead of many small files
    kd-prepare photos DST --scale 2                     the demo's photographs, from the scikit-image package

Images are read as BasicSR reads them (8 bit, three channels) and written as PNG. An image is written under a hidden
name and then renamed, so whatever carries its final name is whole: a second run skips it and makes only what is
missing. A hidden file in each output folder records how its images were made; other settings are refused there.
"""
from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize
from PIL import Image

from kd_cli.errors import reported
from kd_utils.options import IMAGES, OptionError, upright_size

RECORD = '.kd_prepare.json'

# The photographs inside the scikit-image wheel. What is drawn, scanned or blurred (logos, pages, masks, a retina) stays
# out. No two photos of different splits show the same thing; the two motorcycles are a stereo pair.
TRAIN_PHOTOS = ('brick.png', 'camera.png', 'coins.png', 'grass.png', 'gravel.png', 'ihc.png', 'moon.png',
                'motorcycle_left.png', 'motorcycle_right.png')
HELDOUT_PHOTOS = ('astronaut.png', 'chelsea.png', 'coffee.png', 'rocket.jpg')
PHOTO_MULTIPLE = 12  # photos are cropped to a multiple of 12, so that one HR folder serves x2, x3 and x4
PHOTO_TILE, PHOTO_STEP = 96, 72  # the training loop decodes a whole file for each patch: keep the files small


def mod_crop(img: np.ndarray, multiple: int) -> np.ndarray:
    """Crops (H, W[, C]) from the top left so that both sides are multiples of `multiple`."""
    height, width = img.shape[:2]
    return img[:height - height % multiple, :width - width % multiple]


def resize(img: np.ndarray, scale: float) -> np.ndarray:
    """Resizes (H, W, C) uint8 by `scale` with BasicSR's MATLAB-like bicubic `imresize`; rounds and clips to uint8.

    BasicSR rounds once, at the end; MATLAB also rounds between the two passes. Against the published Set5 and Set14
    LR files 86 % (x2) to 90 % (x4) of the values are equal and nearly all others differ by 1.
    """
    out = imresize(img.astype(np.float32) / 255., scale)
    return np.clip((out * 255.).round(), 0, 255).astype(np.uint8)


def tile_corners(shape: Sequence[int], size: int, step: int, thresh: int = 0) -> list[tuple[int, int]]:
    """The top left corners of the tiles of an image, row by row.

    Args:
        shape: (H, W, ...) of the image.
        size: Side of a tile. A side of the image that is shorter gives one tile of that shorter side.
        step: Distance of two tiles.
        thresh: A strip of at most this many pixels at the right or the bottom gets no tile of its own.
    """
    return [(top, left) for top in _offsets(shape[0], size, step, thresh)
            for left in _offsets(shape[1], size, step, thresh)]


def _offsets(length: int, size: int, step: int, thresh: int) -> list[int]:
    offsets = list(range(0, max(length - size, 0) + 1, step))
    if length - (offsets[-1] + size) > thresh:
        offsets.append(length - size)
    return offsets


def image_paths(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name.

    Raises:
        OptionError: There is no such folder, no image in it, or two images differ only in their extension.
    """
    if not folder.is_dir():
        raise OptionError(f'There is no folder {folder}. Name the folder that holds the images.')
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith('.'))
    if not paths:
        raise OptionError(f'{folder} holds no image. Name a folder with {", ".join(IMAGES)} files.')
    stems = {p.stem: p for p in paths}
    twice = [p for p in paths if stems[p.stem] != p]
    if twice:
        raise OptionError(f'{twice[0].name} and {stems[twice[0].stem].name} would get one name in the output. '
                         'Rename or remove one of them.')
    return paths


def read_image(path: Path) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8, BGR.

    Raises:
        OptionError: It is empty, damaged or cut short.
    """
    img = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if img is None:
        raise _unreadable(path)
    if path.suffix.lower() in ('.jpg', '.jpeg'):  # of these OpenCV fills a missing half with grey
        _ask_pillow(path, lambda pil: pil.load())
    return img


def _unreadable(path: Path) -> OptionError:
    return OptionError(f'{path} cannot be read as an image. Remove or replace it.')


def _ask_pillow(path: Path, question: Callable[[Image.Image], Any]) -> Any:
    try:
        with Image.open(path) as img:
            return question(img)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # UnidentifiedImageError is an OSError
        raise _unreadable(path) from None


def write_png(path: Path, img: np.ndarray) -> None:
    """Writes a PNG under a hidden name first, so that `path` never holds half a file."""
    partial_path = path.with_name(f'.partial_{os.getpid()}_{path.name}')
    if not cv2.imwrite(str(partial_path), img, [cv2.IMWRITE_PNG_COMPRESSION, 3]):
        raise OptionError(f'{path} cannot be written. Check the folder and the space on the disk.')
    os.replace(partial_path, path)


def claim(folder: Path, **made_by: object) -> None:
    """Creates an output folder and records how its images are made.

    Raises:
        OptionError: The folder holds images that were made otherwise, or cannot be created.
    """
    make_folder(folder)
    record = folder / RECORD
    if not record.exists():
        record.write_text(json.dumps(made_by) + '\n')
    try:
        found = json.loads(record.read_text())
    except ValueError:
        raise OptionError(f'{record} is damaged. Remove {folder} and make it anew.') from None
    if found != made_by:
        raise OptionError(f'{folder} was made with {_words(found)}, not with {_words(made_by)}. '
                         'Remove that folder or name another one.')


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        OptionError: It, or one above it, is a file or not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f'There can be no folder {folder} ({error.strerror}: {error.filename}). '
                          'Name another one.') from None


def refuse_among_sources(folder: Path, src: Path) -> None:
    """Keeps what is made apart from what it is made of, or a second run would take its own images for sources.

    Raises:
        OptionError: `folder` is `src` or lies in it.
    """
    if folder.resolve().is_relative_to(src.resolve()):
        raise OptionError(f'{folder} is in {src}, the folder of the source images, or that folder itself. '
                          'Name a folder outside of it for the output.')


def _words(made_by: dict[str, object]) -> str:
    return ' '.join(f'{key}={value}' for key, value in made_by.items())


def _for_all(work: Callable[[Path], int], paths: Sequence[Path], workers: int) -> int:
    """Sums `work` over `paths`, in several processes where asked to."""
    if workers <= 1:
        return sum(map(work, paths))
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        return sum(pool.map(work, paths, chunksize=4))


def make_lr(hr_dir: Path, lr_dir: Path, scale: int, hr_out: Path | None = None, workers: int = 1) -> int:
    """Writes the bicubic LR image of every HR image, and the HR image it belongs to.

    PairedImageDataset looks for an LR file of the very same name and, in training, for HR of exactly `scale` times the
    LR size; only in validation does it crop HR itself. `hr_out` holds HR images that satisfy both.

    Returns:
        Number of files written.
    """
    paths = image_paths(hr_dir)
    for folder in (lr_dir, hr_out):
        if folder:
            refuse_among_sources(folder, hr_dir)
    if hr_out and hr_out.resolve() == lr_dir.resolve():
        raise OptionError('--hr-out is the folder of the LR images. Name another one for the cropped HR images.')
    claim(lr_dir, command='lr', scale=scale)
    if hr_out:
        claim(hr_out, command='lr --hr-out', scale=scale)
    written = _for_all(partial(_make_one_lr, lr_dir=lr_dir, scale=scale, hr_out=hr_out), paths, workers)
    if not hr_out:
        _warn_about_pairs(paths, hr_dir, scale)
    return written


def _make_one_lr(path: Path, lr_dir: Path, scale: int, hr_out: Path | None) -> int:
    targets = [folder / f'{path.stem}.png' for folder in (lr_dir, hr_out) if folder]
    if all(target.exists() for target in targets):
        return 0
    hr = mod_crop(read_image(path), scale)
    for target in targets:
        write_png(target, hr if target.parent == hr_out else resize(hr, 1 / scale))
    return len(targets)


def _warn_about_pairs(paths: Iterable[Path], hr_dir: Path, scale: int) -> None:
    odd = [p for p in paths if p.suffix != '.png' or any(side % scale for side in _size(p))]
    if odd:
        print(f'{len(odd)} images of {hr_dir} are no PNG or no multiple of {scale} in size, {odd[0].name} for one: '
              'BasicSR does not pair them for training. Add --hr-out DIR and train on that folder.', file=sys.stderr)


def _size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header, turned where OpenCV turns it."""
    width, height = _ask_pillow(path, upright_size)
    return height, width


def make_subimages(src: Path, dst: Path, size: int, step: int, thresh: int = 0, workers: int = 1) -> int:
    """Cuts every image into sub-images `NAME_s001.png`, ..., as BasicSR's extract_subimages script does.

    A trailing x2, x3, x4 or x8 of a name is dropped, so that the sub-images of DIV2K's `0001x2.png` pair with those of
    `0001.png` (with size and step divided by the scale).

    Returns:
        Number of files written.
    """
    if step < 1 or size < 1:
        raise OptionError('--size and --step are at least 1. For sub-images without overlap give both the same value.')
    paths = image_paths(src)
    refuse_among_sources(dst, src)
    claim(dst, command='subimages', size=size, step=step, thresh=thresh)
    return _for_all(partial(_cut, dst=dst, size=size, step=step, thresh=thresh), paths, workers)


def _cut(path: Path, dst: Path, size: int, step: int, thresh: int) -> int:
    stem = re.sub(r'x[2348]$', '', path.stem)
    corners = tile_corners(_size(path), size, step, thresh)
    names = [f'{stem}_s{number:03d}.png' for number in range(1, len(corners) + 1)]
    return _write_tiles(lambda: read_image(path), dst, names, corners, size)


def _write_tiles(image: Callable[[], np.ndarray], dst: Path, names: Sequence[str],
                 corners: Sequence[tuple[int, int]], size: int) -> int:
    """Writes the missing tiles of one image; makes the image only if there are any."""
    missing = [(dst / name, corner) for name, corner in zip(names, corners, strict=True) if not (dst / name).exists()]
    if missing:
        img = image()
        for target, (top, left) in missing:
            write_png(target, img[top:top + size, left:left + size])
    return len(missing)


def make_lmdb(src: Path, dst: Path) -> int:
    """Writes the images of a folder into an LMDB that `io_backend: {type: lmdb}` reads; keys are the file stems.

    Returns:
        Number of images written; 0 where the LMDB was complete already.

    Raises:
        OptionError: The name does not end in .lmdb, the LMDB holds other images, a name is not ASCII, or an image is
            damaged.
    """
    paths = image_paths(src)
    keys = [p.stem for p in paths]
    if dst.suffix != '.lmdb':
        raise OptionError(f'{dst} does not end in .lmdb, which BasicSR asks for. Write {dst}.lmdb instead.')
    strange = [key for key in keys if not key.isascii()]
    if strange:
        raise OptionError(f'BasicSR writes LMDB keys in ASCII, and {strange[0]} is not. Rename that file.')
    if dst.exists():
        return _check_lmdb(dst, keys)
    make_folder(dst.parent)
    for path in paths:  # BasicSR would not say which one is damaged
        read_image(path)
    unfinished = dst.with_name(f'.partial_{dst.name}')
    shutil.rmtree(unfinished, ignore_errors=True)
    # BasicSR's own estimate of the size takes the first image for typical
    space = 2**24 + 2 * sum(height * width * 3 for height, width in map(_size, paths))
    make_lmdb_from_imgs(str(src), str(unfinished), [p.name for p in paths], keys, map_size=space)
    unfinished.rename(dst)
    return len(keys)


def _check_lmdb(dst: Path, keys: Sequence[str]) -> int:
    if not dst.is_dir():
        raise OptionError(f'{dst} is a file, and an LMDB is a folder. Remove it or name another one.')
    meta = dst / 'meta_info.txt'
    found = [line.split()[0].rsplit('.', 1)[0] for line in meta.read_text().splitlines()] if meta.exists() else []
    if found != list(keys):
        raise OptionError(f'{dst} exists and holds other images ({len(found)} instead of {len(keys)}). '
                         'Remove it or name another one.')
    return 0


def photos_folder() -> Path:
    """Where scikit-image keeps its photographs, found without importing it."""
    spec = importlib.util.find_spec('skimage')
    if spec is None or spec.origin is None:
        raise OptionError('The photographs come inside scikit-image, which is missing. Run: pip install scikit-image')
    return Path(spec.origin).parent / 'data'


def make_photos(dst: Path, scale: int, src: Path | None = None) -> int:
    """Writes the demo's training tiles and held-out photos under `dst`; see the lists at the top of this file.

    `train/{HR,LRbicX2}` hold tiles cut from whole photos and their whole LR images, so that no tile has a border of its
    own; `heldout/{HR,LRbicX2,bicubicX2}` hold whole photos, the last one the LR image enlarged again.

    Returns:
        Number of files written.
    """
    src = src or photos_folder()
    missing = [name for name in TRAIN_PHOTOS + HELDOUT_PHOTOS if not (src / name).exists()]
    if missing:
        raise OptionError(f'{src} lacks {", ".join(missing)}. Install a newer one: pip install -U scikit-image')
    for folder in ('train/HR', f'train/LRbicX{scale}', 'heldout/HR', f'heldout/LRbicX{scale}',
                   f'heldout/bicubicX{scale}'):
        claim(dst / folder, command='photos', part=folder, tile=PHOTO_TILE, step=PHOTO_STEP)
    return (sum(_photo_tiles(src / name, dst / 'train', scale) for name in TRAIN_PHOTOS)
            + sum(_photo(src / name, dst / 'heldout', scale) for name in HELDOUT_PHOTOS))


def _photo_tiles(path: Path, dst: Path, scale: int) -> int:
    shape = [side - side % PHOTO_MULTIPLE for side in _size(path)]
    corners = tile_corners(shape, PHOTO_TILE, PHOTO_STEP)
    names = [f'{path.stem}_s{number:03d}.png' for number in range(1, len(corners) + 1)]
    lr_corners = [(top // scale, left // scale) for top, left in corners]
    hr = partial(_read_photo, path)
    return (_write_tiles(hr, dst / 'HR', names, corners, PHOTO_TILE)
            + _write_tiles(lambda: resize(hr(), 1 / scale), dst / f'LRbicX{scale}', names, lr_corners,
                           PHOTO_TILE // scale))


def _photo(path: Path, dst: Path, scale: int) -> int:
    whole = [(0, 0)]
    name, size = [f'{path.stem}.png'], max(_size(path))
    hr = partial(_read_photo, path)

    def lr() -> np.ndarray:
        return resize(hr(), 1 / scale)

    return (_write_tiles(hr, dst / 'HR', name, whole, size)
            + _write_tiles(lr, dst / f'LRbicX{scale}', name, whole, size)
            + _write_tiles(lambda: resize(lr(), scale), dst / f'bicubicX{scale}', name, whole, size))


def _read_photo(path: Path) -> np.ndarray:
    return mod_crop(read_image(path), PHOTO_MULTIPLE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='kd-prepare', description='Makes training data in the layout BasicSR reads.')
    commands = parser.add_subparsers(dest='command', required=True)
    lr = commands.add_parser('lr', help='bicubic LR images of a folder of HR images')
    lr.add_argument('src', type=Path, metavar='HR_DIR')
    lr.add_argument('dst', type=Path, metavar='LR_DIR')
    lr.add_argument('--scale', type=int, required=True, choices=(2, 3, 4, 8, 16, 32, 64))
    lr.add_argument('--hr-out', type=Path, help='also write HR, cropped to a multiple of the scale, as PNG')
    sub = commands.add_parser('subimages', help='cut images into overlapping sub-images')
    sub.add_argument('src', type=Path, metavar='SRC')
    sub.add_argument('dst', type=Path, metavar='DST')
    sub.add_argument('--size', type=int, default=480)
    sub.add_argument('--step', type=int, default=240)
    sub.add_argument('--thresh', type=int, default=0, help='largest strip at the border that is left out')
    degrade = commands.add_parser('degrade', help="Real-ESRGAN's LR images of a folder of HR images, made once")
    degrade.add_argument('src', type=Path, metavar='HR_DIR')
    degrade.add_argument('dst', type=Path, metavar='LR_DIR')
    degrade.add_argument('--recipe', required=True, help='`real-esrgan`, or an option file with RealESRGANDataset')
    degrade.add_argument('--scale', type=int, choices=(1, 2, 3, 4, 8), help="default: the recipe's")
    degrade.add_argument('--copies', type=int, default=1, help='LR images of each HR image (default: 1)')
    degrade.add_argument('--seed', type=int, default=0)
    degrade.add_argument('--hr-out', type=Path, help='also HR images of the sizes and names of LR, linked or written')
    for command in (lr, sub, degrade):
        command.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    lmdb = commands.add_parser('lmdb', help='put the images of a folder into an LMDB')
    lmdb.add_argument('src', type=Path, metavar='SRC')
    lmdb.add_argument('dst', type=Path, metavar='DST.lmdb')
    photos = commands.add_parser('photos', help="the demo's photographs, from the scikit-image package")
    photos.add_argument('dst', type=Path, metavar='DST')
    photos.add_argument('--scale', type=int, default=2, choices=(2, 3, 4))
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.command == 'lr':
        return make_lr(args.src, args.dst, args.scale, args.hr_out, args.workers)
    if args.command == 'subimages':
        return make_subimages(args.src, args.dst, args.size, args.step, args.thresh, args.workers)
    if args.command == 'degrade':
        degrade = importlib.import_module('kd_cli.degrade')  # only now: the other commands start without torch
        return degrade.make_degraded(args.src, args.dst, args.recipe, args.scale, args.copies, args.seed, args.hr_out,
                                     args.workers)
    if args.command == 'lmdb':
        return make_lmdb(args.src, args.dst)
    return make_photos(args.dst, args.scale)


@reported
def main(argv: Sequence[str] | None = None) -> None:
    """The console script; `argv` is the command line without the program's name."""
    args = _parser().parse_args(argv)
    written = _run(args)
    print(f'{args.dst}: {written} files written.' if written else f'{args.dst}: complete already.')


if __name__ == '__main__':
    main()
