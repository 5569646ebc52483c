"""Every model gives the recorded bits after six iterations, and again when it is resumed in the middle.

A change of the structure may change nothing here. One that is meant to change a result records it anew, by

    OMP_NUM_THREADS=1 python -m tests.test_kd_models.test_golden

and says why in its commit. Bits belong to a build of PyTorch and to a processor: where versions, or the same
calculation by BasicSR's networks alone, are not those of the record, the tests are skipped. There, record at the commit
before the change, and compare at the change.
"""
# ruff: noqa: I001
from __future__ import annotations

import kd_models  # noqa: F401  first: it makes basicsr importable

import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from basicsr.archs import build_network, vgg_arch
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from kd_data.draws import seed_everything
from tests.support import (
    EDSR,
    GCFSR_D,
    GCFSR_TEACHER,
    UNET,
    WithBatchNorm,
    batches,
    face_batches,
    face_options,
    gan_options,
    model_options,
    save_teacher,
    train_seeded,
)
from tests.test_kd_models import (
    test_advkd_model,
    test_advkd_unconditional,
    test_degradation,
    test_diffusion_model,
    test_mcadkd_model,
    test_sdstylegan2_model,
)

RECORD = Path(__file__).with_name('golden.json')
ITERATIONS = 6
MIDDLE = 3
TEACHER_D = {**UNET, 'num_feat': 6}
FEATURE_KD = {'feature_kd_opt': {'type': 'MLPFeatureLoss', 'loss_weight': 0.5}}
FEATURE_KD_D = {'feature_kd_d_opt': {'type': 'MLPFeatureLoss', 'loss_weight': 0.5}}
RESPONSE = {'response_kd_opt': {'type': 'L1Loss', 'loss_weight': 0.5}}
LDL = {'ldl_opt': {'type': 'L1Loss', 'loss_weight': 0.5}, 'ema_decay': 0.9}
R1 = {'r1_reg_weight': 10, 'net_d_reg_every': 2}
PERCEPTUAL = {'perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 0.1, 'conv2_2': 1.0},
                                 'perceptual_weight': 1.0, 'style_weight': 0.5}}
STAGES = [{'name': 'supervised', 'iters': 2, 'losses': ['pixel']},
          {'name': 'distill', 'iters': 2, 'losses': ['pixel', 'feature_kd'], 'train_d': True},
          {'name': 'adversarial', 'iters': 2, 'losses': ['pixel', 'feature_kd', 'gan'], 'weights': {'pixel': 0.5}}]


# ------------------------------------------------------------------------------------------------------------ the cases

Case = Callable[[Path], tuple[dict[str, Any], list[dict[str, Any]]]]  # options and batches
CASES: dict[str, Case] = {}
RESUMED: list[str] = []


def case(name: str, resumed: bool = False) -> Callable[[Case], Case]:
    """Adds a case, in the middle of which a run may be resumed."""
    def add(function: Case) -> Case:
        CASES[name] = function
        RESUMED.extend([name] * resumed)
        return function
    return add


def named(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, 'lq_path': [f'{i}.png', f'{i + 1}.png']} for i, item in enumerate(data)]


@case('pixel')
def pixel(folder):
    return model_options(folder), batches(ITERATIONS)


@case('perceptual')
def perceptual(folder):
    return model_options(folder, {**PERCEPTUAL, 'ema_decay': 0.9}), batches(ITERATIONS)


@case('response_kd', resumed=True)
def response_kd(folder):
    return model_options(folder, {**RESPONSE, **LDL}, teacher=save_teacher(folder)), batches(ITERATIONS)


@case('cached_teacher')
def cached_teacher(folder):
    data = [{**item, 'teacher': 1 - item['gt']} for item in batches(ITERATIONS)]
    return model_options(folder, RESPONSE, teacher={**save_teacher(folder), 'cache': 'folder'}), data


@case('feature_kd')
def feature_kd(folder):
    layers = {'layers': {'body.1': 'body.0', 'body.3': 'body.1'}}
    losses = {'feature_kd_opt': {**FEATURE_KD['feature_kd_opt'], **layers}, 'grad_clip': 0.05}
    return model_options(folder, losses, teacher=save_teacher(folder)), batches(ITERATIONS)


@case('contrastive', resumed=True)
def contrastive(folder):
    losses = {'contrastive_opt': {**test_mcadkd_model.SMALL['contrastive_opt'], 'negatives': 'in_batch+degraded'}}
    return model_options(folder, losses, teacher=save_teacher(folder)), named(batches(ITERATIONS))


@case('self_distill', resumed=True)
def self_distill(folder):
    losses = {'self_distill_opt': {'type': 'MSELoss', 'augment': True, 'start_iter': 1}, 'ema_decay': 0.9,
              'ema_ramp_up': 0.5}
    return model_options(folder, losses, network_g={'type': 'WithBatchNorm'}), batches(ITERATIONS)


def adversarial(order, mode):
    def options(folder):
        losses = {**RESPONSE, **FEATURE_KD, **FEATURE_KD_D, **R1, **LDL, 'update_order': order, 'gan_mode': mode}
        return gan_options(folder, losses, teacher=save_teacher(folder, network_d=TEACHER_D)), batches(ITERATIONS)
    return options


for order in ('simultaneous', 'g_first', 'd_first'):
    for mode in ('standard', 'relativistic'):
        case(f'{order}-{mode}', resumed=mode == 'relativistic')(adversarial(order, mode))


@case('net_d_iters', resumed=True)
def net_d_iters(folder):
    losses = {'net_d_iters': 2, 'net_d_init_iters': 2, 'ema_decay': 0.9, 'grad_clip': 0.5, **R1}
    return gan_options(folder, losses), batches(ITERATIONS)


@case('net_d_init_iters')
def net_d_init_iters(folder):
    return gan_options(folder, {'net_d_init_iters': 2, 'update_order': 'g_first'}), batches(ITERATIONS)


@case('lsgan')
def lsgan(folder):
    return gan_options(folder, {'gan_opt': {'type': 'GANLoss', 'gan_type': 'lsgan', 'loss_weight': 0.1},
                                'optim_g': {'type': 'SGD', 'lr': 1e-2}}), batches(ITERATIONS)


def sdakd(folder, second=None, third=None, losses=None):
    stages = [STAGES[0], {**STAGES[1], **(second or {})}, {**STAGES[2], **(third or {})}]
    losses = {'ema_decay': 0.9, 'stages': stages, 'total_iter': ITERATIONS, **(losses or {})}
    options = gan_options(folder, losses, model_type='SDAKDModel', teacher=save_teacher(folder, network_d=TEACHER_D))
    return options, batches(ITERATIONS)


@case('sdakd-fresh', resumed=True)
def sdakd_fresh(folder):
    return sdakd(folder, {'optimizer': 'fresh', 'adaptors': 'fresh'}, {'optimizer': 'fresh', 'ema': 'fresh'}, R1)


@case('sdakd-keep', resumed=True)
def sdakd_keep(folder):
    return sdakd(folder, {'optimizer': 'keep', 'ema': 'fresh'}, {'optimizer': 'keep', 'adaptors': 'fresh'})


@case('sdakd-default')
def sdakd_default(folder):
    options, data = sdakd(folder, losses={'total_iter': 12, 'update_order': 'd_first'})
    del options['train']['stages']
    return options, data


@case('sdakd-teacher-discriminator')
def sdakd_teacher_discriminator(folder):
    return sdakd(folder, third={'discriminator': 'teacher'}, losses={'gan_mode': 'relativistic'})


@case('sdakd-degradation', resumed=True)
def sdakd_degradation(folder):
    options = test_degradation.degrading(folder, l1_gt_usm=True, percep_gt_usm=False, gan_gt_usm=False)
    options.update(model_type='SDAKDModel', teacher=save_teacher(folder))
    options['train'].update({**LDL, 'stages': STAGES, 'total_iter': ITERATIONS})
    return options, list(test_degradation.synthetic(ITERATIONS))


@case('degradation', resumed=True)
def degradation(folder):
    usm = {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': True}
    return (test_degradation.degrading(folder, {**LDL, **PERCEPTUAL}, **usm),
            list(test_degradation.synthetic(ITERATIONS)))


@case('mcadkd', resumed=True)
def mcadkd(folder):
    return test_mcadkd_model.options(folder), named(batches(ITERATIONS))


@case('sdgan', resumed=True)
def sdgan(folder):
    losses = {'ema_decay': 0.9, 'self_distill_opt': {'type': 'MSELoss', 'loss_weight': 0.5, 'augment': True}}
    return gan_options(folder, losses, model_type='SDGANModel'), batches(ITERATIONS)


@case('sdgan-perceptual')
def sdgan_perceptual(folder):
    distance = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 1}, 'criterion': 'l1'}
    losses = {'ema_decay': 0.9, **PERCEPTUAL, 'gan_mode': 'relativistic', 'update_order': 'd_first',
              'self_distill_opt': distance}
    return gan_options(folder, losses, model_type='SDGANModel'), batches(ITERATIONS)


@case('sdstylegan2', resumed=True)
def sdstylegan2(folder):
    losses = {'self_distill_opt': {'type': 'MSELoss', 'augment': True}, 'grad_clip': 5}
    return test_sdstylegan2_model.options(folder, losses), test_sdstylegan2_model.images(ITERATIONS)


@case('diffusion', resumed=True)
def diffusion(folder):
    return test_diffusion_model.options(folder), batches(ITERATIONS)


@case('advkd-practical', resumed=True)
def advkd_practical(folder):
    losses = {'traj_reuse': 2, 'net_d_reg_every': 2, 'ema_decay': 0.9}
    return test_advkd_model.options(folder, losses), batches(ITERATIONS)


@case('advkd-self-distill')
def advkd_self_distill(folder):
    losses = {'self_distill_opt': {'type': 'MSELoss', 'loss_weight': 0.5}, 'ema_decay': 0.9, 'target': 'x0'}
    return test_advkd_model.options(folder, losses), batches(ITERATIONS)


@case('advkd-faithful', resumed=True)
def advkd_faithful(folder):
    losses = {'traj_reuse': 3, 'total_iter': 15}
    return test_advkd_model.faithful_options(folder, losses), batches(ITERATIONS)


@case('advkd-unconditional', resumed=True)
def advkd_unconditional(folder):
    size = test_advkd_unconditional.SIZE
    options = test_advkd_unconditional.student_options(
        folder, save_teacher(folder, test_advkd_unconditional.TEACHER), traj_reuse=2, total_iter=9)
    options['network_d'] = {**test_advkd_model.NETWORK_D, 'faithful': True}
    generator = torch.Generator().manual_seed(3)
    return options, [{'lq': torch.randn(3, 3 * size**2, generator=generator)} for _ in range(ITERATIONS)]


@case('gcfsr', resumed=True)
def gcfsr(folder):
    losses = {**RESPONSE, 'ldl_opt': {'type': 'L1Loss'}, 'self_distill_opt': {'type': 'L1Loss'}}
    return face_options(folder, losses, teacher=save_teacher(folder, GCFSR_TEACHER)), face_batches(ITERATIONS)


@case('gcfsr-sdakd')
def gcfsr_sdakd(folder):
    teacher = save_teacher(folder, GCFSR_TEACHER, {**GCFSR_D, 'narrow': 1 / 32})
    losses = {**FEATURE_KD, **FEATURE_KD_D, 'stages': STAGES, 'total_iter': ITERATIONS}
    return face_options(folder, losses, model_type='SDAKDModel', teacher=teacher), face_batches(ITERATIONS)


# ----------------------------------------------------------------------------------------------------------- the hashes


def digest(value: Any) -> str:
    """The first 16 digits of a SHA-256 over the bytes of nested tensors and numbers, with names and shapes."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            add([str(value.dtype), list(value.shape)])
            sha.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            add([f'dict of {len(value)}', *(part for item in value.items() for part in item)])
        elif isinstance(value, list | tuple):
            sha.update(f'list of {len(value)};'.encode())
            for part in value:
                add(part)
        else:
            sha.update(f'{value.hex() if isinstance(value, float) else value!r};'.encode())
    add(value)
    return sha.hexdigest()[:16]


def build(options: dict[str, Any]) -> Any:
    options['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [2, 5], 'gamma': 0.5}
    seed_everything(1)
    return build_model(options)


def parts(model: Any, folder: Path) -> dict[str, str]:
    """The hash of all that a further iteration depends on, by the hooks of BasicSR's loop and the files of `save`."""
    after = torch.rand(1)
    model.save(0, ITERATIONS)
    state = torch.load(folder / f'training_states/{ITERATIONS}.state', weights_only=True)
    nets = {name: getattr(model, name, None) for name in ('net_g', 'net_g_ema', 'net_d', 'aux')}
    found = {name: net.state_dict() for name, net in nets.items() if net is not None}
    found |= {f'optimizer {i}': optimizer for i, optimizer in enumerate(state['optimizers'])}
    found |= {'schedulers': state['schedulers'], 'own': state['own'], 'random numbers': after}
    pool = folder / f'training_states/{ITERATIONS}_pool_0.pth'
    if pool.exists():
        found['pool'] = torch.load(pool, weights_only=True)
    return {name: digest(value) for name, value in found.items()}


@contextmanager
def prepared():
    """One thread; VGG with random weights; a network with statistics."""
    def vgg(**_: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return SimpleNamespace(features=make_layers(cfgs['E'][:5], batch_norm=False))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.object(vgg_arch.vgg, 'vgg19', vgg), \
            mock.patch.dict(ARCH_REGISTRY._obj_map, WithBatchNorm=WithBatchNorm):
        yield
    torch.set_num_threads(threads)


def uninterrupted(name: str, folder: Path) -> dict[str, Any]:
    """What the record keeps of a case; a checkpoint in the middle is written on the way."""
    options, data = CASES[name](folder)
    model = build(options)
    logs = train_seeded(model, data[:MIDDLE])
    model.save(0, MIDDLE)
    return results(model, logs + train_seeded(model, data[MIDDLE:], MIDDLE + 1), folder)


def resumed(name: str, folder: Path) -> dict[str, Any]:
    """The same without the logs of the first half, by another model that goes on from that checkpoint."""
    options, data = CASES[name](folder)
    state = folder / f'training_states/{MIDDLE}.state'
    options['path']['resume_state'] = str(state)
    for label in 'gd':
        if (file := folder / f'models/net_{label}_{MIDDLE}.pth').exists():
            options['path'][f'pretrain_network_{label}'] = str(file)
    model = build(options)
    model.resume_training(torch.load(state, weights_only=True))
    return results(model, train_seeded(model, data[MIDDLE:], MIDDLE + 1), folder)


def results(model: Any, logs: list[dict[str, float]], folder: Path) -> dict[str, Any]:
    """Hashes of the parts, the last log as it is, and a hash of each iteration's."""
    exact = [{name: float(value).hex() for name, value in log.items()} for log in logs]
    return {'logs': [digest(log) for log in exact], 'last log': exact[-1], **parts(model, folder)}


def canary() -> str:
    """The gradients of BasicSR's networks after a step, without a line of this project."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        g, d = build_network({**EDSR, 'num_feat': 12}), build_network(UNET)
        nets = nn.ModuleList([g, d])
        optimizer = torch.optim.Adam(nets.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            image = g(torch.rand(2, 3, 16, 16))
            (nn.functional.softplus(d(image)).mean() + torch.randn(2, 3, 32, 32).sub(image).abs().mean()).backward()
            optimizer.step()
        return digest([nets.state_dict(), [p.grad for p in nets.parameters()]])


def build_record() -> dict[str, str]:
    """What the bits depend on besides the project."""
    with prepared():
        return {**{name: version(name) for name in ('torch', 'numpy', 'basicsr', 'diffusers')},
                'instructions': torch.backends.cpu.get_cpu_capability(), 'canary': canary()}


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope='module')
def record():
    content = json.loads(RECORD.read_text())
    here = build_record()
    other = [f'{key} {here[key]} instead of {value}' for key, value in content['build'].items() if here[key] != value]
    if other:
        pytest.skip(f'The bits were recorded by another build ({", ".join(other)}): they say nothing about this one. '
                    'Record at the commit before the change, by python -m tests.test_kd_models.test_golden.')
    return content['cases']


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs: parts by name, logs by iteration and name."""
    start = ITERATIONS - len(found['logs']) + 1
    pairs = enumerate(zip(recorded['logs'], found['logs'], strict=True), start)
    texts = [f'logs, first of iteration {min(other)}'] if (other := [i for i, (a, b) in pairs if a != b]) else []
    old, new = recorded['last log'], found['last log']
    texts += [f'{name} of iteration {ITERATIONS}: {old.get(name)} recorded, {new.get(name)} here'
              for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    names = (recorded.keys() | found.keys()) - {'logs', 'last log'}
    return texts + [name for name in sorted(names) if recorded.get(name) != found.get(name)]


def test_the_cases_are_the_recorded_ones():
    assert list(json.loads(RECORD.read_text())['cases']) == list(CASES)


@pytest.mark.parametrize('name', CASES)
def test_six_iterations_give_the_recorded_bits(name, record, tmp_path):
    with prepared():
        other = differences(record[name], uninterrupted(name, tmp_path))
        if name in RESUMED:
            second_half = {**record[name], 'logs': record[name]['logs'][MIDDLE:]}
            other += [f'after the resume: {text}' for text in differences(second_half, resumed(name, tmp_path))]
    assert not other, '\n' + '\n'.join(other)


def main() -> None:
    """Records all cases anew, by the build that runs them."""
    cases = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder, prepared():
            cases[name] = uninterrupted(name, Path(folder))
    RECORD.write_text(json.dumps({'build': build_record(), 'cases': cases}, indent=1) + '\n')


if __name__ == '__main__':
    main()
