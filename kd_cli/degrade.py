"""`kd-prepare degrade`: Real-ESRGAN's LR images made once, by the code that makes them while training.

What becomes of an image depends on its name, the number of the copy, the seed and the recipe alone: not on the other
images, nor on how many processes share the work.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils import img2tensor, tensor2img

import kd_models  # noqa: F401  the registries, by which a recipe is checked
from kd_cli.prepare import (
    _for_all,
    _size,
    _warn_about_pairs,
    claim,
    image_paths,
    mod_crop,
    read_image,
    refuse_among_sources,
    write_png,
)
from kd_data.draws import seed_everything
from kd_models.distillation_model import DistillationModel
from kd_models.synthesis import SeparableUSM, Synthesis
from kd_utils.options import OptionError, check_options, parse_options

RECIPES = {'real-esrgan': 'train/SDGAN/sdgan_realesrgan_x4.yml'}
CPU = torch.device('cpu')


def make_degraded(hr_dir: Path, lr_dir: Path, recipe: str, scale: int | None = None, copies: int = 1, seed: int = 0,
                  hr_out: Path | None = None, workers: int = 1) -> int:
    """Writes degraded LR images of every HR image, and the HR images that they belong to.

    Args:
        hr_dir: Folder of HR images.
        lr_dir: Folder of the LR images: NAME.png, or NAME_c1.png ... where there are several copies.
        recipe: One of `RECIPES`, or the option file of a training with `RealESRGANDataset`.
        scale: How many times smaller LR is; the recipe's by default.
        copies: How many LR images each HR image gets.
        seed: Of the random numbers.
        hr_out: Folder of HR images with the names and sizes that the LR images ask for; links where possible.
        workers: Number of processes.

    Returns:
        Number of files written.

    Raises:
        OptionError: A recipe that is none, images that are too small for it, or folders that do not fit.
    """
    paths = image_paths(hr_dir)
    opt = _read_recipe(recipe, scale)
    if copies < 1:
        raise OptionError(f'--copies is {copies}. Write 1 or more.')
    if copies > 1 and hr_out is None:
        raise OptionError(f'With --copies {copies} an HR image belongs to LR images of {copies} names. Add --hr-out '
                          'DIR, which gets an HR image for each of them, linked where possible.')
    _refuse_small(paths, Synthesis(opt, CPU).smallest)
    for folder in filter(None, (lr_dir, hr_out)):
        refuse_among_sources(folder, hr_dir)
    if hr_out and hr_out.resolve() == lr_dir.resolve():
        raise OptionError('--hr-out is the folder of the LR images. Name another one for the HR images.')
    claim(lr_dir, command='degrade', recipe=recipe, settings=_fingerprint(opt), scale=opt['scale'], copies=copies,
          seed=seed)
    if hr_out:
        claim(hr_out, command='degrade --hr-out', scale=opt['scale'], copies=copies)
    work = partial(_degrade_one, opt=opt, lr_dir=lr_dir, hr_out=hr_out, copies=copies, seed=seed)
    written = _for_all(work, paths, workers)
    if not hr_out:
        _warn_about_pairs(paths, hr_dir, opt['scale'])
    return written


def _read_recipe(recipe: str, scale: int | None) -> dict[str, Any]:
    """Real-ESRGAN's keys, `scale`, and those of the training set that make its kernels as `kernels`."""
    opt, _ = parse_options(['-opt', RECIPES.get(recipe, recipe)], '.')
    check_options(opt, DistillationModel.losses)
    train_set = opt['datasets'].get('train') or {}
    if train_set.get('type') != 'RealESRGANDataset':
        raise OptionError(f'--recipe {recipe} degrades nothing: its training set is a {train_set.get("type")}. Write '
                          f'{" or ".join(RECIPES)}, or the option file of a training with RealESRGANDataset.')
    kept = {key: value for key, value in opt.items()
            if key.rstrip('2').endswith(('_prob', '_range')) or key == 'gt_usm'}
    kernels = {key: value for key, value in train_set.items()
               if key.startswith(('blur_', 'kernel_', 'beta', 'sinc_', 'final_'))}
    return {**kept, 'scale': scale or opt['scale'], 'kernels': kernels}


def _fingerprint(opt: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(opt, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _refuse_small(paths: list[Path], smallest: int) -> None:
    small = [path for path in paths if min(_size(path)) < smallest]
    if small:
        height, width = _size(small[0])
        raise OptionError(f'{small[0]} is {width}x{height}, and this degradation needs {smallest} pixels a side '
                          f'({len(small)} of {len(paths)} images have less). Take such images out of the folder.')


def _degrade_one(path: Path, opt: dict[str, Any], lr_dir: Path, hr_out: Path | None, copies: int, seed: int) -> int:
    names = [f'{path.stem}.png'] if copies == 1 else [f'{path.stem}_c{copy}.png' for copy in range(1, copies + 1)]
    written = 0
    for copy, name in enumerate(names, 1):
        if hr_out and not (hr_out / name).exists():
            _place_hr(path, hr_out / name, hr_out / names[0], opt['scale'])
            written += 1
        if not (lr_dir / name).exists():
            torch.set_num_threads(1)  # sums depend on it, in their last bits
            seed_everything(seed, copy, zlib.crc32(path.name.encode()))
            write_png(lr_dir / name, _degraded(path, opt))
            written += 1
    return written


def _place_hr(source: Path, target: Path, first: Path, scale: int) -> None:
    """Links the source where it serves as it is, else the first copy, which is written."""
    serves = source.suffix == '.png' and not any(side % scale for side in _size(source))
    if not serves and target == first:
        write_png(target, mod_crop(read_image(source), scale))
        return
    original = source if serves else first
    try:
        os.link(original, target)
    except OSError:  # another disk, or one that knows no links
        partial_path = target.with_name(f'.partial_{os.getpid()}_{target.name}')
        shutil.copyfile(original, partial_path)
        os.replace(partial_path, target)


def _degraded(path: Path, opt: dict[str, Any]) -> np.ndarray:
    """(H / scale, W / scale, 3) uint8, BGR; a function of the image and the state of the random numbers."""
    dataset = RealESRGANDataset({**opt['kernels'], 'dataroot_gt': '', 'meta_info': os.devnull, 'use_hflip': False,
                                 'use_rot': False, 'io_backend': {'type': 'disk'}})
    dataset.paths = [str(path)]
    item = dataset[0]  # for its kernels; its image is a crop
    hr = mod_crop(read_image(path), opt['scale'])
    images = img2tensor(hr.astype(np.float32) / 255)[None]
    if opt.get('gt_usm', True):
        images = SeparableUSM()(images)
    kernels = item['kernel1'][None], item['kernel2'][None], item['sinc_kernel'][None]
    return tensor2img(Synthesis(opt, CPU)(images, kernels))
