"""The files and folders that options name: whether they are there, and whether they fit together."""
from __future__ import annotations

import fnmatch
import os
import re
from os import path as osp
from typing import NoReturn

from kd_utils.options.images import IMAGES, image_size, size_text
from kd_utils.schema import (
    ARCH_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    OUR_PACKAGES,
    OptionError,
    Options,
    get,
    is_from,
    measured_teachers,
    nearest,
    registered,
    teacher_key,
    teacher_sections,
)

_REAL_ESRGAN = 'https://github.com/xinntao/Real-ESRGAN/releases'
_MODEL_ZOO = 'https://github.com/XPixelGroup/BasicSR/blob/master/docs/ModelZoo.md'
_SWINIR = 'https://github.com/JingyunLiang/SwinIR/releases'
_TORCHVISION = 'https://download.pytorch.org/models'
# File names of public weights -> where they are.
DOWNLOADS: dict[str, str] = {
    'RealESRGAN_x*plus*.pth': _REAL_ESRGAN,
    'RealESRNet_x*plus.pth': _REAL_ESRGAN,
    'realesr-*v3*.pth': _REAL_ESRGAN,
    '*SwinIR*.pth': _SWINIR,
    'EDSR_*.pth': _MODEL_ZOO,
    'RCAN_*.pth': _MODEL_ZOO,
    'ESRGAN_*.pth': _MODEL_ZOO,
    'MSRResNet_*.pth': _MODEL_ZOO,
    'vgg1?-*.pth': _TORCHVISION,
    'alexnet-*.pth': _TORCHVISION,
    'squeezenet1_1-*.pth': _TORCHVISION,
    'weights-inception-*.pth': 'https://github.com/toshas/torch-fidelity/releases',
}

# Datasets that take every file of a folder for an image, if no other list is given.
SCANNED = ('PairedImageDataset', 'RealESRGANPairedDataset', 'SingleImageDataset', 'FaceScaleDataset')
# Datasets whose list has an image, or a pair of them, per line.
LISTED = (*SCANNED, 'RealESRGANDataset')
# Datasets that refuse an LMDB of another name.
NAMED_LMDB = (*LISTED, 'FFHQDataset')


def check_files(opt: Options) -> None:
    """Refuses options that name files or folders that are not there, before anything is built.

    Args:
        opt: Options that `check_options` has passed.

    Raises:
        OptionError: At the first file that is missing, saying where to get it if it is a public teacher.
    """
    for name, dataset in opt['datasets'].items():
        _check_dataset(f'datasets.{name}', dataset, opt, training=name == 'train')
    for key in _weight_keys(opt):
        path = get(opt, key)
        if isinstance(path, str):
            _check_weights(key, path)
    for key in metric_keys(opt, 'real'):
        _check_root(key, get(opt, key), lmdb=False, named=False)
        _images(key, get(opt, key))
    state = get(opt, 'path.resume_state')
    if state is not None and not (state.endswith('.state') and osp.isfile(state)):
        raise OptionError(f'`path.resume_state`: `{state}` is no training state. Name a file such as '
                          f'experiments/NAME/training_states/5000.state.{_nearest_file(state)}')


def _weight_keys(opt: Options) -> list[str]:
    """The keys under which files with weights stand."""
    keys, training = [], opt.get('is_train', True)
    if not (training and opt['path'].get('resume_state')):  # resuming replaces them
        keys += [f'path.{key}' for key in opt['path'] if str(key).startswith('pretrain_network')]
    measured = {teacher_key(name) for name in measured_teachers(opt)}
    for teacher, section in teacher_sections(opt).items():
        if training or teacher in measured:
            path = section.get('path') or {}
            keys += [f'{teacher}.path.{key}' for key in path if str(key).startswith('pretrain_network')]
    return keys + metric_keys(opt, 'weights') + (loss_weight_keys(opt) if training else [])


def loss_weight_keys(opt: Options) -> list[str]:
    """The keys of the files that losses of this package read; `weights` of another loss may mean anything."""
    train, losses = opt.get('train'), registered(LOSS_REGISTRY)
    names = [key for key in train if str(key).endswith('_opt')] if isinstance(train, dict) else []
    model = registered(MODEL_REGISTRY).get(str(opt.get('model_type')))
    defaults = {f'{name}_opt': loss for name, loss in getattr(model, 'losses', {}).items()}
    return [f'train.{name}.weights' for name in names
            if isinstance(get(opt, f'train.{name}.weights'), str)
            and is_from(OUR_PACKAGES, losses.get(str(get(opt, f'train.{name}.type') or defaults.get(name))))]


def metric_keys(opt: Options, name: str) -> list[str]:
    """The keys of that name, of a file or folder, that metrics of this package have."""
    metrics, known = get(opt, 'val.metrics'), registered(METRIC_REGISTRY)
    return [f'val.metrics.{metric}.{name}' for metric, option in (metrics if isinstance(metrics, dict) else {}).items()
            if isinstance(get(opt, f'val.metrics.{metric}.{name}'), str)
            and is_from(OUR_PACKAGES, known.get(str(get(option, 'type'))))]


def _check_weights(key: str, path: str) -> None:
    if osp.isfile(path):
        return
    folder, name = osp.split(path)
    page = next((page for pattern, page in DOWNLOADS.items() if fnmatch.fnmatch(name, pattern)), None)
    if page:
        raise OptionError(f'`{key}`: `{path}` is missing. Download {name} from {page} '
                          f'and put it into `{folder or "."}/`.')
    problem = 'is a folder' if osp.isdir(path) else 'is missing'
    if key.startswith('teacher') and key.endswith('pretrain_network_d'):
        problem += ' (options/train/SDAKD/teacher_discriminator_*.yml make such files)'
    raise OptionError(f'`{key}`: `{path}` {problem}. Name a file with weights.{_nearest_file(path)}')


def _nearest_file(path: str) -> str:
    folder, name = osp.split(path)
    return nearest(name, os.listdir(folder or '.')) if osp.isdir(folder or '.') else ''


def _check_dataset(key: str, dataset: Options, opt: Options, training: bool) -> None:
    """The folders, lists and images of a dataset; of another project's dataset only that they exist."""
    roots = {name: dataset[name] for name in sorted(map(str, dataset))  # GT before LQ
             if name.startswith('dataroot') and isinstance(dataset[name], str)}
    kind, lmdb = dataset['type'].removesuffix('_basicsr'), get(dataset, 'io_backend.type') == 'lmdb'
    for name, root in roots.items():
        _check_root(f'{key}.{name}', root, lmdb, kind in NAMED_LMDB)
    if kind == 'FFHQDataset' and not lmdb:
        _check_ffhq(f'{key}.dataroot_gt', roots['dataroot_gt'])
    listing = next((name for name in ('meta_info_file', 'meta_info') if isinstance(dataset.get(name), str)), None)
    if kind not in LISTED:
        if listing and not osp.exists(dataset[listing]):
            _refuse_missing(f'{key}.{listing}', dataset[listing])
        return
    template = dataset.get('filename_tmpl', '{}')
    if lmdb:  # it has its own list
        images = _lmdb_images(key, list(roots.values()))
    elif listing:
        images = _listed_images(f'{key}.{listing}', dataset[listing], kind, list(roots.values()), template)
    elif kind in SCANNED:
        images = _scanned_images(key, roots, template)
    else:
        return
    scale = dataset.get('scale', opt.get('scale'))
    if kind == 'FaceScaleDataset':
        for [(path, size)] in images[:_MOST_IMAGES]:
            check_face(key, path, size or image_size(key, path), dataset['gt_size'])
        return
    _check_sizes(key, images, scale, dataset.get('gt_size') if training else None)
    if not training:
        _check_scales(key, images, scale, opt)


def _check_root(key: str, root: str, lmdb: bool, named: bool) -> None:
    if not osp.exists(root):
        raise OptionError(f'`{key}`: there is no `{root}`. Correct the path, or set the environment variable KD_DATA '
                          'if your data sets stand elsewhere.')
    if lmdb and not all(osp.isfile(osp.join(root, name)) for name in ('data.mdb', 'meta_info.txt')):
        raise OptionError(f'`{key}`: `{root}` is no LMDB of images, which has data.mdb and meta_info.txt in it. '
                          'Make one, or write `io_backend: {type: disk}` for a folder of images.')
    if lmdb and named and not root.rstrip('/').endswith('.lmdb'):
        raise OptionError(f'`{key}`: BasicSR takes an LMDB only if its name ends in .lmdb, which `{root}` does not. '
                          'Rename the folder.')
    if not lmdb and root.rstrip('/').endswith('.lmdb'):
        raise OptionError(f'`{key}`: `{root}` is an LMDB. Write `io_backend: {{type: lmdb}}`.')
    if osp.isdir(root) and not os.listdir(root):
        raise OptionError(f'`{key}`: the folder `{root}` is empty. Put the images there, or correct the path.')


def _check_ffhq(key: str, root: str) -> None:
    first, last = (osp.join(root, f'{number:08}.png') for number in (0, 69_999))
    if not (osp.isfile(first) and osp.isfile(last)):
        raise OptionError(f"`{key}`: of a folder, BasicSR's FFHQDataset reads 00000000.png to 00069999.png, and not "
                          f'both are in `{root}`. For other images write `kd-prepare lmdb {root} {root}.lmdb`, name '
                          'that LMDB, and write `io_backend: {type: lmdb}`.')


def _refuse_missing(key: str, path: str) -> NoReturn:
    if osp.isdir(path):
        raise OptionError(f'`{key}`: `{path}` is a folder. Name a text file.')
    raise OptionError(f'`{key}`: there is no file `{path}`. Correct the path.{_nearest_file(path)}')


# GT and LQ image of a pair, or a single image: name -> width and height, None to read them from the file of that name.
_Image = tuple[str, tuple[int, int] | None]


def _scanned_images(key: str, roots: dict[str, str], template: str) -> list[list[_Image]]:
    """The images of a folder, or of two."""
    names = [_images(f'{key}.{name}', root) for name, root in roots.items()]
    folders = list(roots.values())
    if len(names) == 1:
        return [[(osp.join(folders[0], name), None)] for name in names[0][:_MOST_IMAGES]]
    _check_pairs(key, names[0], set(names[1]), template)
    return [[(osp.join(folders[0], name), None), (osp.join(folders[1], _partner(name, template)), None)]
            for name in names[0][:_MOST_IMAGES]]


def _images(key: str, root: str) -> list[str]:
    """The files that BasicSR's scan of a folder takes for images."""
    if not osp.isdir(root):
        raise OptionError(f'`{key}`: `{root}` is a file. Name the folder of the images.')
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_file() and not entry.name.startswith('.'))
    if not names:
        raise OptionError(f'`{key}`: there are no images in `{root}`, and folders in it are not searched. '
                          'Correct the path.')
    other = next((name for name in names if not name.lower().endswith(IMAGES)), None)
    if other:
        raise OptionError(f'`{key}`: `{other}` in `{root}` is no image. Move it out of the folder.')
    return names


def _partner(gt: str, template: str) -> str:
    stem, suffix = osp.splitext(osp.basename(gt))
    return template.format(stem) + suffix


def _check_pairs(key: str, gt: list[str], lq: set[str], template: str) -> None:
    """Every GT image needs an LQ image called by the template, and there must be no others."""
    partners = {_partner(name, template): name for name in gt}
    counts = f'`{key}`: {len(gt)} images in dataroot_gt, {len(lq)} in dataroot_lq'
    for partner, name in partners.items():
        if partner not in lq:
            raise OptionError(f'{counts}, and `{name}` has no partner `{partner}`. '
                              + _template_hint(name, lq, template))
    extra = next(iter(sorted(lq - partners.keys())), None)
    if extra:
        raise OptionError(f'{counts}, and `{extra}` has no partner. Add its GT image, or move it out of the folder.')


def _template_hint(gt: str, lq: set[str], template: str) -> str:
    stem, suffix = osp.splitext(gt)
    guess = min((name for name in sorted(lq) if stem in osp.splitext(name)[0]), key=len, default=None)
    if guess is None:
        return 'Add it, or set `filename_tmpl` to how the LQ names differ from the GT names.'
    found = osp.splitext(guess)[0].replace(stem, '{}', 1)
    if found != template:
        return f"If that is `{guess}`, write `filename_tmpl: '{found}'`."
    return f'There is `{guess}`: save both as {suffix}.'


def _listed_images(key: str, path: str, kind: str, roots: list[str], template: str) -> list[list[_Image]]:
    """The images of a text file that has one, or a pair of them, per line."""
    if not osp.isfile(path):
        _refuse_missing(key, path)
    images: list[list[_Image]] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            raise OptionError(f'`{key}`: line {number} of `{path}` is blank. Take it out.')
        names = line.strip().split(', ') if kind == 'RealESRGANPairedDataset' else [line.strip().split(' ')[0]]
        if kind == 'PairedImageDataset':
            names.append(_partner(names[0], template))
        if len(names) != len(roots):
            raise OptionError(f'`{key}`: line {number} of `{path}` is no pair. Write `GT_NAME, LQ_NAME`.')
        for root, name in zip(roots, names, strict=True):
            if not osp.isfile(osp.join(root, name)):
                raise OptionError(f'`{key}`: `{name}`, of line {number}, is not in `{root}`. '
                                  'Correct the list or the folder.')
        images.append([(osp.join(root, name), None) for root, name in zip(roots, names, strict=True)])
    if not images:
        raise OptionError(f'`{key}`: `{path}` lists no images. Write one name per line.')
    return images


def _lines(path: str) -> list[str]:
    with open(path, encoding='utf-8', errors='replace') as file:
        return list(file)


def _lmdb_images(key: str, roots: list[str]) -> list[list[_Image]]:
    """The images of one LMDB, or of two with the same keys; sizes are in its list, as in `baboon.png (120,125,3) 1`."""
    lists = [{line.split('.')[0].strip(): line for line in _lines(osp.join(root, 'meta_info.txt'))} for root in roots]
    for root, keys, others in zip(roots, lists, reversed(lists), strict=True):
        extra = next(iter(sorted(keys.keys() - others.keys())), None)
        if extra is not None:
            raise OptionError(f'`{key}`: `{root}` has the image `{extra}`, which the other LMDB lacks. '
                              'Make both from folders with the same names.')
    pairs = [[(osp.join(root, name), _listed_size(images[name])) for root, images in zip(roots, lists, strict=True)]
             for name in lists[0]]
    return [pair for pair in pairs if all(size for _, size in pair)]


def _listed_size(line: str) -> tuple[int, int] | None:
    match = re.search(r'\((\d+),\s*(\d+)', line)
    return (int(match[2]), int(match[1])) if match else None


# Of larger sets, only so many are opened: a run should start soon.
_MOST_IMAGES = 1000


def _check_sizes(key: str, images: list[list[_Image]], scale: int | None, gt_size: int | None) -> None:
    """That the images can be read, that GT is `scale` times LQ, and that a crop of `gt_size` fits in.

    BasicSR crops the GT of validation to `scale` times LQ, so there GT may be larger by the remainder of a division.
    """
    for image in images[:_MOST_IMAGES]:
        sizes = [size or image_size(key, path) for path, size in image]
        if len(sizes) < 2 or not scale:
            continue
        (gt, _), (lq, _) = image
        for of_gt, of_lq in zip(*sizes, strict=True):
            exact = of_gt == of_lq * scale
            if not exact and (gt_size or not 0 < of_gt - of_lq * scale < of_lq):
                raise OptionError(f'`{key}`: `{gt}` is {size_text(sizes[0])}, and `{lq}` is {size_text(sizes[1])}, '
                                  f'which does not fit the scale {scale}. Make pairs that do: `kd-prepare lr '
                                  f'{osp.dirname(gt)} LR --scale {scale} --hr-out HR`.')
        if gt_size and min(sizes[0]) < gt_size:
            raise OptionError(f'`{key}.gt_size` is {gt_size}, but `{gt}` is only {size_text(sizes[0])}. '
                              f'Write {min(sizes[0]) // scale * scale} or less, or take such images out.')


def check_face(key: str, path: str, size: tuple[int, int], gt_size: int) -> None:
    """Refuses a training face, of width and height `size`, that is not of `gt_size`."""
    if size != (gt_size, gt_size):
        raise OptionError(f'`{key}.gt_size` is {gt_size}, but `{path}` is {size_text(size)}. Make faces of that size, '
                          "as `kd-prepare lr` does, or write their own as `gt_size` and as the networks' `out_size`.")


def _check_scales(key: str, images: list[list[_Image]], scale: int | None, opt: Options) -> None:
    """What networks think of the LQ images that find the scale by themselves (GCFSR, by its `infer_scale`)."""
    measured = [f'{teacher_key(name)}.network_g' for name in sorted(measured_teachers(opt))]
    networks = [name for name in ('network_g', *measured)
                if hasattr(registered(ARCH_REGISTRY).get(get(opt, f'{name}.type')), 'infer_scale')]
    for network in networks:
        option = get(opt, network)
        arch = registered(ARCH_REGISTRY)[option['type']]
        if get(opt, f'{key}.mean') is not None:
            raise OptionError(f'`{key}.mean` and `std` change the range of the images, and `{network}` takes LR faces '
                              'in [0, 1]. Take both out.')
        for *gt, (lq, size) in images[:_MOST_IMAGES]:
            width, height = size or image_size(key, lq)
            try:
                found = arch.infer_scale(option, height, width)
            except OptionError as error:
                raise OptionError(f'`{key}`: `{lq}` does not fit `{network}`. {error}') from None
            if gt and found != scale:
                raise OptionError(f'`{key}`: `{network}` makes `{lq}` {found} times as large, but the scale is {scale}.'
                                  f' Write `scale: {found}`, or name LR images of another size.')
