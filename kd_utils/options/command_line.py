"""BasicSR's command line, and the options as its loops expect them."""
from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from os import path as osp

import torch
from basicsr.utils.dist_util import get_dist_info

from kd_utils.options.aliases import apply_aliases, imply, our_name, section_of
from kd_utils.options.files import loss_weight_keys, metric_keys
from kd_utils.options.text import find_option_file, load_yaml, parse_yaml
from kd_utils.schema import OptionError, Options, get, is_foreign, require, teacher_sections


def parse_options(argv: list[str] | None, root_path: str, is_train: bool = True) -> tuple[Options, argparse.Namespace]:
    """BasicSR's `parse_options` without its side effects: it leaves seeding and torch.distributed to the loop.

    Args:
        argv: The arguments; None for those of the process.
        root_path: The folder of experiments/ and results/.
        is_train: Training, or a test.

    Returns:
        The options, unchecked but for what is read here, and the arguments. `args.opt` is the file that was found,
        `args.messages` what the log should say about the reading, `args.num_gpu` what was asked for.

    Raises:
        OptionError: The options cannot be read.
    """
    args = _parser().parse_args(argv)
    args.opt, args.messages = str(find_option_file(args.print_options or args.opt)), []
    opt = load_yaml(args.opt)
    forced = args.force_yml or []
    of_model = [entry for entry in forced if entry.partition('=')[0].strip() == 'model_type']
    force_options(opt, of_model)  # it decides on the aliases
    args.messages += apply_aliases(opt)
    args.messages += force_options(opt, [entry for entry in forced if entry not in of_model])
    args.messages += apply_aliases(opt)  # inside of sections that were forced
    opt.update(dist=args.launcher != 'none', auto_resume=args.auto_resume, is_train=is_train, root_path=str(root_path))
    opt['rank'], opt['world_size'] = get_dist_info()
    _set_name(opt, args.debug)
    _set_defaults(opt, is_train)
    args.num_gpu = opt['num_gpu']
    args.messages += _set_num_gpu(opt)
    _set_datasets(opt)
    _set_paths(opt, root_path, is_train)
    if is_train and 'debug' in opt['name']:
        _set_debug(opt)
    return opt, args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('-opt', metavar='FILE', help='option file, or the name of a shipped one')
    what.add_argument('--print-options', metavar='FILE',
                      help='only print the options of a file, with those of its bases and what its method adds')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest saved state, if there is one')
    parser.add_argument('--debug', action='store_true', help='log, validate and save every few iterations')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=int(os.environ.get('LOCAL_RANK', 0)))
    parser.add_argument('--force_yml', nargs='+', action='extend', metavar='KEY:KEY=VALUE',
                        help='options that replace those of the file, such as train:optim_g:lr=1e-4')
    parser.add_argument('--loop', choices=['kd', 'basicsr'], default='kd', help="this package's loop, or BasicSR's own")
    return parser


def force_options(opt: Options, entries: Iterable[str]) -> list[str]:
    """Sets options in place from `key:key=value` texts, the value being YAML; an option may be called by an alias.

    Returns:
        list[str]: A message for each alias.

    Raises:
        OptionError: An entry is not of that form, or leads through something that is no section.
    """
    messages: list[str] = []
    applied: list[str] = []
    for entry in entries:
        keys, separator, text = entry.partition('=')
        *parents, last = names = [key.strip() for key in keys.split(':')]
        if not separator or not all(names):
            raise OptionError(f'--force_yml cannot read `{entry}`. Write it as train:optim_g:lr=1e-4.')
        value = parse_yaml(text, f'--force_yml {entry}')
        if not is_foreign(opt.get('model_type')):
            key, alias = our_name('.'.join(names), value)
            if alias:
                applied.append(alias)
                messages.append(f'`{".".join(names)}` of --force_yml is read as `{key}`.')
            *parents, last = key.split('.')
        section_of(opt, parents)[last] = value
    return messages + imply(opt, applied)


def _set_name(opt: Options, debug: bool) -> None:
    require('name', 'name', opt.get('name'))
    if debug and not opt['name'].startswith('debug'):
        opt['name'] = f'debug_{opt["name"]}'


def _set_defaults(opt: Options, is_train: bool) -> None:
    """Adds the keys that BasicSR reads without asking whether they are there, and `num_gpu: auto`."""
    opt.setdefault('num_gpu', 'auto')
    section_of(opt, ['path'])
    if is_train:
        section_of(opt, ['logger']).setdefault('use_tb_logger', False)
    if opt.get('val') is not None or not is_train:
        val = section_of(opt, ['val'])
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
    for name, dataset in section_of(opt, ['datasets']).items():
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
    for key, teacher in teacher_sections(opt).items():
        if teacher.get('path') is not None:
            require(f'{key}.path', 'dict', teacher['path'])
            _expand_home(teacher['path'], ('pretrain_network', ))
        _expand_home(teacher, ('cache', ))
        if isinstance(teacher.get('cache'), dict):
            _expand_home(teacher['cache'], ('folder', ))
    for key in [*loss_weight_keys(opt), *metric_keys(opt, 'weights'), *metric_keys(opt, 'real')]:
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
