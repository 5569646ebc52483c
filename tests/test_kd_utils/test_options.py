"""The option reader: what is read as what, what is refused and with which words, and what is left alone."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from kd_cli import prepare
from kd_utils import options, schema
from kd_utils.options import (
    OptionError,
    apply_aliases,
    check_files,
    check_options,
    find_option_file,
    load_yaml,
    nearest,
    parse_options,
    parse_yaml,
    teacher_cache,
)
from kd_utils.schema import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

LOSSES = {'pixel': 'L1Loss', 'ldl': 'L1Loss', 'perceptual': 'PerceptualLoss', 'gan': 'GANLoss', 'response_kd': 'L1Loss',
          'feature_kd': 'TestFeatureLoss', 'contrastive': None, 'self_distill': None}


@MODEL_REGISTRY.register()
class TestOurModel:
    __test__ = False
    losses = LOSSES
    degrades = True
    option_keys = {'train.queue': 'size', 'teacher.cache': 'path', 'sampler_steps': 'size', 'train.stages.grow': 'bool'}


@MODEL_REGISTRY.register()
class TestModelWithLoss(TestOurModel):
    losses = {'own_kd': 'L1Loss'}


@MODEL_REGISTRY.register()
class TestForeignModel:
    __test__ = False


@DATASET_REGISTRY.register()
class TestForeignDataset:
    __test__ = False


@DATASET_REGISTRY.register()
class TestOurDataset:
    __test__ = False
    option_keys = {'dataroot_gt': 'path!', 'shots': 'size!train'}


@LOSS_REGISTRY.register()
class TestFeatureLoss(nn.Module):
    __test__ = False
    supplied = ('layers', 'channels')
    options = ('layers', )

    def __init__(self, *, layers: dict[str, str], channels: dict[str, int], hidden: str | int = 'teacher',
                 loss_weight: float = 1.0) -> None:
        super().__init__()


@ARCH_REGISTRY.register()
class TestForeignArch(nn.Module):
    __test__ = False

    def __init__(self, width=8, **kwargs):
        super().__init__()


@ARCH_REGISTRY.register()
class TestForeignBlocks(nn.Module):
    __test__ = False

    def __init__(self, layers, reduction, num_feat, betas, upscale):
        super().__init__()


@LOSS_REGISTRY.register()
class TestForeignWeightsLoss(nn.Module):
    __test__ = False

    def __init__(self, weights, loss_weight=1.0):
        super().__init__()


@LOSS_REGISTRY.register()
class TestOurWeightsLoss(TestForeignWeightsLoss):
    __module__ = 'kd_losses.test_loss'


@METRIC_REGISTRY.register()
def test_foreign_metric(img, img2, window, **kwargs):
    return 0.0


test_foreign_metric.__test__ = False  # type: ignore[attr-defined]

# The dialect of the design page, whole.
DISTILLATION = """
name: sdakd
model_type: TestOurModel
scale: 4
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: ${KD_DATA}/gt
    dataroot_lq: ${KD_DATA}/lq
    filename_tmpl: '{}x4'
    io_backend: {type: disk}
    gt_size: 128
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 2
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
  val: {name: Set5, type: PairedImageDataset, dataroot_gt: a, dataroot_lq: b, io_backend: {type: disk}}
network_g: {type: RRDBNet, num_in_ch: 3, num_out_ch: 3, num_feat: 16, num_grow_ch: 8}
network_d: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 16}
teacher:
  network_g: {type: RRDBNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_grow_ch: 32}
  network_d: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 64}
  path: {pretrain_network_g: ~/t.pth, param_key_g: params_ema, strict_load_g: true, pretrain_network_d: ~/d.pth}
path: {pretrain_network_g: ~, strict_load_g: true, resume_state: ~}
train:
  optim_g: {type: Adam, lr: 1e-4, betas: [0.9, 0.99], weight_decay: 0}
  optim_d: {type: AdamW, lr: !!float 1e-4}
  scheduler: {type: MultiStepLR, milestones: [200000], gamma: 0.5}
  total_iter: 4e5
  warmup_iter: -1
  ema_decay: 0.999
  update_order: simultaneous
  gan_mode: standard
  net_d_iters: 1
  net_d_init_iters: 0
  net_d_reg_every: 16
  r1_reg_weight: 10
  stages:
    - {name: supervised,  iters: 50000,  losses: [pixel, perceptual]}
    - {name: distill,     iters: 50000,  losses: [pixel, perceptual, feature_kd], train_d: true}
    - {name: adversarial, iters: 300000, losses: [pixel, perceptual, feature_kd, gan], train_d: true,
       optimizer: keep, discriminator: student, weights: {feature_kd: 0.5}}
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
  perceptual_opt: {type: PerceptualLoss, layer_weights: {conv5_4: 1}, perceptual_weight: 1.0, criterion: l1}
  ldl_opt: {type: L1Loss, loss_weight: 1.0}
  gan_opt: {type: GANLoss, gan_type: vanilla, loss_weight: 5e-3}
  response_kd_opt: {type: L1Loss}
  feature_kd_opt: {type: TestFeatureLoss, loss_weight: 1.0, hidden: teacher, layers: {body.16: body.4}}
  feature_kd_d_opt: {loss_weight: 1.0, hidden: 32, layers: {conv2: conv2, conv5: conv5}}
val:
  val_freq: 5e3
  save_img: false
  metrics:
    psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: true, better: higher}
    niqe: {type: calculate_niqe, crop_border: 4, better: lower}
logger: {print_freq: 100, save_checkpoint_freq: 5e3, use_tb_logger: true, wandb: {project: ~, resume_id: ~}}
dist_params: {backend: nccl, port: 29500}
find_unused_parameters: false
"""

# The keys of a stock SRGAN file.
SRGAN = """
name: 004_MSRGAN_x4
model_type: SRGANModel
scale: 4
num_gpu: 1  # set num_gpu: 0 for cpu mode
manual_seed: 0
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR_sub
    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X4_sub
    filename_tmpl: '{}'
    io_backend:
      type: disk
    gt_size: 128
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
  val:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: datasets/Set14/GTmod12
    dataroot_lq: datasets/Set14/LRbicx4
    io_backend:
      type: disk
network_g: {type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 16, upscale: 4}
network_d: {type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 64}
path:
  pretrain_network_g: experiments/001_MSRResNet_x4/models/net_g_1000000.pth
  strict_load_g: true
  resume_state: ~
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  optim_d: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [50000, 100000, 200000, 300000], gamma: 0.5}
  total_iter: 400000
  warmup_iter: -1  # no warm up
  pixel_opt: {type: L1Loss, loss_weight: !!float 1e-2, reduction: mean}
  perceptual_opt:
    type: PerceptualLoss
    layer_weights:
      'conv5_4': 1  # before relu
    vgg_type: vgg19
    use_input_norm: true
    range_norm: false
    perceptual_weight: 1.0
    style_weight: 0
    criterion: l1
  gan_opt: {type: GANLoss, gan_type: vanilla, real_label_val: 1.0, fake_label_val: 0.0, loss_weight: !!float 5e-3}
  net_d_iters: 1
  net_d_init_iters: 0
val:
  val_freq: !!float 5e3
  save_img: true
  metrics:
    psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: false}
logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb: {project: ~, resume_id: ~}
dist_params: {backend: nccl, port: 29500}
"""

# The keys that Real-ESRGAN's training files add.
REAL_ESRGAN = """
l1_gt_usm: True
percep_gt_usm: True
gan_gt_usm: False
resize_prob: [0.2, 0.7, 0.1]
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]
second_blur_prob: 0.8
resize_prob2: [0.3, 0.4, 0.3]
resize_range2: [0.3, 1.2]
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [30, 95]
gt_size: 256
queue_size: 180
train_set:
  name: DF2K+OST
  type: RealESRGANDataset
  dataroot_gt: datasets/DF2K
  meta_info: datasets/DF2K/meta_info.txt
  io_backend: {type: disk}
  blur_kernel_size: 21
  kernel_list: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
  kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
  sinc_prob: 0.1
  blur_sigma: [0.2, 3]
  betag_range: [0.5, 4]
  betap_range: [1, 2]
  blur_kernel_size2: 21
  kernel_list2: ['iso', 'aniso']
  kernel_prob2: [0.5, 0.5]
  sinc_prob2: 0.1
  blur_sigma2: [0.2, 1.5]
  betag_range2: [0.5, 4]
  betap_range2: [1, 2]
  final_sinc_prob: 0.8
  gt_size: 256
  use_hflip: True
  use_rot: False
  use_shuffle: true
  num_worker_per_gpu: 5
  batch_size_per_gpu: 12
  dataset_enlarge_ratio: 1
  prefetch_mode: ~
"""

TEST = """
name: test
model_type: SRModel
scale: 4
num_gpu: 1
datasets:
  test_1: {name: Set5, type: SingleImageDataset, dataroot_lq: datasets/Set5/LRbicx4, io_backend: {type: disk}}
  test_2: {name: Set14, type: SingleImageDataset, dataroot_lq: datasets/Set14/LRbicx4, io_backend: {type: disk}}
network_g: {type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 16, upscale: 4}
path: {pretrain_network_g: net_g.pth, strict_load_g: true}
val: {save_img: true, suffix: ~}
"""

# The key set of MCAD-KD's own files, shortened to the keys that differ from BasicSR's.
MCADKD = """
name: MCADKD_SwinIR_x2
model_type: MCADKD
network_g: {type: SwinIR, upscale: 2, embed_dim: 60}
network_t: {type: SwinIR, upscale: 2, embed_dim: 180}
discriminator: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 64}
path:
  pretrain_network_g: ~
  resume_state: ~
  pretrain_network_t: /path/to/teacher_checkpoint.pth
  param_key_t: params
  strict_load_t: true
  strict_load_g: false
train:
  resp_kd_opt: {type: L1Loss, loss_weight: 0.5, reduction: mean}
  contrastive_opt: {type: hybrid, patch_size: 48, num_patches: 8, image_weight: 0.3, patch_weight: 0.7,
                    loss_weight: 0.05}
  adversarial_opt: {type: GANLoss, gan_type: vanilla, loss_weight: 0.01}
"""

REMOVE = object()


def change(opt: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of `opt` with another value under a dotted key, or without the key."""
    opt = copy.deepcopy(opt)
    section: Any = opt
    *parents, last = [int(part) if part.isdigit() else part for part in key.split('.')]
    for part in parents:
        section = section[part]
    if value is REMOVE:
        del section[last]
    else:
        section[last] = value
    return opt


def read(text: str, **changes: Any) -> dict[str, Any]:
    opt = parse_yaml(text, 'test')
    for key, value in changes.items():
        opt = change(opt, key.replace('__', '.'), value)
    return opt


def distillation() -> dict[str, Any]:
    return {**read(DISTILLATION), 'is_train': True}


def refusal(opt: dict[str, Any]) -> str:
    with pytest.raises(OptionError) as caught:
        check_options(opt, LOSSES)
    return str(caught.value)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes an option file into the working directory, a fresh one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('KD_DATA', raising=False)

    def write_file(text: str, name: str = 'opt.yml') -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


# -------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(('text', 'value'), [
    ('1e-4', 1e-4), ('1e5', 1e5), ('1.e-3', 1e-3), ('-2E+3', -2000.0), ('.5e1', 5.0), ('!!float 2e-4', 2e-4), ('3', 3),
    ('0.5', 0.5), ('~', None), ('true', True), ('[1, 2e0]', [1, 2.0]), ('{a: 1}', {'a': 1}), ("'1e-4'", '1e-4'),
    ('1e-4x', '1e-4x'), ('e5', 'e5'), ('body.16', 'body.16'),
])
def test_values(text, value):
    result = parse_yaml(text, 'test')
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize('tag', ['!!python/object/apply:os.system', '!!python/object/new:os.system',
                                 '!!python/name:os.system', '!!python/module:os', '!custom'])
def test_yaml_with_code_runs_nothing(write, tmp_path, tag):
    path = write(f'name: a\nx: {tag} ["touch {tmp_path}/marker"]\n')
    with pytest.raises(OptionError) as caught:
        load_yaml(path)
    assert f'opt.yml:2: the tag `{tag}` is not allowed' in str(caught.value)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(('text', 'fragments'), [
    ('a: 1\nb:\n  lr: 1\n  lr: 2\n', ['opt.yml:4:', 'the key `lr` is there twice, first in line 3']),
    ('{a: 1, a: 2}', ['opt.yml:1:', '`a` is there twice']),
    ('a: 1\n b: 2\n', ['opt.yml:2:']),
    ('a: [1, 2\nb: 3\n', ['opt.yml:2:']),
    ('a: 1\n\tb: 2\n', ['opt.yml:2:', "'\\t'"]),
    ('a: !!float x\n', ['opt.yml:1:', 'cannot be read']),
    ('a: !!bool maybe\n', ['opt.yml:1:', 'cannot be read']),
    ('a: 1\n---\nb: 2\n', ['opt.yml:2:', 'another document']),
    ('a: *b\n', ['opt.yml:1:', 'undefined alias']),
    ('[1, 2]: 3\n', ['opt.yml:1:', 'unhashable key']),
    ('a: &a [*a]\n', ['refers to itself']),
    ('a: ' + '[' * 3000, ['refers to itself or has more than']),
    ('- 1\n- 2\n', ['holds no options']),
    ('', ['holds no options']),
    ('just words', ['holds no options']),
    ('a: \x01', ['opt.yml', 'Correct the YAML']),
])
def test_broken_yaml_is_refused_with_file_and_line(write, text, fragments):
    with pytest.raises(OptionError) as caught:
        load_yaml(write(text))
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_growing_file_is_refused(write):
    lines = ['a0: &a0 [x, x]'] + [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 10)]
    with pytest.raises(OptionError, match='more than 100000 values'):
        load_yaml(write('\n'.join(lines)))


def test_repeated_sections_are_copies_and_merges_may_override(write):
    opt = load_yaml(write('a: &a {type: Adam, lr: 1}\nb: *a\nc: {<<: *a, lr: 2}\nd: {<<: *a, lr: 3}\n'))
    assert opt['a'] == opt['b'] and opt['a'] is not opt['b']
    assert opt['c'] == {'type': 'Adam', 'lr': 2} and opt['d']['lr'] == 3


def test_binary_and_folder(write, tmp_path):
    (tmp_path / 'binary.yml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(OptionError, match='UTF-8'):
        load_yaml(tmp_path / 'binary.yml')
    with pytest.raises(OptionError, match='no option file'):
        load_yaml(tmp_path)


def test_environment(write, monkeypatch):
    path = write('a: ${KD_DATA}/x\nb: ["${NET}-${KD_DATA}"]\n')
    monkeypatch.delenv('NET', raising=False)
    with pytest.raises(OptionError, match=r'`b\[0\]` uses \$\{NET\}, an environment variable that is not set'):
        load_yaml(path)
    monkeypatch.setenv('NET', 'edsr')
    assert load_yaml(path) == {'a': 'datasets/x', 'b': ['edsr-datasets']}
    monkeypatch.setenv('KD_DATA', '/data')
    assert load_yaml(path) == {'a': '/data/x', 'b': ['edsr-/data']}


def test_option_files_are_found(write, tmp_path, monkeypatch):
    shipped = tmp_path / 'shipped'
    monkeypatch.setattr(options, '_shipped_folder', lambda: shipped)
    write('name: shipped', 'shipped/train/SDAKD/half.yml')
    write('name: own', 'train_edsr.yml')
    assert find_option_file('train_edsr') == Path('train_edsr.yml')
    assert find_option_file(str(tmp_path / 'train_edsr.yml')).read_text() == 'name: own'
    assert find_option_file('train/SDAKD/half').samefile(shipped / 'train/SDAKD/half.yml')
    write('name: nearer', 'train/SDAKD/half.yml')
    assert find_option_file('train/SDAKD/half.yml').read_text() == 'name: nearer'
    with pytest.raises(OptionError, match='Did you mean `train/SDAKD/half.yml`'):
        find_option_file('train/SDAKD/hlaf.yml')
    with pytest.raises(OptionError, match='Did you mean `train_edsr.yml`'):
        find_option_file('train_edrs.yml')
    with pytest.raises(OptionError, match='Name a YAML file'):
        find_option_file('zzz')


def test_shipped_folder_is_in_the_checkout():
    assert options._shipped_folder() == Path(options.__file__).resolve().parents[1] / 'options'


# ------------------------------------------------------------------------------------------------------ command line


def parse(path: str, *arguments: str, root: str = 'root', is_train: bool = True) -> tuple[dict[str, Any], Any]:
    return parse_options(['-opt', path, *arguments], root, is_train)


def test_training_options_are_basicsrs(write, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    opt, args = parse(write(DISTILLATION), '--auto_resume', '--force_yml', 'teacher:cache=~/cache')
    assert opt['teacher']['cache'] == '/home/me/cache'
    assert opt['datasets']['train']['phase'] == 'train' and opt['datasets']['val']['phase'] == 'val'
    assert opt['datasets']['train']['scale'] == 4
    assert opt['datasets']['train']['dataroot_gt'] == 'datasets/gt'
    assert opt['teacher']['path']['pretrain_network_g'] == '/home/me/t.pth'
    assert opt['path'] == {
        'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None,
        'experiments_root': 'root/experiments/sdakd', 'models': 'root/experiments/sdakd/models',
        'training_states': 'root/experiments/sdakd/training_states', 'log': 'root/experiments/sdakd',
        'visualization': 'root/experiments/sdakd/visualization'}
    assert {key: opt[key] for key in ('auto_resume', 'is_train', 'dist', 'rank', 'world_size', 'root_path')} == {
        'auto_resume': True, 'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'root_path': 'root'}
    assert (args.launcher, args.local_rank, args.loop, args.messages) == ('none', 0, 'kd', [])
    check_options(opt, LOSSES)


def test_parsing_equals_basicsrs(write, monkeypatch):
    """Where the stock reader can read a file, ours reads the same."""
    from basicsr.utils import options as stock
    path = write(SRGAN.replace('num_gpu: 1', 'num_gpu: 0'))
    flags = ['--debug', '--force_yml', 'train:ema_decay=0.5', 'scale=4']
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', path, *flags])
    expected, _ = stock.parse_options('root', is_train=True)
    opt, _ = parse(path, *flags)
    assert opt.pop('root_path') == 'root' and opt['val'].pop('suffix') is None
    assert opt == expected


def test_a_validation_set_may_have_a_scale_of_its_own(write):
    """For networks of several scales; BasicSR would replace it."""
    opt, _ = parse(write(DISTILLATION), '--force_yml', 'datasets:val:scale=2', 'datasets:train:scale=2')
    assert [opt['datasets'][name]['scale'] for name in ('train', 'val')] == [4, 2]


def test_seeds_nothing(write):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    opt, _ = parse(write(DISTILLATION.replace('manual_seed: 0\n', '')))
    assert 'manual_seed' not in opt and torch.equal(torch.random.get_rng_state(), state)


def test_what_may_be_left_out(write):
    opt, _ = parse(write('name: a\ndatasets: {test_1: {name: b}}\n'), is_train=False)
    assert opt['num_gpu'] == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert opt['val'] == {'save_img': False, 'suffix': None}
    assert opt['path'] == {'results_root': 'root/results/a', 'log': 'root/results/a',
                           'visualization': 'root/results/a/visualization'}
    opt, _ = parse(write('name: a\nlogger: {print_freq: 1}\npath: ~\nval: {val_freq: 1}\n'))
    assert opt['logger'] == {'print_freq': 1, 'use_tb_logger': False}
    assert opt['val'] == {'val_freq': 1, 'save_img': False, 'suffix': None}
    assert 'val' not in parse(write('name: a\n'))[0]


def test_every_value_in_path_can_become_a_folder(write):
    opt, _ = parse(write('name: a\n'))
    assert all(isinstance(value, str) for value in opt['path'].values())


def test_debug(write):
    opt, _ = parse(write(DISTILLATION), '--debug')
    assert opt['name'] == 'debug_sdakd' and opt['path']['log'].endswith('debug_sdakd')
    assert opt['val']['val_freq'] == 8
    assert opt['logger']['print_freq'] == 1 and opt['logger']['save_checkpoint_freq'] == 8


def test_missing_gpu_is_a_message(write, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    opt, args = parse(write(SRGAN))
    assert opt['num_gpu'] == 0
    assert args.messages == ['`num_gpu: 1`, but there is no CUDA device here: running on the CPU.']


def test_gpus_are_counted(write, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    assert parse(write('name: a\nnum_gpu: auto\n'))[0]['num_gpu'] == 3
    assert parse(write('name: a\nnum_gpu: 2\n'))[0]['num_gpu'] == 2


def test_flags(write, monkeypatch):
    path = write('name: a\n')
    assert parse(path, '--local_rank', '3')[1].local_rank == 3
    assert parse(path, '--local-rank=2')[1].local_rank == 2
    monkeypatch.setenv('LOCAL_RANK', '1')
    opt, args = parse(path, '--launcher', 'pytorch', '--loop', 'basicsr')
    assert (args.local_rank, args.launcher, args.loop, opt['dist']) == (1, 'pytorch', 'basicsr', True)
    for wrong in (['--launcher', 'mpi'], ['--loop', 'own'], ['--unknown']):
        with pytest.raises(SystemExit):
            parse(path, *wrong)


def test_force_yml(write):
    forced = ['train:optim_g:lr=1e-4', 'a=[1,2]', 'b=~', 'c={d: 1e5}', 'e=x=y', 'f=-3', 'g=text', 'h: i = 2 ',
              'new:deep:key=true', 'empty=', 'quoted="1"', 'data=${KD_DATA}/x', 'none:below=1']
    opt, _ = parse(write('name: a\ntrain: {optim_g: {lr: 0.1}}\nnone: ~\n'), '--force_yml', *forced)
    assert opt['train']['optim_g']['lr'] == 1e-4
    assert (opt['a'], opt['b'], opt['c'], opt['e'], opt['f'], opt['g'], opt['h']) == (
        [1, 2], None, {'d': 1e5}, 'x=y', -3, 'text', {'i': 2})
    assert opt['new'] == {'deep': {'key': True}} and opt['empty'] is None and opt['quoted'] == '1'
    assert opt['data'] == 'datasets/x' and opt['none'] == {'below': 1}


def test_force_yml_twice(write):
    opt, _ = parse(write('name: a\n'), '--force_yml', 'a=1', 'b=2', '--force_yml', 'c=3', 'a=4')
    assert (opt['a'], opt['b'], opt['c']) == (4, 2, 3)


def test_home_in_weights_of_our_losses(write, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    opt, _ = parse(write('name: a\ntrain:\n  a_opt: {type: TestOurWeightsLoss, weights: ~/vgg.pth}\n'
                         '  b_opt: {type: TestForeignWeightsLoss, weights: ~/x}\n  c_opt: 3\n  4_opt: {type: [1]}\n'))
    assert opt['train']['a_opt']['weights'] == '/home/me/vgg.pth' and opt['train']['b_opt']['weights'] == '~/x'


def test_weights_of_a_models_default_loss_are_a_file_too(write, monkeypatch, files):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setitem(TestOurModel.losses, 'own', 'TestOurWeightsLoss')
    opt, _ = parse(write('name: a\nmodel_type: TestOurModel\ntrain:\n  own_opt: {weights: ~/vgg.pth}\n'))
    assert opt['train']['own_opt']['weights'] == '/home/me/vgg.pth'
    files.update(model_type='TestOurModel')
    assert '`train.own_opt.weights`: `gone.pth` is missing' in \
        file_refusal(change(files, 'train.own_opt', {'weights': 'gone.pth'}))


def test_an_lmdb_may_end_in_a_slash(write):
    opt, _ = parse(write(DISTILLATION.replace('${KD_DATA}/gt', 'gt.lmdb/')))
    assert opt['datasets']['train']['dataroot_gt'] == 'gt.lmdb'


@pytest.mark.parametrize(('entry', 'fragment'), [
    ('train', 'Write it as train:optim_g:lr=1e-4'),
    ('train::lr=1', 'Write it as train:optim_g:lr=1e-4'),
    ('=1', 'Write it as train:optim_g:lr=1e-4'),
    ('name:x=1', "`name` cannot be 'a'. Write a section"),
    ('list:0:x=1', '`list` cannot be [1]. Write a section'),
    ('x=[1', '--force_yml x=[1:1: '),
    ('x={a: 1, a: 2}', '`a` is there twice'),
    ('x=!!python/object/apply:os.system ["touch marker"]', 'is not allowed'),
    ('x=__import__("os").system("touch marker")', None),
    ('__class__"]=1;import os;os.system("touch marker");opt["x=1', None),
])
def test_force_yml_refuses_and_runs_nothing(write, tmp_path, entry, fragment):
    path = write('name: a\nlist: [1]\n')
    if fragment is None:
        parse(path, '--force_yml', entry)  # a text or a strange key, to be refused by the check
    else:
        with pytest.raises(OptionError) as caught:
            parse(path, '--force_yml', entry)
        assert fragment in str(caught.value)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(('text', 'fragment'), [
    ('scale: 4', '`name` cannot be ~. Write text'),
    ('name: 5', '`name` cannot be 5. Write text, in quotes where it looks like a number, without / and'),
    ('name: ../datasets', "`name` cannot be '../datasets'. Write text"),
    ('name: a\\b', '`name` cannot be'),
    ('name: ..', "`name` cannot be '..'."),
    ('name: .', "`name` cannot be '.'."),
    ('name: a\nteacher: {path: abc}', "`teacher.path` cannot be 'abc'. Write a section"),
    ('name: a\nnum_gpu: many', "`num_gpu` cannot be 'many'. Write `auto` or a number of GPUs."),
    ('name: a\nnum_gpu: true', '`num_gpu` cannot be True'),
    ('name: a\ndatasets: [1]', '`datasets` cannot be [1]. Write a section'),
    ('name: a\ndatasets: {train: here}', "`datasets.train` cannot be 'here'. Write a section"),
    ('name: a\npath: here', "`path` cannot be 'here'. Write a section"),
    ('name: a\nlogger: 3', '`logger` cannot be 3. Write a section'),
    ('name: a\nval: true', '`val` cannot be True. Write a section'),
])
def test_what_cannot_be_parsed(write, text, fragment):
    with pytest.raises(OptionError) as caught:
        parse(write(text))
    assert fragment in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- aliases


def test_mcadkd_keys_are_renamed_and_reported(write):
    opt, args = parse(write(MCADKD))
    assert opt['model_type'] == 'MCADKDModel'
    assert opt['teacher'] == {
        'network_g': {'type': 'SwinIR', 'upscale': 2, 'embed_dim': 180},
        'path': {'pretrain_network_g': '/path/to/teacher_checkpoint.pth', 'param_key_g': 'params',
                 'strict_load_g': True}}
    assert opt['network_d'] == {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64}
    assert opt['train']['response_kd_opt']['loss_weight'] == 0.5 and opt['train']['gan_opt']['gan_type'] == 'vanilla'
    assert not {'network_t', 'discriminator'} & opt.keys()
    assert not {'pretrain_network_t', 'param_key_t', 'strict_load_t'} & opt['path'].keys()
    assert not {'resp_kd_opt', 'adversarial_opt'} & opt['train'].keys()
    assert args.messages[0] == '`model_type: MCADKD` is read as `model_type: MCADKDModel`.'
    assert '`network_t` is read as `teacher.network_g`.' in args.messages and len(args.messages) == 9
    assert opt['train']['contrastive_opt']['level'] == 'hybrid' and 'type' not in opt['train']['contrastive_opt']


def test_older_names_of_basicsr_are_renamed():
    opt = {'model_type': 'TestOurModel', 'path': {'pretrain_model_g': 'g.pth', 'strict_load': False}}
    assert len(apply_aliases(opt)) == 2
    assert opt['path'] == {'pretrain_network_g': 'g.pth', 'strict_load_g': False}


def test_old_and_new_key_together_are_refused():
    opt = read(MCADKD)
    opt['network_d'] = {'type': 'VGGStyleDiscriminator'}
    with pytest.raises(OptionError, match='`discriminator` and `network_d` are the same option'):
        apply_aliases(opt)


def test_aliases_leave_other_projects_alone():
    opt = {'model_type': 'TestForeignModel', 'discriminator': {}, 'network_t': {}}
    assert apply_aliases(opt) == [] and set(opt) == {'model_type', 'discriminator', 'network_t'}
    assert apply_aliases({'model_type': 'TestOurModel', 'discriminator': {'type': 'x'}})
    assert apply_aliases({'model_type': ['odd'], 'path': None, 'train': 3}) == []


# ------------------------------------------------------------------------------------------------------ what is valid


def test_the_designs_sample_is_accepted():
    assert check_options(distillation(), LOSSES) == ['`train.ldl_opt` is on in no stage.',
                                                     '`train.response_kd_opt` is on in no stage.']


def test_stock_srgan_is_accepted_by_both_kinds_of_model(capsys):
    opt = {**read(SRGAN), 'is_train': True}
    before = copy.deepcopy(opt)
    assert check_options(opt, LOSSES) == []
    assert check_options({**opt, 'model_type': 'TestOurModel'}, LOSSES) == []
    assert opt == before, 'checking changes nothing'
    assert capsys.readouterr().out == '', 'the registry prints at a fallback, the check must not'


@pytest.mark.parametrize('model', ['RealESRGANModel', 'TestOurModel'])
def test_real_esrgan_is_accepted(capsys, model):
    degradation = read(REAL_ESRGAN)
    opt = {**read(SRGAN), 'model_type': model, 'datasets': {'train': degradation.pop('train_set')}, **degradation}
    opt['network_g'] = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 23}
    opt['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}
    assert check_options(opt, LOSSES) == ['`val` has no dataset `datasets.val`: nothing will be validated.']
    assert capsys.readouterr().out == ''


def test_a_test_needs_no_training_section(write):
    opt, _ = parse(write(TEST), is_train=False)
    assert check_options(opt, LOSSES) == []
    assert check_options({**opt, 'model_type': 'TestOurModel'}, LOSSES) == []


def test_without_stages_every_loss_is_on():
    opt = change(distillation(), 'train.stages', REMOVE)
    assert check_options(opt, LOSSES) == []


@pytest.mark.parametrize(('key', 'value'), [
    ('network_g', {'type': 'SwinIR', 'img_size': 48, 'img_range': 1., 'depths': [6, 6], 'mlp_ratio': 2,
                   'upsampler': 'pixelshuffle', 'resi_connection': '1conv', 'embed_dim': 60, 'num_heads': [6, 6]}),
    ('network_g', {'type': 'SwinIR', 'img_size': [16, 16]}),
    ('train.optim_g', {'type': 'Adam', 'lr': 0, 'betas': [0, 0.9], 'eps': 0}),
    ('train.pixel_opt', {'type': 'TestForeignWeightsLoss', 'weights': [1, 2]}),
    ('train.net_d_iters', 399999),
    ('datasets.train.color', 'y'),
    ('network_g', {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'res_scale': 0.1, 'rgb_mean': [0.4, 0.4, 0.4]}),
    ('network_g', {'type': 'SRVGGNetCompact', 'num_conv': 16, 'act_type': 'prelu'}),
    ('network_g', {'type': 'SRVGGNetCompact_basicsr'}),
    ('network_g', {'type': 'TestForeignArch', 'width': 4, 'anything': 'goes'}),
    ('train.optim_g', {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'nesterov': True}),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [2e5, 3e5], 'restart_weights': [1, 0.5],
                         'eta_min': 1e-7}),
    ('train.scheduler', {'type': 'MultiStepRestartLR', 'milestones': [1], 'restarts': [0, 9],
                         'restart_weights': [1, 1]}),
    ('train.scheduler', REMOVE),
    ('train.perceptual_opt', None),
    ('train.queue', 8),
    ('teacher.cache', 'folder'),
    ('sampler_steps', 4),
    ('train.stages.0.grow', True),
    ('train.stages.0.phase', 2),
    ('train.stages.1.train_d', False),
    ('path.ignore_resume_networks', ['network_d']),
    ('datasets.val.type', 'TestForeignDataset'),
    ('datasets.val', {'name': 'a', 'type': 'TestOurDataset', 'dataroot_gt': 'x', 'io_backend': {'type': 'disk'}}),
    ('datasets.val.io_backend', {'type': 'lmdb'}),
    ('datasets.train.prefetch_mode', 'cpu'),
    ('datasets.train.num_worker_per_gpu', 0),
    ('path.pretrain_network_d', 'd.pth'),
    ('val.metrics.psnr', {'type': 'test_foreign_metric', 'window': 3, 'anything': 1}),
    ('val.metrics', None),
])
def test_valid_variants(key, value):
    opt = distillation()
    if key == 'train.perceptual_opt':
        opt['train']['stages'] = REMOVE
        opt = change(opt, 'train.stages', REMOVE)
    check_options(change(opt, key, value), LOSSES)


def test_the_teachers_discriminator_can_be_the_critic():
    opt = change(distillation(), 'train.stages.2.discriminator', 'teacher')
    check_options(opt, LOSSES)
    for key in ('teacher.network_d', 'teacher.path.pretrain_network_d'):
        opt = change(opt, key, REMOVE)
    assert '`train.feature_kd_d_opt` needs `teacher.network_d`, which is missing.' in refusal(opt)
    message = refusal(change(opt, 'train.feature_kd_d_opt', REMOVE))
    assert '`train.stages[2].discriminator: teacher` needs `teacher.network_d`' in message


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(('key', 'value', 'fragments'), [
    # unknown keys, in every section
    ('scael', 4, ['Unknown key `scael`. Did you mean `scale`?']),
    ('zzzzzz', 4, ['Unknown key `zzzzzz`. Choose from: ', ', ...']),
    ('network_x', {'type': 'EDSR'}, ['Unknown key `network_x`.']),
    ('datasets.train.use_flip', True, ['`datasets.train.use_flip`', 'Did you mean `use_hflip`?']),
    ('datasets.val.io_backend.tpye', 'disk', ['`datasets.val.io_backend.tpye`', '`type`']),
    ('path.resume', 'x', ['Unknown key `path.resume`. Did you mean `resume_state`?']),
    ('teacher.optim', {}, ['Unknown key `teacher.optim`.', 'cache, network_d, network_g, path']),
    ('teacher.path.strict_load', True, ['`teacher.path.strict_load`', '`strict_load_']),
    ('train.stage', [], ['Unknown key `train.stage`. Did you mean `stages`?']),
    ('train.pixel_op', {}, ['Did you mean `pixel_opt`?']),
    ('train.stages.1.loses', [], ['Unknown key `train.stages[1].loses`. Did you mean `losses`?']),
    ('val.sufix', 'a', ['Unknown key `val.sufix`. Did you mean `suffix`?']),
    ('val.metrics.psnr.test_y_chanel', True, ['`val.metrics.psnr.test_y_chanel`', '`test_y_channel`']),
    ('logger.print_frequency', 1, ['`logger.print_frequency`', '`print_freq`']),
    ('logger.wandb.projekt', 'a', ['`logger.wandb.projekt`', '`project`']),
    ('dist_params.prot', 1, ['`dist_params.prot`', '`port`']),
    ('network_g.num_feats', 4, ['Unknown key `network_g.num_feats`. Did you mean `num_feat`?']),
    ('teacher.network_g.num_blok', 4, ['`teacher.network_g.num_blok`', '`num_block`']),
    ('network_g', {'type': 'SwinIR', 'embed_dimm': 60}, ['`network_g.embed_dimm`', '`embed_dim`']),
    ('train.pixel_opt.loss_wieght', 1, ['`train.pixel_opt.loss_wieght`', '`loss_weight`']),
    ('train.feature_kd_opt.channels', {}, ['Unknown key `train.feature_kd_opt.channels`.']),
    ('train.optim_g.beta', [0.9, 0.99], ['`train.optim_g.beta`', '`betas`']),
    ('train.scheduler.gama', 0.5, ['`train.scheduler.gama`', '`gamma`']),
    # names
    ('model_type', 'TestOurModle', ['`model_type`: no model is called `TestOurModle`. Did you mean `TestOurModel`?']),
    ('model_type', REMOVE, ['`model_type` is missing.']),
    ('network_g.type', 'RDBNet', ['`network_g.type`: no network is called `RDBNet`. Did you mean `RRDBNet`?']),
    ('network_d.type', 'UNetDiscriminator', ['Did you mean `UNetDiscriminatorSN`?']),
    ('network_g.type', REMOVE, ['`network_g.type` is missing.']),
    ('network_g.type', 7, ['`network_g.type` cannot be 7.']),
    ('teacher.network_d.type', 'zzzz', ['`teacher.network_d.type`', ', ... One of', 'must be imported']),
    ('datasets.train.type', 'PairedImagesDataset', ['no dataset is called', '`PairedImageDataset`']),
    ('val.metrics.psnr.type', 'psnr', ['`val.metrics.psnr.type`: no metric is called `psnr`.', 'calculate_psnr']),
    ('train.pixel_opt.type', 'L2Loss', ['`train.pixel_opt.type`: no loss is called `L2Loss`. Did you mean `L1Loss`?']),
    ('train.contrastive_opt', {'loss_weight': 1.0}, ['`train.contrastive_opt.type` is missing.']),
    ('train.optim_g.type', 'Adamm', ['no optimizer is called `Adamm`. Did you mean `Adam`?']),
    ('train.scheduler.type', 'MultiStep', ['no scheduler is called `MultiStep`.', 'MultiStep']),
    # missing keys
    ('scale', REMOVE, ['`scale` is missing. Write a whole number above 0.']),
    ('network_g', REMOVE, ['`network_g` is missing.']),
    ('train', REMOVE, ['`train` is missing.']),
    ('logger', REMOVE, ['`logger` is missing.']),
    ('logger.print_freq', REMOVE, ['`logger.print_freq` is missing. Write a whole number above 0']),
    ('datasets.train', REMOVE, ['`datasets.train` is missing.']),
    ('datasets.train.dataroot_gt', REMOVE, ['`datasets.train.dataroot_gt` is missing. Write a path.']),
    ('datasets.train.use_rot', REMOVE, ['`datasets.train.use_rot` is missing. Write true or false.']),
    ('datasets.train.batch_size_per_gpu', REMOVE, ['`datasets.train.batch_size_per_gpu` is missing.']),
    ('datasets.val.io_backend', REMOVE, ['`datasets.val.io_backend` is missing.']),
    ('datasets.val.io_backend.type', REMOVE, ['`datasets.val.io_backend.type` is missing.', '`disk`']),
    ('network_g.num_in_ch', REMOVE, ['`network_g.num_in_ch` is missing.']),
    ('teacher.network_g', REMOVE, ['`teacher.network_g` is missing.']),
    ('teacher.path', REMOVE, ['`teacher.path` is missing.']),
    ('teacher.path.pretrain_network_g', REMOVE, ['`teacher.path.pretrain_network_g` is missing', 'teaches nothing']),
    ('teacher.path.pretrain_network_d', None, ['`teacher.path.pretrain_network_d` is missing']),
    ('train.optim_g', REMOVE, ['`train.optim_g` is missing.']),
    ('train.optim_g.lr', REMOVE, ['`train.optim_g.lr` is missing.']),
    ('train.scheduler.milestones', REMOVE, ['`train.scheduler.milestones` is missing.']),
    ('train.total_iter', REMOVE, ['`train.total_iter` is missing.']),
    ('train.gan_opt.gan_type', REMOVE, ['`train.gan_opt.gan_type` is missing.', '`vanilla`']),
    ('train.stages.0.losses', REMOVE, ['`train.stages[0].losses` is missing.']),
    ('val', REMOVE, ['`datasets.val` would never be used', '`val`']),
    ('val.val_freq', REMOVE, ['`val.val_freq` is missing.']),
    ('val.metrics.psnr.crop_border', REMOVE, ['`val.metrics.psnr.crop_border` is missing.']),
    ('network_g', {'type': 'GCFSR'}, ['`network_g.out_size` is missing. Write a power of two from 32 to 1024.']),
    # values of another type, or out of range
    ('network_g', {'type': 'GCFSR_blind', 'out_size': 64, 'cond_norm': 0},
     ['`network_g.cond_norm` cannot be 0. Write a number, 1 or above, such as 32, or ~.']),
    ('network_d', {'type': 'GCFSRDiscriminator', 'out_size': 64, 'resample_kernel': []},
     ['`network_d.resample_kernel` cannot be []. Write a list of numbers, 0 or above and not all 0.']),
    ('network_g', {'type': 'StyleGAN2Generator', 'out_size': 64, 'resample_kernel': [1, -1]},
     ['`network_g.resample_kernel` cannot be [1, -1].']),
    ('network_d', {'type': 'StyleGAN2Discriminator', 'out_size': 48},
     ['`network_d.out_size` cannot be 48. Write a power of two from 4 to 1024.']),
    ('scale', '4', ["`scale` cannot be '4'. Write a whole number above 0."]),
    ('scale', True, ['`scale` cannot be True.']),
    ('scale', 0, ['`scale` cannot be 0.']),
    ('scale', 2.5, ['`scale` cannot be 2.5.']),
    ('manual_seed', -1, ['`manual_seed` cannot be -1.']),
    ('find_unused_parameters', 1, ['`find_unused_parameters` cannot be 1. Write true or false.']),
    ('teacher', 'EDSR', ["`teacher` cannot be 'EDSR'. Write a section"]),
    ('network_g', 'EDSR', ["`network_g` cannot be 'EDSR'. Write a section"]),
    ('train', [], ['`train` cannot be []. Write a section']),
    ('val.metrics.psnr', 'calculate_psnr', ['`val.metrics.psnr` cannot be', 'a section']),
    ('datasets.train.batch_size_per_gpu', 0, ['`datasets.train.batch_size_per_gpu` cannot be 0.']),
    ('datasets.train.batch_size_per_gpu', 4.0, ['`datasets.train.batch_size_per_gpu` cannot be 4.0.']),
    ('datasets.train.num_worker_per_gpu', -1, ['`datasets.train.num_worker_per_gpu` cannot be -1.']),
    ('datasets.train.use_hflip', 'yes', ['`datasets.train.use_hflip` cannot be']),
    ('datasets.train.filename_tmpl', 'x4', ['`datasets.train.filename_tmpl`', '{}x4']),
    ('datasets.train.filename_tmpl', '{}{x}', ['`datasets.train.filename_tmpl` cannot be']),
    ('datasets.train.prefetch_mode', 'gpu', ['`datasets.train.prefetch_mode`', '`cpu`, `cuda`, or ~']),
    ('datasets.train.dataroot_gt', ['a'], ["`datasets.train.dataroot_gt` cannot be ['a']. Write a path."]),
    ('datasets.val.io_backend.type', 'lmbd', ['Did you mean `lmdb`?']),
    ('noise_range', [30, 1], ['`noise_range` cannot be [30, 1]. Write a list [lowest, highest]']),
    ('path.strict_load_g', 'true', ['`path.strict_load_g` cannot be']),
    ('network_g.num_feat', '16', ["`network_g.num_feat` cannot be '16'. Write a whole number above 0."]),
    ('network_g.num_feat', 0, ['`network_g.num_feat` cannot be 0.']),
    ('network_g.num_feat', None, ['`network_g.num_feat` cannot be ~.']),
    ('network_d.skip_connection', 1, ['`network_d.skip_connection` cannot be 1. Write true or false.']),
    ('network_g', {'type': 'SwinIR', 'depths': 6}, ['`network_g.depths` cannot be 6. Write a list of whole numbers']),
    ('network_g', {'type': 'SwinIR', 'upsampler': 4}, ['`network_g.upsampler` cannot be 4. Write text']),
    ('train.total_iter', 0, ['`train.total_iter` cannot be 0.']),
    ('train.total_iter', 'many', ["`train.total_iter` cannot be 'many'.", 'such as 5000 or 5e3']),
    ('train.total_iter', 100.5, ['`train.total_iter` cannot be 100.5.']),
    ('train.total_iter', 10**400, ['`train.total_iter` cannot be 1000']),
    ('train.ema_decay', 1, ['`train.ema_decay` cannot be 1.', 'such as 0.999']),
    ('train.ema_decay', -0.1, ['`train.ema_decay` cannot be -0.1.']),
    ('train.ema_decay', float('nan'), ['`train.ema_decay` cannot be nan.']),
    ('train.optim_g.lr', '1e-4', ["`train.optim_g.lr` cannot be '1e-4'. Write a number", '1.0e-4']),
    ('train.optim_g.lr', -1.0, ['`train.optim_g.lr` cannot be -1.0.']),
    ('train.optim_g.betas', [0.9, 'b'], ['`train.optim_g.betas` cannot be', 'a list of two numbers']),
    ('train.scheduler.milestones', 5, ['`train.scheduler.milestones` cannot be 5.']),
    ('train.pixel_opt', 'L1Loss', ['`train.pixel_opt` cannot be', 'a section']),
    ('train.pixel_opt.loss_weight', 'big', ['`train.pixel_opt.loss_weight` cannot be']),
    ('train.pixel_opt.reduction', 'average', ['`train.pixel_opt.reduction`', '`mean`']),
    ('train.gan_opt.gan_type', 'vanila', ['`train.gan_opt.gan_type`', 'Did you mean `vanilla`?']),
    ('train.perceptual_opt.layer_weights', ['conv5_4'], ['`train.perceptual_opt.layer_weights` cannot be', 'section']),
    ('train.perceptual_opt.layer_weights.conv5_4', 'a', ["`train.perceptual_opt.layer_weights.conv5_4` cannot be 'a'"]),
    ('train.perceptual_opt.layer_weights.conv5_4', -1, ['layer_weights.conv5_4` cannot be -1. Write a number, 0 or']),
    ('noise_range', [-1, 30], ['`noise_range` cannot be [-1, 30].', '0 or above']),
    ('train.scheduler.milestones', [-5], ['`train.scheduler.milestones` cannot be [-5].', '0 or above']),
    ('network_g', {'type': 'SwinIR', 'window_size': -8}, ['`network_g.window_size` cannot be -8.']),
    ('network_g', {'type': 'SwinIR', 'img_size': [48]}, ['`network_g.img_size` cannot be [48].', 'two whole numbers']),
    ('network_g', {'type': 'StyleGAN2Generator', 'out_size': '32'}, ["`network_g.out_size` cannot be '32'."]),
    ('network_g.scale', -4, ['`network_g.scale` cannot be -4.']),
    # sections at the wrong level
    ('optim_g', {'type': 'Adam', 'lr': 1}, ['Unknown key `optim_g`. Move it into `train`.']),
    ('contrastive_opt', {}, ['Unknown key `contrastive_opt`. Move it into `train`.']),
    ('val_2', {}, ['Unknown key `val_2`. Move it into `datasets`.']),
    ('network_g.teacher', {}, ['Unknown key `network_g.teacher`. Move it to the top of the file.']),
    ('train.perceptual_opt.layer_weights.cnov5_4', 1, ['there is no layer `cnov5_4`. Did you mean `conv5_4`?']),
    ('train.perceptual_opt.vgg_type', 'vgg91', ['Did you mean `vgg19`?']),
    ('train.perceptual_opt.criterion', None, ['`train.perceptual_opt.criterion` cannot be ~.', '`l1`']),
    ('train.feature_kd_opt.layers', {0: 'body.1'}, ['`train.feature_kd_opt.layers` cannot be', 'in quotes']),
    ('train.optim_g.weight_decay', -1, ['`train.optim_g.weight_decay` cannot be -1.']),
    ('train.feature_kd_opt.hidden', [4], ['`train.feature_kd_opt.hidden` cannot be [4].', 'whole number']),
    ('train.update_order', 'd_frist', ['Did you mean `d_first`?']),
    ('train.gan_mode', 'ragan', ['`train.gan_mode`', '`standard`, `relativistic`']),
    ('train.net_d_iters', 0, ['`train.net_d_iters` cannot be 0.']),
    ('train.perceptual_opt.layer_weights', {}, ['`train.perceptual_opt.layer_weights` names no layer. Write some']),
    ('train.stages', {'a': 1}, ['`train.stages` cannot be a section.', 'a list of sections']),
    ('train.stages.0.iters', 0, ['`train.stages[0].iters` cannot be 0.']),
    ('train.stages.0.losses', 'pixel', ["`train.stages[0].losses` cannot be 'pixel'. Write a list of names"]),
    ('train.stages.0.optimizer', 'new', ['`train.stages[0].optimizer`', '`keep`, `fresh`']),
    ('train.stages.0.discriminator', 'both', ['`train.stages[0].discriminator`', '`student`, `teacher`']),
    ('train.stages.0.weights', {'pixel': -1}, ['`train.stages[0].weights.pixel` cannot be -1.']),
    ('val.val_freq', 0, ['`val.val_freq` cannot be 0.']),
    ('val.save_img', 'no', ['`val.save_img` cannot be']),
    ('val.metrics.psnr.better', 'more', ['`val.metrics.psnr.better`', '`higher`, `lower`']),
    ('logger.print_freq', -100, ['`logger.print_freq` cannot be -100.']),
    ('logger.use_tb_logger', 'true', ['`logger.use_tb_logger` cannot be']),
    ('dist_params.backend', 'ncll', ['Did you mean `nccl`?']),
    ('name', '../datasets', ["`name` cannot be '../datasets'.", 'without / and \\']),
    ('datasets.val.name', 'a/b', ["`datasets.val.name` cannot be 'a/b'."]),
    ('datasets.val.name', 'a\\b', ['`datasets.val.name` cannot be']),
    ('datasets.train.name', '..', ["`datasets.train.name` cannot be '..'."]),
    ('val.suffix', '../x', ["`val.suffix` cannot be '../x'."]),
    ('datasets.train.color', 'rgb', ["`datasets.train.color` cannot be 'rgb'. Write `y`, or ~."]),
    ('datasets.train.mean', [0.5, 0.5], ['`datasets.train.mean` cannot be [0.5, 0.5].', 'three numbers, or of one']),
    ('datasets.train.mean', [0.5, 0.5, 0.5], ['`datasets.train` has one of `mean` and `std` only.']),
    ('network_g', {'type': 'SwinIR', 'img_size': 'big'}, ["`network_g.img_size` cannot be 'big'."]),
    ('train.optim_g.betas', [0.9], ['`train.optim_g.betas` cannot be [0.9].', 'such as [0.9, 0.99]']),
    ('train.optim_g.betas', [0.9, 1], ['`train.optim_g.betas` cannot be [0.9, 1].']),
    ('train.optim_g.betas', [-0.1, 0.9], ['`train.optim_g.betas` cannot be']),
    ('train.optim_g.eps', -1e-8, ['`train.optim_g.eps` cannot be -1e-08.']),
    ('train.optim_g.type', 'LBFGS', ['`train.optim_g.type`: LBFGS does not fit this loop', 'Use Adam']),
    ('train.optim_d.type', 'SparseAdam', ['`train.optim_d.type`: SparseAdam does not fit']),
    ('train.optim_g.type', 'Muon', ['`train.optim_g.type`: Muon does not fit']),
    # options that do not fit each other
    ('logger', {'print_freq': 1, 'save_checkpoint_freq': 1, 'wandb': {'project': 'p'}},
     ['`logger.wandb.project` needs tensorboard', 'Write `use_tb_logger: true`']),
    ('logger.wandb.project', 'p', ['needs the package wandb, which is not installed', 'pip install wandb']),
    ('train.net_d_iters', 400000, ['`train.net_d_iters` is 400000 of 400000 iterations', 'never']),
    ('train.net_d_init_iters', 400000, ['`train.net_d_init_iters` is 400000 of 400000 iterations']),
    ('train.total_iter', 1000, ['add up to 400000 iterations, but `train.total_iter` is 1000.', ': 400000`']),
    ('train.stages.1.name', 'supervised', ['`train.stages[1].name`: there is a stage `supervised` before']),
    ('train.stages.1.losses', ['pixle'], ['`train.stages[1].losses` names `pixle`', 'Did you mean `pixel`?']),
    ('train.stages.1.losses', ['contrastive'], ['names `contrastive`, which has no options', 'contrastive_opt']),
    ('train.stages.1.losses', ['feature_kd_d'], ['names `feature_kd_d`', '`train_d`']),
    ('train.stages.1.losses', ['pixel', 'pixel'], ['`train.stages[1].losses` names a loss twice.']),
    ('train.stages.0.losses', [], ['`train.stages[0]` trains nothing.', 'pixel']),
    ('train.stages.0.weights', {'gan': 1}, ['`train.stages[0].weights` names `gan`, which is not on in this stage.']),
    ('train.perceptual_opt', REMOVE, ['names `perceptual`, which has no options. Add `train.perceptual_opt`.']),
    ('network_d', REMOVE, ['`train.feature_kd_d_opt` needs `network_d`, which is missing.']),
    ('teacher', REMOVE, ['`train.response_kd_opt` needs `teacher`, which is missing.']),
    ('teacher.network_d', REMOVE, ['`teacher.path.pretrain_network_d` has weights for `teacher.network_d`,']),
    ('train.ema_decay', 0, ['`train.ldl_opt` needs `train.ema_decay`, which is missing or 0.']),
    ('train.optim_d', REMOVE, ['`train.stages[1]` trains the discriminator, but `train.optim_d` is missing.']),
    ('datasets.train.gt_size', 126, ['`datasets.train.gt_size` is 126, which the scale 4 does not divide. Write 124.']),
    ('datasets.train.prefetch_mode', 'cuda', ['`pin_memory: true`']),
    ('datasets.val.persistent_workers', True, ['`datasets.val.persistent_workers` needs workers']),
    ('datasets.test_1', {}, ['`datasets.test_1` is of no use in training.', '`val_2`']),
    ('datasets.train_2', {}, ['`datasets.train_2` is of no use in training.']),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [1000]}, ['add up to 1000', '400000']),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [2e5, 2e5]}, ['2 `periods`, but 1 `restart_w']),
    ('train.scheduler.restarts', [0, 5], ['2 `restarts`, but 1 `restart_weights`']),
])
def test_refusals(key, value, fragments, monkeypatch):
    monkeypatch.setattr(schema.importlib.util, 'find_spec', lambda name: None)
    message = refusal(change(distillation(), key, value))
    assert all(fragment in message for fragment in fragments), message
    assert '\n' not in message


def test_wandb_where_it_is_installed(monkeypatch):
    opt = change(distillation(), 'logger.wandb.project', 'p')
    monkeypatch.setattr(schema.importlib.util, 'find_spec', lambda name: None)
    check_options({**opt, 'name': 'debug_sdakd'}, LOSSES)  # BasicSR leaves wandb out
    monkeypatch.setattr(schema.importlib.util, 'find_spec', lambda name: object())
    check_options(opt, LOSSES)


def test_workers_and_cpu_prefetch():
    opt = change(distillation(), 'datasets.train.prefetch_mode', 'cpu')
    message = refusal(change(opt, 'datasets.train.num_worker_per_gpu', 0))
    assert '`datasets.train.prefetch_mode: cpu` with no workers' in message and '`num_worker_per_gpu`' in message


PERCEPTUAL = {'type': 'PerceptualLoss', 'layer_weights': {'conv3_1': 1}}


def adversarial_files() -> dict[str, Any]:
    opt = {**read(SRGAN), 'model_type': 'TestOurModel', 'is_train': True}
    del opt['train']['perceptual_opt']
    return opt


@pytest.mark.parametrize(('key', 'value', 'fragments'), [
    ('network_d', REMOVE, ['`train` trains the discriminator, but `network_d` is missing.', 'UNetDiscriminatorSN']),
    ('train.optim_d', REMOVE, ['`train.optim_d` is missing.']),
    ('train.gan_opt', REMOVE, ['`train.optim_d` is there, but nothing trains the discriminator.']),
    ('train.stages', [{'name': 'a', 'iters': 400000, 'losses': ['gan'], 'train_d': False}],
     ['nothing trains the discriminator']),
    ('train.self_distill_opt', {'type': 'L1Loss'}, []),
    ('train.self_distill_opt', {**PERCEPTUAL, 'loss_weight': 0.1, 'perceptual_weight': 0.5}, []),
    ('train.self_distill_opt', {**PERCEPTUAL, 'perceptual_weight': 0.1},
     ['`train.self_distill_opt.perceptual_weight` is a factor within PerceptualLoss', 'Write `loss_weight` too']),
    ('val.flip_seq', True, ['`val.flip_seq` is of video models, and not read by TestOurModel.']),
])
def test_adversarial_refusals(key, value, fragments):
    opt = change(adversarial_files(), key, value)
    if fragments:
        message = refusal(opt)
        assert all(fragment in message for fragment in fragments), message
    else:
        check_options(opt, LOSSES)


def test_a_training_of_one_iteration():
    opt = change(change(adversarial_files(), 'train.total_iter', 1), 'train.net_d_iters', 1)
    check_options(opt, LOSSES)
    assert '`train.net_d_iters` is 2 of 1 iterations' in refusal(change(opt, 'train.net_d_iters', 2))


def test_train_d_needs_gan_opt_and_no_losses_are_refused():
    opt = change(change(adversarial_files(), 'train.gan_opt', REMOVE), 'train.stages',
                 [{'name': 'a', 'iters': 400000, 'losses': ['pixel'], 'train_d': True}])
    assert '`train.stages[0]` trains the discriminator, but `train.gan_opt` is missing.' in refusal(opt)
    opt = adversarial_files()
    for name in ('gan_opt', 'pixel_opt', 'optim_d'):
        del opt['train'][name]
    assert '`train` trains nothing.' in refusal(opt)


def test_a_discriminator_can_be_trained_alone():
    opt = change(adversarial_files(), 'train.stages', [{'name': 'a', 'iters': 4e5, 'losses': [], 'train_d': True}])
    assert check_options(opt, LOSSES) == ['`train.pixel_opt` is on in no stage.']


def test_a_loss_without_options_is_on_with_its_defaults():
    opt = change(distillation(), 'train.response_kd_opt', {})
    opt['train']['stages'][0]['losses'].append('response_kd')
    assert check_options(opt, LOSSES) == ['`train.ldl_opt` is on in no stage.']


@pytest.mark.parametrize(('key', 'value'), [
    ('gan_mode', 'standard'), ('update_order', 'd_first'), ('r1_reg_weight', 10), ('net_d_reg_every', 16),
    ('net_d_iters', 999999), ('net_d_init_iters', 999999)])
def test_adversarial_options_without_an_adversary_are_warned_of(key, value):
    opt = change(adversarial_files(), f'train.{key}', value)
    if value != 999999:
        assert check_options(opt, LOSSES) == []
    for name in {'gan_opt', 'optim_d', 'net_d_iters', 'net_d_init_iters'} - {key}:
        del opt['train'][name]
    assert check_options(opt, LOSSES) == [
        f'`train.{key}` is of no use: there is no `gan`, and no discriminator is trained.']


def test_the_teachers_discriminator_without_gan_is_warned_of():
    opt = change(distillation(), 'train.stages.0.discriminator', 'teacher')
    assert ('`train.stages[0].discriminator: teacher` is of no use without `gan` in `train.stages[0].losses`.'
            in check_options(opt, LOSSES))


def test_feature_kd_d_trains_no_discriminator():
    """As kd_models/stages.py: by default it is trained where `gan` is on."""
    opt = change(distillation(), 'train.stages', REMOVE)
    del opt['train']['gan_opt']
    assert '`train.optim_d` is there, but nothing trains the discriminator.' in refusal(opt)
    del opt['train']['optim_d']
    assert '`train.feature_kd_d_opt` is on in no stage.' in check_options(opt, LOSSES)
    opt = distillation()
    opt['train']['stages'][1]['train_d'] = opt['train']['stages'][2]['train_d'] = False
    del opt['train']['optim_d']
    assert '`train.feature_kd_d_opt` is on in no stage.' in check_options(opt, LOSSES)


def test_an_idle_teacher_is_a_warning():
    opt = {**adversarial_files(), 'teacher': distillation()['teacher']}
    assert check_options(opt, LOSSES) == ['`teacher` is there, but no loss or metric asks it: nothing is distilled.']


def test_a_test_without_weights_is_warned_of(write):
    opt, _ = parse(write(TEST), is_train=False)
    for value in (None, REMOVE):
        assert check_options(change(opt, 'path.pretrain_network_g', value), LOSSES) == [
            '`path.pretrain_network_g` is missing: a network with random weights is measured.']


def test_a_cache_of_the_teacher_needs_a_loss_that_reads_it():
    opt = change(distillation(), 'teacher.cache', 'folder')
    assert teacher_cache(opt) == 'folder' and check_options(opt, LOSSES) == check_options(distillation(), LOSSES)
    assert teacher_cache(change(opt, 'model_type', 'TestForeignModel')) is None
    opt = {**adversarial_files(), 'teacher': opt['teacher']}
    assert teacher_cache(opt) is None
    assert "`teacher.cache` is of no use: no loss asks for the teacher's images." in check_options(opt, LOSSES)


@pytest.mark.parametrize('dataset', ['RealESRGANDataset', 'RealESRGANPairedDataset', 'TestForeignDataset'])
def test_a_cache_of_the_teacher_needs_fixed_pairs(dataset):
    """Said before anything else of the dataset."""
    opt = change(change(distillation(), 'teacher.cache', 'folder'), 'datasets.train.type', dataset)
    message = refusal(opt)
    assert f'PairedImageDataset only. {dataset} may degrade or crop otherwise at each draw.' in message
    assert 'Use PairedImageDataset with prepared LR images, or take `teacher.cache` out.' in message


def test_a_test_against_the_teacher_needs_its_weights(write):
    opt, _ = parse(write(TEST), is_train=False)
    opt.update(model_type='TestOurModel', teacher=distillation()['teacher'])
    opt['val']['metrics'] = {'psnr': {'type': 'calculate_psnr', 'crop_border': 4, 'reference': 'teacher'}}
    check_options(opt, LOSSES)
    message = refusal(change(opt, 'teacher.path.pretrain_network_g', None))
    assert '`teacher.path.pretrain_network_g` is missing' in message
    opt['datasets'] = {}
    with pytest.raises(OptionError, match='`path.pretrain_network_g`: `net_g.pth` is missing'):
        check_files(opt)
    (Path() / 'net_g.pth').write_bytes(b'')
    with pytest.raises(OptionError, match='`teacher.path.pretrain_network_g`: `.*t.pth` is missing'):
        check_files(opt)
    opt['val']['metrics']['psnr']['reference'] = 'gt'
    check_files(opt)


def test_in_a_test_only_test_sets_count(write):
    opt, _ = parse(write(TEST), is_train=False)
    opt['datasets']['train'] = {}
    assert '`datasets.train` is of no use in a test. Call it `val` or `test`' in refusal(opt)
    opt['datasets'] = {}
    assert '`datasets` is empty' in refusal(opt)


def test_real_esrgan_is_refused_incomplete():
    degradation = read(REAL_ESRGAN)
    train_set = degradation.pop('train_set')
    opt = {**read(SRGAN), 'model_type': 'TestOurModel', 'datasets': {'train': train_set}, **degradation}
    assert '`jpeg_range2` is missing, which degrades the images of `datasets.train`.' in refusal(
        change(opt, 'jpeg_range2', REMOVE))
    assert '`resize_prob` cannot be [0.5, 0.5].' in refusal(change(opt, 'resize_prob', [0.5, 0.5]))
    assert '`datasets.train.kernel_prob2` has 1 numbers for 2 kernels.' in refusal(
        change(opt, 'datasets.train.kernel_prob2', [1]))
    opt = change(opt, 'datasets.train.meta_info', REMOVE)
    assert '`datasets.train.meta_info` is missing.' in refusal(opt)
    check_options(change(opt, 'datasets.train.io_backend', {'type': 'lmdb'}), LOSSES)


def test_a_class_may_use_a_known_name_for_something_else():
    def metric(img, img2, criterion='mse', gamma=-1.0, reduction: str = 'batch', num_feat=None, crop_border: int = 4):
        return 0.0

    metric.__module__ = 'kd_metrics.test_metric'
    assert schema._arguments(metric, skip=('img', 'img2')) == {
        'criterion': 'text?', 'gamma': 'number', 'reduction': 'text', 'num_feat': 'size?', 'crop_border': 'count'}
    metric.__module__ = 'their_metrics'
    assert schema._arguments(metric, skip=('img', 'img2')) == {
        'criterion': 'text?', 'gamma': 'number', 'reduction': 'text', 'num_feat': 'any?', 'crop_border': 'int'}


def test_names_in_a_foreign_network_mean_what_they_mean_there():
    network = {'type': 'TestForeignBlocks', 'layers': [2, 2, 6, 2], 'reduction': 16, 'num_feat': [16, 32],
               'betas': 3, 'upscale': 1.5}
    check_options(change(distillation(), 'network_g', network), LOSSES)


def keys_of(value: Any, path: str = '') -> list[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in items:
        found += [f'{path}{key}', *keys_of(item, f'{path}{key}.')]
    return found


@pytest.mark.parametrize('text', [DISTILLATION, SRGAN])
def test_every_misspelt_key_and_wrong_type_is_refused(text):
    opt = {**read(text), 'model_type': 'TestOurModel'}
    free = ('val.metrics.psnr', 'val.metrics.niqe')  # names that the user chooses
    for key in keys_of(opt):
        last = key.rpartition('.')[2]
        if last.isdigit() or '.layers.' in key or key in free:
            continue
        misspelt = change(opt, f'{key}x', None)
        assert f'{last}x' in refusal(misspelt) or '.layer_weights' in key, key
        refusal(change(opt, key, object()))


# --------------------------------------------------------------------------------------------- models of other projects


def test_a_foreign_model_gets_warnings():
    opt = {**read(SRGAN), 'model_type': 'TestForeignModel', 'tile': {'size': 64}, 'network_extra': {'type': 'EDVR'}}
    opt['train'].update(own_opt={'type': 'Anything'}, l_weight=3, optim_d={'type': 'Lion', 'lr': 1})
    opt['val']['max_minibatch'] = 8
    del opt['scale'], opt['train']['scheduler']
    warnings = check_options(opt, LOSSES)
    for key in ('`tile`', '`train.own_opt`', '`train.l_weight`', '`val.max_minibatch`', '`scale` is missing', '`Lion`',
                '`train.scheduler` is missing'):
        assert any(key in warning for warning in warnings), (key, warnings)
    assert sum('TestForeignModel may know better' in warning for warning in warnings) == 6


def test_a_foreign_models_loop_keys_are_still_checked():
    opt = {**read(SRGAN), 'model_type': 'TestForeignModel'}
    assert 'Unknown key `logger.print_frequency`' in refusal(change(opt, 'logger.print_frequency', 1))
    assert '`train.total_iter` cannot be' in refusal(change(opt, 'train.total_iter', 'x'))
    assert '`network_g.num_feats`' in refusal(change(opt, 'network_g.num_feats', 1))
    assert '`path.cache` cannot be ~' in refusal(change(opt, 'path.cache', None))


@pytest.mark.parametrize('model', ['SRGANModel', 'TestForeignModel'])
def test_metrics_against_the_teacher_need_our_model(model):
    opt = {**read(SRGAN), 'model_type': model}
    message = refusal(change(opt, 'val.metrics.psnr.reference', 'teacher'))
    assert f'`val.metrics.psnr.reference: teacher` is not read by {model}.' in message
    assert 'Set `model_type: DistillationModel`' in message


@pytest.mark.parametrize(('key', 'value'), [
    ('teacher', {'network_g': {'type': 'SRVGGNetCompact'}, 'path': {'pretrain_network_g': 'x.pth'}}),
    ('train.response_kd_opt', {'type': 'L1Loss'}), ('train.feature_kd_opt', {}), ('train.feature_kd_d_opt', {}),
    ('train.contrastive_opt', {}), ('train.own_kd_opt', {'type': 'L1Loss'}), ('train.gan_mode', 'relativistic'),
    ('train.update_order', 'd_first'), ('train.stages', [{'name': 'a', 'iters': 400000, 'losses': ['pixel']}]),
])
def test_basicsrs_own_models_refuse_what_they_do_not_read(key, value):
    losses = {**LOSSES, 'own_kd': None}
    opt = change(read(SRGAN), key, value)
    with pytest.raises(OptionError, match=f'`{key}` is not read by SRGANModel.*`model_type: DistillationModel`'):
        check_options(opt, losses)
    if key != 'train.feature_kd_opt' and key != 'train.feature_kd_d_opt':
        check_options({**opt, 'model_type': 'TestForeignModel'}, {**losses, 'contrastive': 'L1Loss'})


def test_basicsrs_own_models_add_no_argument_to_a_network():
    opt = change(read(SRGAN), 'network_g', {'type': 'GCFSR', 'narrow': 0.25})
    with pytest.raises(OptionError, match='`network_g.out_size` is missing. Write a power of two'):
        check_options(opt, LOSSES)
    assert '`network_g.out_size` is missing' in str(check_options({**opt, 'model_type': 'TestForeignModel'}, LOSSES))


def test_a_models_own_losses_count():
    opt = change(change(distillation(), 'train.own_kd_opt', {'loss_weight': 1.0}), 'model_type', 'TestModelWithLoss')
    assert 'Unknown key `train.own_kd_opt`' in refusal(change(opt, 'model_type', 'TestOurModel'))
    assert '`train.own_kd_opt` is on in no stage.' in check_options(opt, LOSSES)
    assert '`train.own_kd_opt.weight`' in refusal(change(opt, 'train.own_kd_opt.weight', 1))


def test_in_another_projects_loop_unknown_keys_are_warned_of():
    opt = {**distillation(), 'tracker': {'url': 'x'}}
    opt['logger']['images'] = 4
    opt['logger']['wandb'] = {'project': 'p', 'entity': 'us'}
    opt['dist_params']['timeout'] = 60
    opt['datasets']['val']['cache'] = True
    opt['datasets']['extra'] = {**opt['datasets']['val'], 'name': 'Extra'}
    refusal(opt)
    warnings = check_options(opt, LOSSES, strict=False)
    for key in ('tracker', 'logger.images', 'logger.wandb.entity', 'dist_params.timeout', 'datasets.val.cache',
                'datasets.extra'):
        assert sum(f'`{key}`' in warning and 'the loop may know better' in warning for warning in warnings) == 1, key
    for key, value in (('train.pixel_op', {}), ('network_g.num_feats', 4), ('logger.print_freq', -1), ('scale', '4')):
        with pytest.raises(OptionError):
            check_options(change(opt, key, value), LOSSES, strict=False)


def test_a_foreign_dataset_gets_a_warning():
    opt = change(distillation(), 'datasets.train', {
        'name': 'a', 'type': 'TestForeignDataset', 'anything': {'goes': True}, 'gt_size': [1, 2], 'dataroot_lq': 'x',
        'io_backend': {'type': 'disk'}, 'num_worker_per_gpu': 1, 'batch_size_per_gpu': 2})
    assert '`datasets.train.type`: TestForeignDataset is of another project' in check_options(opt, LOSSES)[0]
    assert '`datasets.train.batch_size_per_gpu` cannot be 0' in refusal(
        change(opt, 'datasets.train.batch_size_per_gpu', 0))


def test_our_datasets_bring_their_own_keys():
    opt = change(distillation(), 'datasets.val', {'name': 'a', 'type': 'TestOurDataset', 'dataroot_gt': 'x', 'shot': 3,
                                                  'io_backend': {'type': 'disk'}})
    assert 'Unknown key `datasets.val.shot`. Did you mean `shots`?' in refusal(opt)


# ------------------------------------------------------------------------------------------------------------- tables


def test_every_kind_in_the_tables_exists():
    tables = [value for name, value in vars(schema).items() if isinstance(value, dict) and not name.startswith('__')
              and all(isinstance(kind, str) for kind in value.values())]
    tables += schema.DATASETS.values()
    kinds = {kind.partition('!')[0].rstrip('?') for table in tables for kind in table.values()}
    assert len(tables) > 20
    assert all('|' in kind or kind in schema.KINDS for kind in kinds), kinds - schema.KINDS.keys()


def test_every_dataset_of_basicsr_has_a_table():
    names = {name.removesuffix('_basicsr') for name, cls in DATASET_REGISTRY if cls.__module__.startswith('basicsr.')}
    assert names == set(schema.DATASETS)


def test_every_registered_signature_becomes_a_table():
    for registry in (ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY):
        for name, factory in registry:
            for kind in schema._arguments(factory).values():
                assert schema._words(kind.rstrip('!')), name
    assert schema._arguments(schema.OPTIMIZERS['Adam'])['betas'] == 'betas'
    assert not {'Optimizer', 'LBFGS', 'SparseAdam', 'Muon'} & schema.OPTIMIZERS.keys()


def test_nearest():
    assert nearest('scael', ['scale', 'name']) == ' Did you mean `scale`?'
    assert nearest('SCALE', ['scale']) == ' Did you mean `scale`?'
    assert nearest('zzz', ['scale']) == '' and nearest('a', []) == ''


def test_of_many_names_the_message_has_eight():
    assert schema.nearest_or_all('z', 'hgfedcba') == ' Choose from: a, b, c, d, e, f, g, h.'
    names = [f'network{i:03}' for i in range(500)] + ['calculate_psnr']
    hint = schema.nearest_or_all('psnr', names)
    assert hint.startswith(' Choose from: calculate_psnr, network0') and hint.endswith(', ...')
    assert hint.count(', ') == 8


# -------------------------------------------------------------------------------------------------------------- files


def save_image(path: Path, size: tuple[int, int], **keywords: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new('RGB', size).save(path, **keywords)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Options whose files all exist, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, size in (('gt/a.png', (132, 128)), ('gt/b.png', (128, 140)), ('lq/ax4.png', (33, 32)),
                       ('lq/bx4.png', (32, 35)), ('other/x.png', (33, 32))):
        save_image(tmp_path / name, size)
    for name in ('gt/.hidden', 'weights/net.pth'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    opt = distillation()
    opt['datasets']['train'].update(dataroot_gt='gt', dataroot_lq='lq')
    opt['datasets']['val'].update(dataroot_gt='gt', dataroot_lq='lq', filename_tmpl='{}x4')
    opt['teacher']['path'].update(pretrain_network_g='weights/net.pth', pretrain_network_d='weights/net.pth')
    return opt


def file_refusal(opt: dict[str, Any]) -> str:
    with pytest.raises(OptionError) as caught:
        check_files(opt)
    assert '\n' not in str(caught.value)
    return str(caught.value)


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
    assert options._image_size('key', str(tmp_path / 'turned.jpg')) == (20, 40)
    assert cv2.imread(str(tmp_path / 'turned.jpg')).shape == (40, 20, 3)


def test_photos_of_several_pictures_are_turned_too(tmp_path):
    """MPO, as telephones write it under the name of a JPEG."""
    import cv2
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new('RGB', (40, 20))
    picture.save(tmp_path / 'turned.jpg', format='MPO', save_all=True, append_images=[picture], exif=exif)
    assert Image.open(tmp_path / 'turned.jpg').format == 'MPO'
    assert options._image_size('key', str(tmp_path / 'turned.jpg')) == (20, 40)
    assert prepare._size(tmp_path / 'turned.jpg') == (40, 20) == cv2.imread(str(tmp_path / 'turned.jpg')).shape[:2]


@pytest.fixture
def lmdb_files(files, tmp_path):
    for root in ('gt.lmdb', 'lq.lmdb'):
        (tmp_path / root).mkdir()
        for name in ('data.mdb', 'meta_info.txt'):
            (tmp_path / root / name).write_text('a.png\n')
    files['datasets']['train'].update(dataroot_gt='gt.lmdb', dataroot_lq='lq.lmdb', io_backend={'type': 'lmdb'})
    return files


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


def test_real_esrgan_data_needs_a_model_that_degrades(monkeypatch):
    monkeypatch.setattr(TestOurModel, 'degrades', False)
    with pytest.raises(OptionError, match='RealESRGANDataset gives no LR images, and TestOurModel makes none'):
        test_real_esrgan_is_accepted(None, 'TestOurModel')
