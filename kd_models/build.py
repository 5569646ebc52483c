"""How a training is built, from top to bottom in the order of BasicSR's models.

What is this package's own draws no random number that theirs would have drawn.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any
from urllib.error import URLError

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from torch import nn

from kd_models.adapters import Adapter
from kd_models.adversary import Adversary
from kd_models.averaging import averages, go_on, try_optimizer
from kd_models.degradation import USM_KEYS, build_degradation, build_sharpener, is_degrading
from kd_models.ema import update_ema
from kd_models.pairing import Tapped, pair_features
from kd_models.report import measure_networks, networks_table
from kd_models.runtime import Runtime
from kd_models.stages import Stages
from kd_models.teacher import Teacher
from kd_models.terms import STOCK, Term
from kd_models.training import Training
from kd_utils import checkpoint
from kd_utils.options import OptionError, Options, teacher_caches
from kd_utils.rng import own_random_numbers
from kd_utils.schema import LOSS_REGISTRY, registered, teacher_key, teacher_name, teacher_sections
from kd_utils.schema.optimizers import optimizer_class


def build_training(opt: Options, runtime: Runtime, adapter: Adapter, net_g: nn.Module, *,
                   sizes: tuple[tuple[int, ...], tuple[int, ...]], latent_size: int | None,
                   adversary_type: type[Adversary], auxiliary: Callable[[], Mapping[str, nn.Module]]) -> Training:
    """Networks, teachers and what makes their images; `build_terms` and `build_optimizers` come after it.

    Args:
        opt: All options, checked.
        runtime: How this process computes.
        adapter: How the generator is called.
        net_g: The student, built and loaded.
        sizes: Shapes of a training input and of a training image of one.
        latent_size: How many numbers a latent has; None for super-resolution.
        adversary_type: The class of the discriminator's side.
        auxiliary: Makes the training-only modules that a method has besides those of its losses, by name.

    Raises:
        OptionError: The networks do not fit each other or the data.
    """
    training = Training(opt, runtime, adapter, net_g, *sizes, latent_size=latent_size)
    net_g.train()
    training.net_g_ema = _build_ema(opt, runtime, net_g)
    if opt.get('network_d'):
        training.net_d = _build_discriminator(opt, runtime)
    with own_random_numbers(runtime.device):
        training.teachers = build_teachers(opt, runtime.device)
    if is_degrading(opt):
        training.degradation = build_degradation(opt, runtime.device)
    if any(map(opt.get, USM_KEYS.values())):
        training.usm_sharpener = build_sharpener(opt).to(runtime.device)
    get_root_logger().info('Networks, for one training crop:\n' + networks_table(measure_networks(training)))
    training.adversary = adversary_type(training.net_d, training.teachers, runtime, training.features, opt['train'])
    with own_random_numbers(runtime.device):
        training.aux.update(auxiliary())
    return training


def load_network(net: nn.Module, path: str, strict: bool = True, key: str | None = 'params') -> None:
    """As BasicSR's, reading no code, taking bare state dicts, and naming what does not fit."""
    get_root_logger().info(f'Loading {type(net).__name__} from {path}, with param key: [{key}].')
    checkpoint.load_network(net, path, strict, key)


def _build_ema(opt: Options, runtime: Runtime, net_g: nn.Module) -> nn.Module | None:
    decay, path = opt['train'].get('ema_decay', 0), opt['path']
    if decay <= 0:
        return None
    get_root_logger().info(f'Use Exponential Moving Average with decay: {decay}')
    ema = runtime.place(build_network(opt['network_g']))
    if path.get('pretrain_network_g') is not None:
        load_network(ema, path['pretrain_network_g'], path.get('strict_load_g', True), 'params_ema')
    else:
        update_ema(ema, net_g, 0)  # a copy
    return ema.eval().requires_grad_(False)


def _build_discriminator(opt: Options, runtime: Runtime) -> nn.Module:
    path = opt['path']
    net_d = runtime.place(build_network(opt['network_d']))
    if path.get('pretrain_network_d') is not None:
        load_network(net_d, path['pretrain_network_d'], path.get('strict_load_d', True),
                     path.get('param_key_d', 'params'))
    return net_d.train()


def build_teachers(opt: Options, device: torch.device, wanted: Collection[str] | None = None) -> dict[str, Teacher]:
    """The frozen networks by name: `teacher`, and `teacher.NAME` for each of `teachers`.

    Args:
        opt: All options.
        device: Where they are placed.
        wanted: The keys of the sections that are built, such as `teachers.NAME`; all by default.
    """
    return {teacher_name(key): Teacher(section, device)
            for key, section in teacher_sections(opt).items() if wanted is None or key in wanted}


# ------------------------------------------------------------------------------------------------------------ losses


def build_terms(known: Mapping[str, type[Term]], training: Training) -> dict[str, Term]:
    """The configured losses, in the order of `known`; the trainable ones of their criteria are in `training.aux`.

    Raises:
        OptionError: A loss is not made for its place, or its feature maps do not pair up.
    """
    terms = {}
    for name, term in known.items():
        option = training.opt['train'].get(f'{name}_opt')
        if option is not None:
            with nullcontext() if name in STOCK else own_random_numbers(training.runtime.device):
                terms[name] = _build_term(name, term, option, training)
    return terms


def _build_term(name: str, kind: type[Term], option: Options, training: Training) -> Term:
    option = {'type': kind.default_type, **option}
    keys = {key: option.pop(key) for key in (*kind.option_keys, 'teacher') if key in option}
    if 'teacher' in keys:
        keys['teacher'] = teacher_names(keys['teacher'])
    if kind.reads_features:
        teacher = keys.get('teacher', 'teacher')
        _check_uncached(name, teacher, kind, training.opt)
        option.update(_pair(name, kind, teacher, option, training))
    criterion = _build_criterion(name, kind, option).to(training.runtime.device)
    if any(p.requires_grad for p in criterion.parameters()):
        training.aux[name] = criterion
        training.aux_d |= {name} if kind.side == 'discriminator' else set()
    term = kind(name, criterion, training, **keys)
    _try(term, training)
    return term


def teacher_names(given: str | list[str]) -> str | list[str]:
    """The names in `Training.teachers` of those that a loss names: `teacher`, or one or several of `teachers`."""
    if not isinstance(given, str):
        return [str(teacher_names(name)) for name in given]
    return teacher_name(teacher_key(given))


def _build_criterion(name: str, kind: type[Term], option: Options) -> nn.Module:
    try:
        return build_loss(option)
    except TypeError as error:  # arguments that the model supplies
        raise OptionError(f'train.{name}_opt: {option["type"]} cannot be the loss `{name}` ({error}). '
                          f'Use {kind.default_type}.') from None
    except URLError as error:
        raise OptionError(f'train.{name}_opt: {option["type"]} could not download its weights ({error.reason}). '
                          'Name a file instead: `type: VGGPerceptualLoss` with `weights: vgg19-dcbb9e9d.pth`, '
                          'from https://download.pytorch.org/models/vgg19-dcbb9e9d.pth') from None


def _check_uncached(name: str, teacher: str, kind: type[Term], opt: Options) -> None:
    cache = teacher_caches(opt).get(teacher)
    if kind.side == 'generator' and cache and not cache['features']:
        raise OptionError(f'`train.{name}_opt` compares feature maps of the teacher, and `teacher.cache` has only its '
                          f'images. Write `cache: {{folder: {cache["folder"]}, features: true}}`. Take one of the two '
                          'out if there is no room for them.')


def _pair(name: str, kind: type[Term], teacher: str, option: Options, training: Training) -> Options:
    """Registers the taps of a feature loss; what its class is supplied with: pairs of layers, and their channels."""
    key, of_teacher = f'train.{name}_opt', training.teachers[teacher]
    if kind.side == 'generator':
        student = Tapped('network_g (the student)', training.net_g, training.adapter, training.lq_size)
        tapped = Tapped(f'{teacher}.network_g', of_teacher.net_g, of_teacher.adapter, training.lq_size)
        names = 'student', teacher
    else:
        student = Tapped('network_d (the student)', training.net_d, None, training.gt_size)
        tapped = Tapped(f'{teacher}.network_d', of_teacher.net_d, None, training.gt_size)
        names = 'student.net_d', f'{teacher}.net_d'
    pairs = pair_features(student, tapped, option.get('layers'), key)
    training.features.add(names[0], name, pairs.student)
    training.features.add(names[1], name, pairs.teacher)
    supplied = {'layers': pairs.layers, 'channels': pairs.channels}
    taken = getattr(registered(LOSS_REGISTRY).get(option['type']), 'supplied', supplied)
    return {name: value for name, value in supplied.items() if name in taken}


def _try(term: Term, training: Training) -> None:
    """Calls the loss once on blank images: a class that is not made for this place is refused here."""
    images = torch.zeros(training.gt_size, device=training.runtime.device)
    try:
        fits = term.fits(images, training)
    except OptionError:
        raise
    except Exception:  # noqa: BLE001  a foreign class may raise anything
        fits = False
    if not fits:
        loss = type(term.criterion).__name__
        raise OptionError(f'train.{term.name}_opt: {loss} with these options does not return what the loss '
                          f'`{term.name}` is made of. ' + _another(loss, term.default_type))


def _another(loss: str, default: str | None) -> str:
    if loss == default:
        return 'Change its options, or leave them out.'
    return f'Use {default}, or a class that takes and returns the same.'


# -------------------------------------------------------------------------------------------------------- optimizers


def build_optimizers(training: Training, terms: Mapping[str, Term]) -> None:
    """The stages and optimizers; then every process starts from the same tensors, and updates are guarded."""
    runtime, train_opt = training.runtime, training.opt['train']
    of_generator = {name: term for name, term in terms.items() if term.side == 'generator'}
    training.stages = Stages(train_opt, list(of_generator),
                             [name for name, term in of_generator.items() if term.reads_features])
    factors = {name: term.lr_factor for name, term in terms.items()}
    training.optimizers.append(_build_optimizer('g', training.net_g, training, factors))
    if training.trains_discriminator:
        training.optimizers.append(_build_optimizer('d', training.net_d, training, factors))
    ema = [training.net_g_ema] if training.net_g_ema is not None else []
    runtime.synchronize(*training.trained.values(), *ema)
    for label, optimizer, net in zip('gd', training.optimizers, (training.net_g, training.net_d), strict=False):
        runtime.protect(f'net_{label}', optimizer, net, *training.aux_of(label).values())


def _build_optimizer(label: str, net: nn.Module, training: Training,
                     factors: Mapping[str, float]) -> torch.optim.Optimizer:
    """One group for the network, and one for each of its training-only modules at its multiple of the rate."""
    option = dict(training.opt['train'][f'optim_{label}'])
    name = option.pop('type')
    kind = optimizer_class(f'train.optim_{label}.type', name)
    if 'betas' in option:
        option['betas'] = [float(beta) for beta in option['betas']]  # PyTorch refuses [0, 0.99]
    groups: list[dict[str, Any]] = [{'params': [p for p in net.parameters() if p.requires_grad]}]
    for loss, module in training.aux_of(label).items():
        rate = {'lr': option['lr'] * factors[loss]} if factors.get(loss, 1) != 1 else {}
        groups.append({'params': [p for p in module.parameters() if p.requires_grad], **rate})
    try:
        optimizer = kind(groups, **{**training.runtime.optimizer_options(name), **option})
    except (ValueError, TypeError, RuntimeError) as error:
        raise OptionError(f'train.optim_{label}: {error}. Write other values there.') from None
    if '.' in name:
        _check_foreign(f'train.optim_{label}', optimizer, option, net)
    for group in optimizer.param_groups:
        group.setdefault('initial_lr', group['lr'])  # for a warm-up without a scheduler
    go_on(optimizer, [])
    return optimizer


def _check_foreign(key: str, optimizer: torch.optim.Optimizer, option: Options, net: nn.Module) -> None:
    try:
        with own_random_numbers(torch.device('cpu')):
            try_optimizer(type(optimizer), option)
    except Exception as error:  # noqa: BLE001  a foreign class may raise anything
        raise OptionError(f'`{key}.type`: {type(optimizer).__name__} does not fit this loop, which calls step() after '
                          f'a plain backward pass and saves its state as tensors and numbers ({error}). '
                          'Use Adam or AdamW.') from None
    if averages(optimizer) and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        get_root_logger().warning(f'`{key}.type`: {type(optimizer).__name__} validates and saves averaged weights, and '
                                  'batch normalisation has statistics of the others. Take a network without it, or '
                                  'another optimizer.')
