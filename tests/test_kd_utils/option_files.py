"""Option files, and classes that they may name, for the tests of options and schema."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from kd_models.terms import TERMS
from kd_utils.options import OptionError, check_files, check_options, parse_options, parse_yaml
from kd_utils.schema import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

LOSSES = {'pixel': 'L1Loss', 'ldl': 'L1Loss', 'perceptual': 'PerceptualLoss', 'gan': 'GANLoss', 'response_kd': 'L1Loss',
          'feature_kd': 'TestFeatureLoss', 'feature_kd_d': 'TestFeatureLoss', 'contrastive': None, 'self_distill': None}


@MODEL_REGISTRY.register()
class TestOurModel:
    __test__ = False
    losses = LOSSES
    known_terms = TERMS
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


def parse(path: str, *arguments: str, root: str = 'root', is_train: bool = True) -> tuple[dict[str, Any], Any]:
    return parse_options(['-opt', path, *arguments], root, is_train)


PERCEPTUAL = {'type': 'PerceptualLoss', 'layer_weights': {'conv3_1': 1}}


def adversarial_files() -> dict[str, Any]:
    opt = {**read(SRGAN), 'model_type': 'TestOurModel', 'is_train': True}
    del opt['train']['perceptual_opt']
    return opt


def keys_of(value: Any, path: str = '') -> list[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in items:
        found += [f'{path}{key}', *keys_of(item, f'{path}{key}.')]
    return found


def save_image(path: Path, size: tuple[int, int], **keywords: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new('RGB', size).save(path, **keywords)


def file_refusal(opt: dict[str, Any]) -> str:
    with pytest.raises(OptionError) as caught:
        check_files(opt)
    assert '\n' not in str(caught.value)
    return str(caught.value)
