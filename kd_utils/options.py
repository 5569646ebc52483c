"""Reading options: safe YAML, BasicSR's command line, foreign names, and the files that the options name.

`parse_options` reads, `check_options` (kd_utils/schema.py) checks the keys, `check_files` the files. None of them
builds, seeds or initializes anything.
"""
from __future__ import annotations

import argparse
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from os import path as osp
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from basicsr.utils.dist_util import get_dist_info
from PIL import ExifTags, Image

from kd_utils.schema import (
    ARCH_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    OUR_PACKAGES,
    OptionError,
    Options,
    check_options,
    closest,
    crop_size,
    get,
    is_foreign,
    is_from,
    measures_teacher,
    nearest,
    registered,
    require,
    teacher_cache,
    teacher_caches,
)

__all__ = ['OptionError', 'apply_aliases', 'check_face', 'check_files', 'check_options', 'find_option_file',
           'Options', 'crop_size', 'load_yaml', 'nearest', 'parse_options', 'parse_yaml', 'teacher_cache',
           'teacher_caches']

# Other projects' names for what is here: key -> key. Applied to the models of this package only.
ALIASES: dict[str, str] = {
    # MCAD-KD, github.com/seanko29/mcadkd
    'network_t': 'teacher.network_g',
    'path.pretrain_network_t': 'teacher.path.pretrain_network_g',
    'path.param_key_t': 'teacher.path.param_key_g',
    'path.strict_load_t': 'teacher.path.strict_load_g',
    'discriminator': 'network_d',
    'train.resp_kd_opt': 'train.response_kd_opt',
    'train.adversarial_opt': 'train.gan_opt',
    # older files of BasicSR, its one of StyleGAN2 among them
    'path.pretrain_model_g': 'path.pretrain_network_g',
    'path.pretrain_model_d': 'path.pretrain_network_d',
    'path.strict_load': 'path.strict_load_g',
}
# Such a key -> what else it means there: key -> value, where the file does not say it.
IMPLIED: dict[str, dict[str, str]] = {
    'path.pretrain_network_t': {'teacher.path.param_key_g': 'params'},
}
# key -> {value: value}
VALUE_ALIASES: dict[str, dict[str, str]] = {
    'model_type': {'MCADKD': 'MCADKDModel'},
}
# key -> (its values that mean something else there, the key that means it here)
MOVED_VALUES: dict[str, tuple[tuple[str, ...], str]] = {
    'train.contrastive_opt.type': (('image', 'patch', 'hybrid'), 'train.contrastive_opt.level'),
}

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

IMAGES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
# Datasets that take every file of a folder for an image, if no other list is given.
SCANNED = ('PairedImageDataset', 'RealESRGANPairedDataset', 'SingleImageDataset', 'FaceScaleDataset')
# Datasets whose list has an image, or a pair of them, per line.
LISTED = (*SCANNED, 'RealESRGANDataset')
# Datasets that refuse an LMDB of another name.
NAMED_LMDB = (*LISTED, 'FFHQDataset')

# -------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """The safe loader, reading `1e-4` as a number and refusing a key that is written twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == '<<':
                continue
            name = key.tag, key.value
            if name in lines:
                raise yaml.composer.ComposerError(None, None, f'the key `{key.value}` is there twice, first in line '
                                                  f'{lines[name]}', key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # such as `!!float abc`
            raise yaml.constructor.ConstructorError(None, None, f'cannot be read ({error})', node.start_mark) from None

    def refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace('tag:yaml.org,2002:', '!!')
        raise yaml.constructor.ConstructorError(None, None, f'the tag `{tag}` is not allowed, option files hold values '
                                                'and no code', node.start_mark)


_Loader.add_constructor(None, _Loader.refuse_tag)  # type: ignore[type-var]
# YAML 1.1 takes a number in scientific notation for text where it has no point or its exponent no sign.
_Loader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
                              list('-+.0123456789'))

_VARIABLE = re.compile(r'\$\{(\w+)\}')
_DEFAULTS = {'KD_DATA': 'datasets'}
_MOST_VALUES = 100_000


def load_yaml(path: str | Path) -> Options:
    """Reads an option file.

    Args:
        path: The file, or the name of a shipped one, see `find_option_file`. `${NAME}` in its texts becomes the
            environment variable, `${KD_DATA}` `datasets` where that is not set.

    Returns:
        dict: The options; no two of its sections are the same object, even where the file repeats one by `*name`.

    Raises:
        OptionError: The file is missing, or is no YAML mapping of plain values; the message has its name and line.
    """
    path = find_option_file(path)
    try:
        text = path.read_text(encoding='utf-8')
    except OSError as error:
        raise OptionError(f'{path} cannot be read ({error.strerror}). Name a YAML file.') from None
    except UnicodeDecodeError:
        raise OptionError(f'{path} is not a text in UTF-8. Name a YAML file.') from None
    opt = parse_yaml(text, str(path))
    if not isinstance(opt, dict):
        raise OptionError(f'{path} holds no options. Write keys and values, such as `name: my_experiment`.')
    return opt


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text; `origin` names it in error messages. See `load_yaml`."""
    try:
        return _finish(yaml.load(text, Loader=_Loader), '', iter(range(_MOST_VALUES)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f':{mark.line + 1}' if mark else ''
        raise OptionError(f'{origin}{line}: {error.problem or error.context}. Correct the YAML there.') from None
    except yaml.YAMLError as error:
        raise OptionError(f'{origin}: {" ".join(str(error).split())}. Correct the YAML.') from None
    except (RecursionError, StopIteration):
        raise OptionError(f'{origin} refers to itself or has more than {_MOST_VALUES} values. '
                          'Write it plainly.') from None


def _finish(value: Any, key: str, budget: Iterator[int]) -> Any:
    """A copy with the environment variables filled in and nothing shared: BasicSR changes sections in place."""
    next(budget)
    if isinstance(value, dict):
        return {name: _finish(item, f'{key}.{name}' if key else str(name), budget) for name, item in value.items()}
    if isinstance(value, list):
        return [_finish(item, f'{key}[{i}]', budget) for i, item in enumerate(value)]
    return _VARIABLE.sub(lambda match: _variable(match[1], key), value) if isinstance(value, str) else value


def _variable(name: str, key: str) -> str:
    value = os.environ.get(name) or _DEFAULTS.get(name)
    if value is None:
        raise OptionError(f'`{key}` uses ${{{name}}}, an environment variable that is not set. '
                          f'Set it, or write its value into the file.{nearest(name, _DEFAULTS)}')
    return value


def find_option_file(name: str | Path) -> Path:
    """The option file of that path, or else the shipped one of that name; `.yml` may be left out.

    Raises:
        OptionError: There is none; the message names the nearest.
    """
    shipped = _shipped_folder()
    candidates = [folder / f'{name}{suffix}' for folder in (Path(), shipped) for suffix in ('', '.yml')]
    found = next((path for path in candidates if path.is_file()), None)
    if found:
        return found
    names = [str(path.relative_to(shipped)) for path in sorted(shipped.rglob('*.yml'))]
    names += [str(path) for path in sorted(Path(name).parent.glob('*.yml'))]
    by_stem = {Path(path).stem: path for path in names}
    match = closest(str(name), names) or by_stem.get(closest(Path(name).stem, by_stem) or '')
    hint = f' Did you mean `{match}`?' if match else ' Name a YAML file.'
    raise OptionError(f'There is no option file `{name}`, here or among the shipped ones.{hint}')


def _shipped_folder() -> Path:
    """`options/` in a checkout; inside the package once it is installed."""
    root = Path(__file__).resolve().parents[1]
    installed = root / 'kd_cli' / 'options'
    return installed if installed.is_dir() else root / 'options'


# ------------------------------------------------------------------------------------------------------ command line


def parse_options(argv: list[str] | None, root_path: str, is_train: bool = True) -> tuple[Options, argparse.Namespace]:
    """BasicSR's `parse_options` without its side effects: it leaves seeding and torch.distributed to the loop.

    Args:
        argv: The arguments; None for those of the process.
        root_path: The folder of experiments/ and results/.
        is_train: Training, or a test.

    Returns:
        The options, unchecked but for what is read here, and the arguments. `args.opt` is the file that was found,
        `args.messages` what the log should say about the reading.

    Raises:
        OptionError: The options cannot be read.
    """
    args = _parser().parse_args(argv)
    args.opt, args.messages = str(find_option_file(args.opt)), []
    opt = load_yaml(args.opt)
    force_options(opt, args.force_yml or [])
    args.messages += apply_aliases(opt)
    opt.update(dist=args.launcher != 'none', auto_resume=args.auto_resume, is_train=is_train, root_path=str(root_path))
    opt['rank'], opt['world_size'] = get_dist_info()
    _set_name(opt, args.debug)
    _set_defaults(opt, is_train)
    args.messages += _set_num_gpu(opt)
    _set_datasets(opt)
    _set_paths(opt, root_path, is_train)
    if is_train and 'debug' in opt['name']:
        _set_debug(opt)
    return opt, args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file, or the name of a shipped one')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest saved state, if there is one')
    parser.add_argument('--debug', action='store_true', help='log, validate and save every few iterations')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=int(os.environ.get('LOCAL_RANK', 0)))
    parser.add_argument('--force_yml', nargs='+', action='extend', metavar='KEY:KEY=VALUE',
                        help='options that replace those of the file, such as train:optim_g:lr=1e-4')
    parser.add_argument('--loop', choices=['kd', 'basicsr'], default='kd', help="this package's loop, or BasicSR's own")
    return parser


def force_options(opt: Options, entries: Iterable[str]) -> None:
    """Sets options in place from `key:key=value` texts, the value being YAML.

    Raises:
        OptionError: An entry is not of that form, or leads through something that is no section.
    """
    for entry in entries:
        keys, separator, text = entry.partition('=')
        *parents, last = names = [key.strip() for key in keys.split(':')]
        if not separator or not all(names):
            raise OptionError(f'--force_yml cannot read `{entry}`. Write it as train:optim_g:lr=1e-4.')
        _section(opt, parents)[last] = parse_yaml(text, f'--force_yml {entry}')


def _section(opt: Options, keys: list[str]) -> Options:
    """The section of that name, made if it is not there."""
    for i, key in enumerate(keys):
        if opt.get(key) is None:
            opt[key] = {}
        opt = opt[key]
        require('.'.join(keys[:i + 1]), 'dict', opt)
    return opt


def apply_aliases(opt: Options) -> list[str]:
    """Renames other projects' keys and values in place, unless the model is another project's own.

    Returns:
        list[str]: A message for each.

    Raises:
        OptionError: The old and the new key are both there.
    """
    messages = []
    for key, values in VALUE_ALIASES.items():
        section, name, value = *_owner(opt, key), get(opt, key)
        if isinstance(value, str) and value in values:
            section[name] = values[value]
            messages.append(f'`{key}: {value}` is read as `{key}: {values[value]}`.')
    if is_foreign(opt.get('model_type')):
        return messages
    implied: dict[str, str] = {}
    for old, new in {**ALIASES, **_moved(opt)}.items():
        section, name = _owner(opt, old)
        if name not in section:
            continue
        if get(opt, new) is not None:
            raise OptionError(f'`{old}` and `{new}` are the same option. Take `{old}` out.')
        *parents, last = new.split('.')
        _section(opt, parents)[last] = section.pop(name)
        messages.append(f'`{old}` is read as `{new}`.')
        implied.update(IMPLIED.get(old, {}))
    for key, value in implied.items():
        if get(opt, key) is None:
            *parents, last = key.split('.')
            _section(opt, parents)[last] = value
            messages.append(f'`{key}` is taken to be `{value}`, as where this file comes from.')
    return messages


def _moved(opt: Options) -> dict[str, str]:
    """The keys whose value here means something else: old key -> new key.

    Raises:
        OptionError: The value means nothing in either place.
    """
    moved = {}
    for old, (values, new) in MOVED_VALUES.items():
        value = get(opt, old)
        if value in values:
            moved[old] = new
        elif isinstance(value, str) and value not in registered(LOSS_REGISTRY):
            raise OptionError(f'`{old}` cannot be `{value}`. Write one of: {", ".join(values)}, or the name of a loss, '
                              'such as MultiScaleContrastiveLoss.')
    return moved


def _owner(opt: Options, key: str) -> tuple[Options, str]:
    """The section that a dotted key is in, an empty one where there is none, and the key's last part."""
    section, _, name = key.rpartition('.')
    owner = get(opt, section) if section else opt
    return (owner if isinstance(owner, dict) else {}), name


def _set_name(opt: Options, debug: bool) -> None:
    require('name', 'name', opt.get('name'))
    if debug and not opt['name'].startswith('debug'):
        opt['name'] = f'debug_{opt["name"]}'


def _set_defaults(opt: Options, is_train: bool) -> None:
    """What BasicSR reads without asking whether it is there, and what has one sensible value."""
    opt.setdefault('num_gpu', 'auto')
    _section(opt, ['path'])
    if is_train:
        _section(opt, ['logger']).setdefault('use_tb_logger', False)
    if opt.get('val') is not None or not is_train:
        val = _section(opt, ['val'])
        val.setdefault('save_img', False)
        val.setdefault('suffix', None)


def _set_num_gpu(opt: Options) -> list[str]:
    require('num_gpu', 'gpus', opt['num_gpu'])
    wanted, available = opt['num_gpu'], torch.cuda.is_available()
    if wanted == 'auto':
        opt['num_gpu'] = torch.cuda.device_count() if available else 0
    elif wanted > 0 and not available:
        opt['num_gpu'] = 0
        return [f'`num_gpu: {wanted}`, but there is no CUDA device here: running on the CPU.']
    return []


def _set_datasets(opt: Options) -> None:
    for name, dataset in _section(opt, ['datasets']).items():
        require(f'datasets.{name}', 'dict', dataset)
        dataset['phase'] = str(name).split('_')[0]  # of val, val_2, test_1
        if 'scale' in opt and (name == 'train' or dataset.get('scale') is None):
            dataset['scale'] = opt['scale']  # BasicSR replaces a scale of the set's own
        _expand_home(dataset, ('dataroot', 'meta_info'))
        for key, value in dataset.items():
            if str(key).startswith('dataroot') and isinstance(value, str) and value.endswith('.lmdb/'):
                dataset[key] = value.rstrip('/')  # BasicSR knows an LMDB by the end of its path


def _set_paths(opt: Options, root_path: str, is_train: bool) -> None:
    _expand_home(opt['path'], ('resume_state', 'pretrain_network'))
    teacher_path = get(opt, 'teacher.path')
    if teacher_path is not None:
        require('teacher.path', 'dict', teacher_path)
        _expand_home(teacher_path, ('pretrain_network', ))
        _expand_home(opt['teacher'], ('cache', ))
    for key in [*_loss_weight_keys(opt), *_metric_keys(opt, 'weights'), *_metric_keys(opt, 'real')]:
        _expand_home(get(opt, key.rpartition('.')[0]), ('weights', 'real'))
    kind = 'experiments' if is_train else 'results'
    root = osp.join(root_path, kind, opt['name'])
    opt['path'].update({f'{kind}_root': root, 'log': root, 'visualization': osp.join(root, 'visualization')})
    if is_train:
        opt['path'].update(models=osp.join(root, 'models'), training_states=osp.join(root, 'training_states'))


def _expand_home(section: Options, keys: tuple[str, ...]) -> None:
    for key, value in section.items():
        if isinstance(value, str) and any(word in str(key) for word in keys):
            section[key] = osp.expanduser(value)


def _set_debug(opt: Options) -> None:
    if opt.get('val'):
        opt['val']['val_freq'] = 8
    opt['logger'].update(print_freq=1, save_checkpoint_freq=8)


# ------------------------------------------------------------------------------------------------------------- files


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
    for key in _metric_keys(opt, 'real'):
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
    if training or measures_teacher(opt):
        path = get(opt, 'teacher.path') or {}
        keys += [f'teacher.path.{key}' for key in path if str(key).startswith('pretrain_network')]
    return keys + _metric_keys(opt, 'weights') + (_loss_weight_keys(opt) if training else [])


def _loss_weight_keys(opt: Options) -> list[str]:
    """The keys of the files that losses of this package read; `weights` of another loss may mean anything."""
    train, losses = opt.get('train'), registered(LOSS_REGISTRY)
    names = [key for key in train if str(key).endswith('_opt')] if isinstance(train, dict) else []
    model = registered(MODEL_REGISTRY).get(str(opt.get('model_type')))
    defaults = {f'{name}_opt': loss for name, loss in getattr(model, 'losses', {}).items()}
    return [f'train.{name}.weights' for name in names
            if isinstance(get(opt, f'train.{name}.weights'), str)
            and is_from(OUR_PACKAGES, losses.get(str(get(opt, f'train.{name}.type') or defaults.get(name))))]


def _metric_keys(opt: Options, name: str) -> list[str]:
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
    if key == 'teacher.path.pretrain_network_d':
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
            check_face(key, path, size or _image_size(key, path), dataset['gt_size'])
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
        sizes = [size or _image_size(key, path) for path, size in image]
        if len(sizes) < 2 or not scale:
            continue
        (gt, _), (lq, _) = image
        for of_gt, of_lq in zip(*sizes, strict=True):
            exact = of_gt == of_lq * scale
            if not exact and (gt_size or not 0 < of_gt - of_lq * scale < of_lq):
                raise OptionError(f'`{key}`: `{gt}` is {_text(sizes[0])}, and `{lq}` is {_text(sizes[1])}, which does '
                                  f'not fit the scale {scale}. Make pairs that do: `kd-prepare lr {osp.dirname(gt)} '
                                  f'LR --scale {scale} --hr-out HR`.')
        if gt_size and min(sizes[0]) < gt_size:
            raise OptionError(f'`{key}.gt_size` is {gt_size}, but `{gt}` is only {_text(sizes[0])}. '
                              f'Write {min(sizes[0]) // scale * scale} or less, or take such images out.')


def check_face(key: str, path: str, size: tuple[int, int], gt_size: int) -> None:
    """Refuses a training face, of width and height `size`, that is not of `gt_size`."""
    if size != (gt_size, gt_size):
        raise OptionError(f'`{key}.gt_size` is {gt_size}, but `{path}` is {_text(size)}. Make faces of that size, as '
                          "`kd-prepare lr` does, or write their own as `gt_size` and as the networks' `out_size`.")


def _check_scales(key: str, images: list[list[_Image]], scale: int | None, opt: Options) -> None:
    """What networks think of the LQ images that find the scale by themselves (GCFSR, by its `infer_scale`)."""
    networks = [name for name in ('network_g', *['teacher.network_g'] * measures_teacher(opt))
                if hasattr(registered(ARCH_REGISTRY).get(get(opt, f'{name}.type')), 'infer_scale')]
    for network in networks:
        option = get(opt, network)
        arch = registered(ARCH_REGISTRY)[option['type']]
        if get(opt, f'{key}.mean') is not None:
            raise OptionError(f'`{key}.mean` and `std` change the range of the images, and `{network}` takes LR faces '
                              'in [0, 1]. Take both out.')
        for *gt, (lq, size) in images[:_MOST_IMAGES]:
            width, height = size or _image_size(key, lq)
            try:
                found = arch.infer_scale(option, height, width)
            except OptionError as error:
                raise OptionError(f'`{key}`: `{lq}` does not fit `{network}`. {error}') from None
            if gt and found != scale:
                raise OptionError(f'`{key}`: `{network}` makes `{lq}` {found} times as large, but the scale is {scale}.'
                                  f' Write `scale: {found}`, or name LR images of another size.')


def _text(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as OpenCV, with which BasicSR reads, turns it: as its camera was held."""
    on_its_side = image.format in ('JPEG', 'MPO') and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    return (image.height, image.width) if on_its_side else image.size


def _image_size(key: str, path: str) -> tuple[int, int]:
    """Width and height from the header of the file."""
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        state = 'is empty' if osp.isfile(path) and not osp.getsize(path) else 'cannot be read as an image'
        raise OptionError(f'`{key}`: `{path}` {state}. Write it anew, or take it out of the set.') from None
