"""Promise 2: a run that is stopped and resumed equals the one that nobody disturbed, bit for bit, for every method.

Each run is a training command in a process of its own. A stop is what a user's Ctrl-C or a scheduler's SIGTERM asks
for, here by the process itself after a given iteration; `--auto_resume` goes on. Compared are networks, EMA,
optimizers, schedulers, adaptors, pools, what else the last state holds, the validation curve, the logged losses of
every iteration, and the batches that were fed.
"""
import os
import re
import signal
from copy import deepcopy
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

from kd_cli.prepare import main as prepare
from kd_cli.prepare import make_lr
from kd_cli.stopping import STOPPED
from kd_utils import checkpoint
from tests.support import (
    GCFSR,
    GCFSR_D,
    GCFSR_TEACHER,
    UNET,
    WithBatchNorm,
    face_set,
    save_teacher,
    train_yaml,
    write_yaml,
)
from tests.test_reliability.harness import (
    STRESS,
    Experiment,
    assert_same_end,
    counted,
    last_state,
    report,
    start_processes,
)

TOTAL = 8       # iterations; an epoch has three
VAL_FREQ = 3
ADAM = {'type': 'Adam', 'lr': 1e-3, 'betas': [0.5, 0.99]}
GAN = {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1}
SOFTPLUS = {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 0.1}
KD = {'type': 'MLPFeatureLoss', 'loss_weight': 0.1}
DIFFUSION = {'type': 'DiffusionUNet', 'block_out_channels': [8, 16], 'layers_per_block': 1, 'norm_num_groups': 4,
             'timesteps': 40, 'steps': 4}
PHASES = {'type': 'DenoisingPhaseNet', 'scale': 2, 'phases': 3, 'num_feat': 4, 'num_block': 1}
DEGRADATION = {
    'high_order_degradation': True, 'queue_size': 4, 'gt_size': 32, 'l1_gt_usm': True, 'percep_gt_usm': True,
    'gan_gt_usm': False, 'resize_prob': [0.2, 0.7, 0.1], 'resize_range': [0.5, 1.5], 'gaussian_noise_prob': 0.5,
    'noise_range': [1, 30], 'poisson_scale_range': [0.05, 3], 'gray_noise_prob': 0.4, 'jpeg_range': [30, 95],
    'second_blur_prob': 0.8, 'resize_prob2': [0.3, 0.4, 0.3], 'resize_range2': [0.6, 1.2],
    'gaussian_noise_prob2': 0.5, 'noise_range2': [1, 25], 'poisson_scale_range2': [0.05, 2.5],
    'gray_noise_prob2': 0.4, 'jpeg_range2': [30, 95],
}
BLUR = {
    'blur_kernel_size': 21, 'kernel_list': ['iso', 'aniso'], 'kernel_prob': [0.5, 0.5], 'sinc_prob': 0.1,
    'blur_sigma': [0.2, 3], 'betag_range': [0.5, 4], 'betap_range': [1, 2], 'blur_kernel_size2': 21,
    'kernel_list2': ['iso', 'aniso'], 'kernel_prob2': [0.5, 0.5], 'sinc_prob2': 0.1, 'blur_sigma2': [0.2, 1.5],
    'betag_range2': [0.5, 4], 'betap_range2': [1, 2], 'final_sinc_prob': 0.8,
}


# --------------------------------------------------------------------------------------------------- the trainings


def options(data, model_type, losses, **changes):
    """Without `pixel_opt`, unless it is among the losses."""
    opt = train_yaml(data.images, model_type=model_type, **{
        'train__total_iter': TOTAL, 'train__optim_g': ADAM, 'train__scheduler__milestones': [4, 7],
        'val__val_freq': VAL_FREQ, 'logger__print_freq': 1, 'logger__save_checkpoint_freq': 100, **changes})
    del opt['train']['pixel_opt']
    opt['train'].update(losses)
    return opt


def distillation(data, folder):
    """All that a stage can begin with, a relativistic GAN, lazy R1, a warm-up and clipped gradients."""
    stages = [{'name': 'a', 'iters': 3, 'losses': ['pixel', 'feature_kd']},
              {'name': 'b', 'iters': 2, 'losses': ['pixel', 'response_kd', 'feature_kd'], 'train_d': True,
               'optimizer': 'fresh', 'ema': 'fresh', 'adaptors': 'fresh'},
              {'name': 'c', 'iters': 3, 'losses': ['pixel', 'response_kd', 'feature_kd', 'gan'],
               'weights': {'pixel': 0.5}}]
    losses = {'pixel_opt': {'type': 'L1Loss'}, 'response_kd_opt': {'type': 'L1Loss'}, 'feature_kd_opt': KD,
              'feature_kd_d_opt': KD, 'gan_opt': GAN, 'gan_mode': 'relativistic', 'optim_d': ADAM, 'stages': stages,
              'r1_reg_weight': 1, 'net_d_reg_every': 2, 'grad_clip': 0.5, 'warmup_iter': 3}
    return options(data, 'DistillationModel', losses, network_d=UNET,
                   teacher=save_teacher(folder, network_d={**UNET, 'num_feat': 6}))


def sdakd(data, folder):
    """With Real-ESRGAN's images, of which the pool keeps two batches."""
    stages = [{'name': 'supervised', 'iters': 2, 'losses': ['pixel']},
              {'name': 'distill', 'iters': 3, 'losses': ['pixel', 'feature_kd'], 'train_d': True,
               'optimizer': 'fresh'},
              {'name': 'adversarial', 'iters': 3, 'losses': ['pixel', 'ldl', 'feature_kd', 'gan'],
               'optimizer': 'fresh'}]
    losses = {'pixel_opt': {'type': 'L1Loss'}, 'ldl_opt': {'type': 'L1Loss', 'loss_weight': 0.5}, 'gan_opt': GAN,
              'feature_kd_opt': KD, 'optim_d': ADAM, 'update_order': 'g_first', 'stages': stages}
    opt = options(data, 'SDAKDModel', losses, network_d=UNET,
                  teacher=save_teacher(folder, network_d={**UNET, 'num_feat': 6}), **DEGRADATION)
    opt['datasets']['train'] = {
        'name': 'R', 'type': 'RealESRGANDataset', 'dataroot_gt': str(data.images / 'hr'), 'use_hflip': True,
        'meta_info': str(data.root / 'list.txt'), 'io_backend': {'type': 'disk'}, 'use_rot': False, **BLUR, **LOADER}
    return opt


def sdakd_gcfsr(data, folder):
    losses = {'pixel_opt': {'type': 'L1Loss'}, 'gan_opt': SOFTPLUS, 'feature_kd_opt': KD, 'optim_d': ADAM,
              'update_order': 'd_first', 'r1_reg_weight': 10, 'net_d_reg_every': 2}
    opt = options(data, 'SDAKDModel', losses, scale=4, network_g=GCFSR, network_d=GCFSR_D,
                  teacher=save_teacher(folder, GCFSR_TEACHER))
    val = {'name': 'val', 'type': 'PairedImageDataset', 'dataroot_gt': str(data.root / 'faces'),
           'dataroot_lq': str(data.root / 'faces_x4'), 'io_backend': {'type': 'disk'}}
    opt['datasets'] = {'train': {**face_set(data.root / 'faces'), **LOADER}, 'val': val}
    return opt


def mcadkd(data, folder):
    return options(data, 'MCADKDModel', {'contrastive_opt': {'patch_size': 8, 'num_patches': 3, 'd_emb': 16}},
                   network_d=UNET, teacher=save_teacher(folder))


def sdgan(data, folder):
    """Of a network with statistics; the discriminator is ahead."""
    losses = {'pixel_opt': {'type': 'L1Loss'}, 'gan_opt': GAN, 'optim_d': ADAM, 'net_d_iters': 2, 'ema_ramp_up': 0.5,
              'self_distill_opt': {'type': 'MSELoss', 'loss_weight': 0.5, 'augment': True}}
    return options(data, 'SDGANModel', losses, network_g={'type': 'WithBatchNorm'}, network_d=UNET)


def sdstylegan2(data, folder):
    losses = {'optim_d': ADAM, 'net_g_reg_every': 2, 'net_d_reg_every': 3, 'mixing_prob': 0.5,
              'self_distill_opt': {'type': 'MSELoss', 'loss_weight': 1.0}}
    stylegan2 = {'out_size': 8, 'narrow': 1 / 64}
    opt = options(data, 'SDStyleGAN2Model', losses, val__num_val_samples=4, val__metrics=random_fid(data),
                  network_g={**stylegan2, 'type': 'StyleGAN2Generator', 'num_style_feat': 16, 'num_mlp': 2},
                  network_d={**stylegan2, 'type': 'StyleGAN2Discriminator'})
    del opt['scale']
    opt['datasets'] = {'train': {
        'name': 'real', 'type': 'FFHQDataset', 'dataroot_gt': str(data.root / 'real.lmdb'), 'use_hflip': True,
        'io_backend': {'type': 'lmdb'}, 'mean': [0.5] * 3, 'std': [0.5] * 3, **LOADER}}
    return opt


def advkd(data, folder):
    """Iterations share trajectories by two."""
    losses = {'traj_reuse': 2, 'net_d_reg_every': 2}
    return options(data, 'AdvKDModel', losses, network_g=PHASES,
                   network_d={'type': 'PhaseDiscriminators', 'num_feat': 4},
                   teacher=save_teacher(folder, {**DIFFUSION, 'scale': 2}))


def advkd_faithful(data, folder):
    """Phases end with the iterations 1, 2, 3, 5 and 8, trajectories are used by three."""
    return options(data, 'AdvKDModel', {'preset': 'faithful', 'traj_reuse': 3},
                   network_g={**PHASES, 'phases': 5, 'num_block': 2, 'faithful': True},
                   network_d={'type': 'PhaseDiscriminators', 'num_feat': 4, 'faithful': True},
                   teacher=save_teacher(folder, {**DIFFUSION, 'scale': 2}))


def advkd_unconditional(data, folder):
    opt = options(data, 'AdvKDModel', {'preset': 'faithful', 'traj_reuse': 2}, val__metrics=random_fid(data),
                  network_g={'type': 'PhaseDecoder', 'size': 16, 'num_feat': 4},
                  network_d={'type': 'PhaseDiscriminators', 'num_feat': 4, 'faithful': True},
                  teacher=save_teacher(folder, {**DIFFUSION, 'size': 16, 'steps': 2}))
    del opt['scale']
    noise = {'name': 'noise', 'type': 'SampleDataset', 'n': 6}
    opt['datasets'] = {'train': {**noise, **LOADER}, 'val': {**noise, 'n': 4, 'seed': 1}}
    return opt


def diffusion(data, folder):
    return options(data, 'DiffusionSRModel', {}, network_g={**DIFFUSION, 'scale': 2}, val__pbar=False)


LOADER = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 1, 'prefetch_mode': None}
# Where `make test` stops each of them: epochs end with 3 and 6, where validations are due too.
STOPS = {distillation: (2, 3, 4), sdakd: (4, 5, 6), sdakd_gcfsr: (2, ), mcadkd: (4, ), sdgan: (5, ), sdstylegan2: (4, ),
         advkd: (3, ), advkd_faithful: (4, ), advkd_unconditional: (1, ), diffusion: (7, )}


def random_fid(data):
    return {'rfid': {'type': 'RandomFID', 'real': str(data.root / 'real'), 'better': 'lower'}}


@pytest.fixture(scope='module')
def data(tmp_path_factory, images):
    """Photographs, faces with their LR versions, and small images in a folder and in an LMDB; six of each."""
    root = tmp_path_factory.mktemp('data')
    for folder, size in (('faces', 32), ('real', 8)):
        (root / folder).mkdir()
        for i in range(6):
            image = np.random.default_rng(i).integers(0, 256, (size, size, 3)).astype(np.float32)
            cv2.imwrite(str(root / folder / f'{i}.png'), cv2.GaussianBlur(image, (0, 0), 1))
    make_lr(root / 'faces', root / 'faces_x4', 4)
    prepare(['lmdb', str(root / 'real'), str(root / 'real.lmdb')])
    (root / 'list.txt').write_text(''.join(f'{i}.png\n' for i in range(6)))
    return SimpleNamespace(root=root, images=images)


class Small(RealESRGANDataset):
    """Of images of 64x64 instead of 400x400, which take most of the time."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, 'gt': item['gt'][:, :64, :64]}


@pytest.fixture(scope='module', autouse=True)
def _registered():
    added = {ARCH_REGISTRY: ('WithBatchNorm', WithBatchNorm), DATASET_REGISTRY: ('RealESRGANDataset', Small)}
    for registry, (name, kind) in added.items():
        registry._obj_map[name] = kind
    yield
    for registry, (name, _) in added.items():
        del registry._obj_map[name]


# ------------------------------------------------------------------------------------------- stopping and comparing


class Run:
    """A training in one or two processes, stopped and resumed.

    Args:
        root: Of its experiment.
        options: Of its YAML file.
        processes: Over gloo, if there is more than one.
        spawn: Whether loader workers are spawned instead of forked.
    """

    def __init__(self, root, options, processes=1, spawn=False):
        self.experiment, self.processes, self.spawn = Experiment(root, options=options), processes, spawn

    def train(self, *stops, resumed=None):
        """All iterations, stopping after some and going on, with other options if they are given.

        The signal goes to the last process only.
        """
        for stop, arguments in zip((*stops, None), ((), *[('--auto_resume', )] * len(stops)), strict=True):
            if resumed and arguments:
                write_yaml(self.experiment.yaml, resumed)
            children = self._start(stop, arguments)
            for child in children:
                code = child.wait(600)  # spawned workers import everything anew
                assert code == (STOPPED if stop else 0), f'{code}: {child.text()[-3000:]}'
            assert self.experiment.states()[-1] == (stop or TOTAL), children[0].text()[-3000:]
        return self

    def _start(self, stop, arguments):
        if self.processes == 1:
            return [self.experiment.start(*arguments, before=lambda: self._prepare(stop))]
        return start_processes(self.experiment, *arguments, count=self.processes,
                               before=lambda rank: self._prepare(stop))

    def _prepare(self, stop):
        """In the child: it notes what is fed, and asks itself to stop."""
        if self.spawn:
            torch.multiprocessing.set_start_method('spawn', force=True)
        model, rank = MODEL_REGISTRY.get(self.experiment.options['model_type']), int(os.environ.get('RANK', 0))
        feed, optimize = model.feed_data, model.optimize_parameters

        def feed_noted(self, batch):
            self.noted = checkpoint.fingerprint(batch)
            feed(self, batch)

        def optimize_and_stop(model, iteration):
            optimize(model, iteration)
            with open(self._fed(rank), 'a') as file:
                file.write(f'{iteration} {model.noted}\n')
            if iteration == stop and rank == self.processes - 1:
                os.kill(os.getpid(), signal.SIGTERM)
        model.feed_data, model.optimize_parameters = feed_noted, optimize_and_stop

    def _fed(self, rank):
        return self.experiment.root / f'fed_{rank}.txt'

    def fed(self):
        """For each process and iteration, the hash of the batch."""
        return [self._fed(rank).read_text().splitlines() for rank in range(self.processes)]

    def logged(self):
        """(epoch, iteration, rates, losses) of each iteration, as in the log files."""
        texts = [path.read_text() for path in sorted(self.experiment.folder.glob('train_*.log'))]
        line = re.compile(r'\[epoch: *(\d+), iter: *(\d+), lr:\((.*?)\)\] \[eta: .*?\] (.*)')
        return [match.groups() for text in texts for match in line.finditer(text)]


def assert_equal_runs(whole, run):
    for of_whole, of_run in zip(whole.fed(), run.fed(), strict=True):
        assert [line.split()[0] for line in of_run] == [str(i) for i in range(1, TOTAL + 1)]
        assert of_whole == of_run
    assert len(whole.logged()) == TOTAL and all('l_' in losses for *_, losses in whole.logged())
    assert whole.logged() == run.logged()
    assert_same_end(whole.experiment, run.experiment)


@pytest.fixture(scope='module')
def undisturbed(data, tmp_path_factory):
    """The run of a case that nobody stops, made once for each number of processes."""
    runs = {}

    def run(case, processes=1):
        if (case, processes) not in runs:
            folder = tmp_path_factory.mktemp(case.__name__)
            opt = case(data, folder)
            opt['datasets']['train']['dataset_enlarge_ratio'] = processes  # an epoch has three iterations always
            runs[case, processes] = Run(folder / 'whole', opt, processes).train()
        return runs[case, processes]
    return run


def changed(options, **changes):
    """Options with other ones in their sections: section__key=value."""
    options = deepcopy(options)
    for path, value in changes.items():
        *parents, last = path.split('__')
        section = options
        for parent in parents:
            section = section[parent]
        section[last] = value
    return options


def named(case):
    return case.__name__


@pytest.mark.parametrize('case', STOPS, ids=named)
def test_a_stopped_run_ends_as_the_undisturbed_one(case, undisturbed, tmp_path):
    """One run with several stops; each of KD_STRESS's has one, and the last one stops at every iteration."""
    whole, everywhere = undisturbed(case), range(1, TOTAL)
    for stops in [*((stop, ) for stop in everywhere), tuple(everywhere)] if STRESS else [STOPS[case]]:
        run = Run(tmp_path / '_'.join(map(str, stops)), whole.experiment.options)
        assert_equal_runs(whole, run.train(*stops))
    report(f'exact resume: {named(case)}, stopped at each of the iterations 1 to {TOTAL - 1}, and at all of them')


@pytest.mark.parametrize('case', STOPS if STRESS else [distillation], ids=named)
@pytest.mark.parametrize('start_method', ['fork', 'spawn'])
def test_with_loader_workers(case, start_method, undisturbed, tmp_path):
    """The end is that of the run without workers."""
    whole = undisturbed(case)
    stops = tuple(range(1, TOTAL)) if STRESS and start_method == 'fork' else (4, )
    spawn = start_method == 'spawn'
    workers = counted(1, 2) if spawn else 2
    run = Run(tmp_path / 'run', changed(whole.experiment.options, datasets__train__num_worker_per_gpu=workers,
                                        datasets__train__persistent_workers=spawn), spawn=spawn)
    assert_equal_runs(whole, run.train(*stops))
    report(f'exact resume: {named(case)}, {workers} workers by {start_method}, stopped at {stops}')


@pytest.mark.parametrize('case', STOPS if STRESS else [sdakd, advkd], ids=named)
def test_with_two_processes(case, undisturbed, tmp_path):
    """Each has a pool and a trajectory of its own."""
    whole = undisturbed(case, processes=2)
    assert all(a != b for a, b in zip(*whole.fed(), strict=True))
    stops = tuple(range(1, TOTAL)) if STRESS else (5, )
    run = Run(tmp_path / 'run', whole.experiment.options, processes=2)
    assert_equal_runs(whole, run.train(*stops))
    report(f'exact resume: {named(case)}, two gloo processes, stopped at {stops}')


# ------------------------------------------------------------------------------------------------ other ways to resume


def test_the_best_checkpoint_is_known_although_its_validation_came_after_it(undisturbed, tmp_path):
    """Stopped at 3, where a validation is due: what is kept then is what the undisturbed run keeps."""
    opt = changed(undisturbed(sdgan).experiment.options, logger__save_checkpoint_freq=VAL_FREQ, logger__keep_last=2,
                  logger__keep_best='psnr')
    whole, run = Run(tmp_path / 'whole', opt).train(), Run(tmp_path / 'run', opt).train(3, 6)
    kept = last_state(whole.experiment)['kept']
    assert None not in kept.values() and last_state(run.experiment)['kept'] == kept
    assert run.experiment.states() == whole.experiment.states()
    assert_equal_runs(whole, run)


def test_the_best_by_one_metric_is_not_compared_by_another(undisturbed, tmp_path):
    """A PSNR is larger than every SSIM."""
    opt = changed(undisturbed(sdgan).experiment.options, logger__save_checkpoint_freq=VAL_FREQ, logger__keep_last=2,
                  logger__keep_best='psnr')
    run = Run(tmp_path / 'run', opt)
    ssim = {'type': 'calculate_ssim', 'crop_border': 2}
    run.train(3, resumed=changed(opt, val__metrics__ssim=ssim, logger__keep_best='ssim'))
    state = last_state(run.experiment)
    assert state['kept_by'][0] == 'ssim' and all(abs(value) <= 1 for value in state['kept'].values() if value)


@pytest.mark.parametrize('stop', [3, 4])
def test_a_metric_that_the_state_does_not_know(undisturbed, tmp_path, stop):
    """It is measured from then on; nothing else changes."""
    whole = undisturbed(sdgan)
    run = Run(tmp_path / 'run', whole.experiment.options)
    ssim = {'type': 'calculate_ssim', 'crop_border': 2}
    run.train(stop, resumed=changed(whole.experiment.options, val__metrics__ssim=ssim))
    assert run.fed() == whole.fed() and run.logged() == whole.logged()
    a, b = (last_state(r.experiment) for r in (whole, run))
    assert checkpoint.fingerprint(a['optimizers']) == checkpoint.fingerprint(b['optimizers'])
    of_a, of_b = (state['best_metric_results']['Tiny'] for state in (a, b))
    assert of_b.pop('ssim')['iter'] in (3, 6, 8) and of_a == of_b
    curve = run.experiment.curve()
    assert [i for (i, _), metrics in curve.items() if 'ssim' in metrics] == ([3, 6, 8] if stop == 3 else [6, 8])
    assert {key: metrics['psnr'] for key, metrics in curve.items()} == \
        {key: metrics['psnr'] for key, metrics in whole.experiment.curve().items()}


def test_a_finished_run_goes_back_to_an_older_state(undisturbed, tmp_path):
    """And is stopped: it goes on from there, not from the states that were later."""
    whole = undisturbed(sdgan)
    opt = changed(whole.experiment.options, logger__save_checkpoint_freq=2)
    run = Run(tmp_path / 'run', opt).train()
    folder = run.experiment.folder / 'training_states'
    assert_same_end(whole.experiment, run.experiment)
    again = Run(tmp_path / 'run', changed(opt, path__resume_state=str(folder / '4.state')))
    again.train(5)
    assert [int(line.split()[0]) for line in run.fed()[0]] == [*range(1, 9), *range(5, 9)]
    assert sorted(path.name for path in folder.iterdir()) == ['2.state', '4.state', '5.state', '6.state', '6.state.old',
                                                              '8.state', '8.state.old']
    assert_same_end(whole.experiment, again.experiment)
