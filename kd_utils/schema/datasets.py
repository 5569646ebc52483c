"""Checks of the data sets."""
from __future__ import annotations

from collections.abc import Callable

from basicsr.utils.registry import DATASET_REGISTRY

from kd_utils.schema.checks import Checks, ignore
from kd_utils.schema.kinds import require, words
from kd_utils.schema.lookups import get, registered
from kd_utils.schema.messages import Options
from kd_utils.schema.tables import DATASETS, DEGRADATION, IO_BACKEND, LOADER, REAL_ESRGAN_CROP


class DatasetChecks(Checks):
    """The part of the check that is about `datasets`."""

    def check_sets(self) -> None:
        datasets = self.opt.get('datasets') or {}
        require('datasets', 'dict', datasets)
        if self.training and datasets and 'train' not in datasets:
            self.refuse_in_our_loop('`datasets.train` is missing. Write the data set to train on there.')

    def check_datasets(self) -> None:
        datasets = self.opt.get('datasets') or {}
        allowed = ('train', 'val') if self.training else ('val', 'test')
        for name, dataset in datasets.items():
            require(f'datasets.{name}', 'dict', dataset)
            phase = str(name).split('_')[0]
            if phase not in allowed or (phase == 'train' and name != 'train'):
                self.refuse_in_our_loop(f'`datasets.{name}` is of no use in '
                                        f'{"training" if self.training else "a test"}. '
                            f'Call it `{"` or `".join(allowed)}`; further ones are `{allowed[1]}_2`, `{allowed[1]}_3`.')
            self.check_dataset(f'datasets.{name}', dataset, phase == 'train')
        names = [dataset.get('name') for phase, dataset in datasets.items() if phase != 'train']
        for name in names:
            if names.count(name) > 1:
                self.refuse(f'`datasets` has two sets with `name: {name}`, whose results would overwrite each other. '
                            'Give each a name of its own.')
        if not datasets and self.training:
            self.refuse_in_our_loop('`datasets.train` is missing. Write the data set to train on there.')
        if not datasets:
            self.refuse('`datasets` is empty. Write the data sets to test on there: `test_1`, `test_2` and so on.')

    def check_dataset(self, key: str, dataset: Options, training: bool) -> None:
        cls = self.lookup(f'{key}.type', 'dataset', dataset.get('type'), registered(DATASET_REGISTRY))
        name = dataset['type'].removesuffix('_basicsr')
        table = DATASETS.get(name, getattr(cls, 'option_keys', None))
        unknown: Callable[[str], None] = self.refuse_in_our_loop if table is not None else ignore
        if self.ours and table is not None:
            self.check_latents(key, name, dataset, training)
        if table is None:
            self.warnings.append(f'`{key}.type`: {name} is of another project, so its own keys are not checked.')
        self.table(key, dataset, {**LOADER, **(table or {})}, training, unknown)
        if 'io_backend' in dataset:
            self.table(f'{key}.io_backend', dataset['io_backend'], IO_BACKEND, training, unknown)
        if name == 'RealESRGANDataset' and not training:
            self.refuse(f'`{key}.type`: RealESRGANDataset is for training. Use PairedImageDataset, or '
                        'SingleImageDataset where there is no ground truth.')
        if name == 'RealESRGANDataset':
            if self.ours and not getattr(self.model, 'degrades', False):
                self.refuse(f'`{key}.type`: RealESRGANDataset gives no LR images, and '
                            f'{self.opt["model_type"]} makes none. Use PairedImageDataset with prepared LR images.')
            self.check_degradation(key, dataset)
        elif training and self.ours and table is not None and self.opt.get('high_order_degradation', True):
            keys = [name for name in DEGRADATION if name in self.opt and name != 'gt_size']
            if keys:
                self.refuse(f'`{keys[0]}` degrades the images of a RealESRGANDataset, but `{key}` is a {name} with LR '
                            'images of its own. Write `high_order_degradation: false`, or take these keys out.')
        if training:
            self.check_prefetch(key, dataset)
        if training and table is not None:
            self.check_crop(key, dataset)
        if table is not None and (dataset.get('mean') is None) != (dataset.get('std') is None):
            self.refuse(f'`{key}` has one of `mean` and `std` only. Write both, or neither.')
        if dataset.get('persistent_workers') and not (training and dataset.get('num_worker_per_gpu')):
            self.refuse(f'`{key}.persistent_workers` needs workers, and there are none'
                        f'{"" if training else " in validation"}. Set `{key}.persistent_workers` to false.')

    def check_latents(self, key: str, name: str, dataset: Options, training: bool) -> None:
        """Latents are for generators that make images from noise, and nothing else is, but to learn from."""
        model, size = self.opt['model_type'], getattr(self.model, 'latent_size', lambda opt: None)(self.opt)
        wanted = size is not None and (not training or self.model.learns_from_latents)
        if name != 'SampleDataset' and wanted:
            self.refuse(f'`{key}.type`: {name} gives images, and {model} makes its own from latents. '
                        'Use SampleDataset.')
        if name == 'SampleDataset' and not wanted:
            self.refuse(f'`{key}.type`: SampleDataset gives latents, and {model} '
                        + ('takes LR images here. Use PairedImageDataset.' if size is None
                           else 'learns from images. Use FFHQDataset.'))
        if name == 'FFHQDataset' and size is None:
            self.refuse(f'`{key}.type`: FFHQDataset gives no LR images. Use PairedImageDataset.')
        if wanted and dataset.get('num_style_feat', size) != size:
            self.refuse(f'`{key}.num_style_feat` is {dataset.get("num_style_feat")}, and `network_g` takes latents of '
                        f'{size} numbers. Leave it out.')

    def check_degradation(self, key: str, dataset: Options) -> None:
        if 'meta_info' not in dataset and get(dataset, 'io_backend.type') != 'lmdb':
            self.refuse(f'`{key}.meta_info` is missing. Name the text file that lists the images, one per line.')
        for suffix in ('', '2'):
            kernels, odds = (len(dataset.get(f'kernel_{what}{suffix}') or ()) for what in ('list', 'prob'))
            if kernels != odds:
                self.refuse(f'`{key}.kernel_prob{suffix}` has {odds} numbers for {kernels} kernels. '
                            'Write one for each.')
        if not self.opt.get('high_order_degradation', True):
            self.refuse_in_ours(f'`{key}.type`: RealESRGANDataset gives no LR images, and `high_order_degradation: '
                                f'false` makes '
                       'none. Write true, or use PairedImageDataset.')
        for name, kind in DEGRADATION.items():
            if name not in self.opt:
                self.refuse_in_ours(f'`{name}` is missing, which degrades the images of `{key}`. Write {words(kind)}.')
        sharpened = [name for name in ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm') if name in self.opt]
        if 'gt_usm' in self.opt and sharpened:
            self.refuse_in_ours(f"`gt_usm` is RealESRNet's and `{sharpened[0]}` Real-ESRGAN's; they sharpen at "
                                f"different "
                       'places. Take one of them out.')
        if get(self.opt, 'network_g.num_in_ch') not in (None, 3):
            self.refuse_in_ours(f'`{key}.type`: RealESRGANDataset gives images of three channels, and '
                                f'`network_g.num_in_ch` is '
                       f'{get(self.opt, "network_g.num_in_ch")}. Write 3.')
        self.check_pool(key, dataset)

    def check_pool(self, key: str, dataset: Options) -> None:
        """Sizes that BasicSR finds out at the first batch, or never."""
        queue, batch = self.opt.get('queue_size', 180), dataset.get('batch_size_per_gpu')
        if batch and queue % batch:
            self.refuse_in_ours(f'`queue_size` is {queue}, which batches of {batch} do not fill exactly. '
                       f'Write a multiple of `{key}.batch_size_per_gpu`, such as {-(-queue // batch) * batch}.')
        size, scale = self.opt.get('gt_size'), self.opt.get('scale')
        if size and size > REAL_ESRGAN_CROP:
            self.refuse_in_ours(f'`gt_size` is {size}, but RealESRGANDataset gives crops of {REAL_ESRGAN_CROP}. '
                       f'Write at most {REAL_ESRGAN_CROP}.')
        if size and scale and size % scale:
            self.refuse_in_ours(f'`gt_size` is {size}, which the scale {scale} does not divide. '
                       f'Write {max(size // scale, 1) * scale}.')
        if size and dataset.get('gt_size', size) != size:
            self.refuse_in_ours(f'`{key}.gt_size` is {dataset["gt_size"]}, but `gt_size` at the top, which counts, '
                                f'is {size}. '
                       'Write the same number, or leave the former out.')

    def check_prefetch(self, key: str, dataset: Options) -> None:
        mode = dataset.get('prefetch_mode')
        if mode == 'cpu' and not dataset.get('num_worker_per_gpu'):
            self.refuse(f'`{key}.prefetch_mode: cpu` with no workers loads in a thread that shares the random numbers '
                        'of training. Set `num_worker_per_gpu` to 1 or more, or `prefetch_mode: ~`.')
        if mode == 'cuda' and not dataset.get('pin_memory'):
            self.refuse(f'`{key}.prefetch_mode: cuda` copies from pinned memory only. Add `pin_memory: true`.')

    def check_crop(self, key: str, dataset: Options) -> None:
        size, scale = dataset.get('gt_size'), self.opt.get('scale')
        if 'dataroot_lq' in dataset and size and scale and size % scale:
            self.refuse(f'`{key}.gt_size` is {size}, which the scale {scale} does not divide. '
                        f'Write {max(size // scale, 1) * scale}.')
