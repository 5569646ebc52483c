"""BasicSR's train and test pipelines, made of its own builders and loggers, with what they lack.

Same flags, folders, files and log lines as `basicsr.train.train_pipeline` and `basicsr.test.test_pipeline`. Besides,
options are checked before anything is built; processes talk over gloo where there is no GPU; every draw of an image is
seeded by its number; training resumes on a CPU, at the position in the epoch where it stopped; a progress bar.
`--loop basicsr` runs the stock pipelines instead.
"""
from __future__ import annotations

import datetime
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from os import path as osp
from pathlib import Path
from typing import Any

import torch
import yaml
from basicsr.data import build_dataloader
from basicsr.data.prefetch_dataloader import CUDAPrefetcher
from basicsr.models import build_model
from basicsr.test import test_pipeline as stock_test_pipeline
from basicsr.train import init_tb_loggers
from basicsr.train import train_pipeline as stock_train_pipeline
from basicsr.utils import (
    AvgTimer,
    MessageLogger,
    get_env_info,
    get_root_logger,
    get_time_str,
    make_exp_dirs,
    mkdir_and_rename,
)
from basicsr.utils.dist_util import master_only
from basicsr.utils.options import dict2str
from basicsr.utils.registry import MODEL_REGISTRY
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from kd_cli import processes
from kd_cli.resume import find_resume_state, remove_unfinished, set_aside_later
from kd_cli.speed import speed_line
from kd_cli.stopping import IgnoringSignals, Stopped, StopRequest, announce
from kd_data.building import build_dataset
from kd_data.draws import DrawSampler, SeededDraws, seed_everything
from kd_data.teacher_cache import TeacherCache
from kd_models.distillation_model import DistillationModel
from kd_models.guard import TrainingError
from kd_utils.lock import ExperimentLock
from kd_utils.options import OptionError, check_files, check_options, parse_options, teacher_caches
from kd_utils.schema import CheckedOptions
from kd_utils.schema.tables import FOLDERS, RUN


def train_pipeline(root_path: str, argv: Sequence[str] | None = None) -> None:
    """Trains as the command line says.

    Args:
        root_path: The folder of `experiments/` and `tb_logger/`.
        argv: Arguments, `sys.argv[1:]` by default.

    Raises:
        OptionError: The options or the files that they name are wrong; nothing was created.
        CheckpointError: The state to resume from, or one of its files, is damaged, or a file cannot be written.
        TrainingError: The training cannot go on; its state is saved.
        Stopped: A signal asked for it; the state is saved.
        ProcessLost: Another process of the job has ended.
    """
    opt, args = _read_options(argv, root_path, is_train=True)
    if args.print_options:
        _print_options(opt)
        return
    if args.loop == 'basicsr':
        _run_stock(stock_train_pipeline, opt, args, root_path)
        return
    processes.start(opt, args)
    torch.backends.cudnn.benchmark = True
    with processes.noticing_lost_ones(), StopRequest() as request, _logging(opt, args) as open_log_file, \
            ExperimentLock(opt['path']['experiments_root']) as lock:
        processes.agreed(lock.hold)  # where the run has a folder already; a new one is locked once it is made
        logger = get_root_logger()
        resume_state = find_resume_state(opt)
        train_loader, sampler, val_loaders = create_loaders(opt)
        model = build_model(opt)
        current_iter = 0
        if resume_state:
            model.resume_training(resume_state)
            current_iter = resume_state['iter']
            logger.info(f"Resuming training from epoch: {resume_state['epoch']}, iter: {current_iter}.")
        caches = _caches(sampler.dataset)
        for cache in caches:
            cache.claim(model.cache_record(cache.name))
        # nothing is created, and no older run archived, before all that could be refused is built
        processes.agreed(lambda: _make_folders(opt, lock, current_iter if resume_state else None))
        _write_options(opt, args, opt['path']['experiments_root'])
        open_log_file('train')
        tb_logger = init_tb_loggers(opt)
        for cache in caches:
            _fill_cache(opt, cache, model, request)
        _train(opt, model, train_loader, sampler, val_loaders, current_iter, tb_logger, request)
        if tb_logger:
            tb_logger.close()
    processes.stop()


def _train(opt: dict[str, Any], model: Any, train_loader: DataLoader, sampler: DrawSampler,
           val_loaders: list[DataLoader], current_iter: int, tb_logger: Any, request: StopRequest) -> None:
    """The loop over iterations, from `current_iter` + 1 to `total_iter`."""
    logger, total = get_root_logger(), int(opt['train']['total_iter'])
    message_logger = MessageLogger(opt, current_iter, tb_logger)
    message_logger.max_iters = total + 1  # its ETA is one iteration short, and ends at -1 day
    batch = train_loader.batch_size * opt['world_size']  # type: ignore[operator]
    data_timer, iter_timer, start_time = AvgTimer(), AvgTimer(), time.time()
    warmup, stage, meeting = opt['train'].get('warmup_iter', -1), None, processes.Meeting()
    model.interrupted = lambda: bool(request)
    if current_iter and hasattr(model, 'validated') and _validation_is_due(opt, current_iter):
        _validate(opt, model, val_loaders, current_iter, tb_logger)  # what was left of it when the run was stopped
        if meeting.anyone(bool(request)):
            raise Stopped(f'Stopped at iteration {current_iter}, whose state is there. Go on with --auto_resume.')
    with _progress_bar(current_iter, total, opt['rank']) as bar:
        for epoch, data in _batches(opt, train_loader, sampler, current_iter, total):
            data_timer.record()
            current_iter += 1
            model.update_learning_rate(current_iter, warmup_iter=warmup)
            # what the step draws is a function of the iteration, so nothing has to be restored on resume
            seed_everything(opt['manual_seed'], opt['rank'], current_iter)
            model.feed_data(data)
            model.optimize_parameters(current_iter)
            iter_timer.record()
            if tb_logger and getattr(model, 'stage', None) is not stage:
                stage = model.stage
                tb_logger.add_text('stage', str(stage), current_iter)
            if current_iter == 1:
                message_logger.reset_start_time()
            if current_iter % opt['logger']['print_freq'] == 0:
                with _saving_what_fails(model, epoch, current_iter):
                    log = model.get_current_log()
                seconds, waiting = iter_timer.get_avg_time(), data_timer.get_avg_time()
                message_logger({'epoch': epoch, 'iter': current_iter, 'lrs': model.get_current_learning_rate(),
                                'time': seconds, 'data_time': waiting, **log})
                logger.info(speed_line(batch, seconds, waiting, gpu=opt['num_gpu'] != 0))
                losses = {name: f'{value:.3g}' for name, value in log.items() if name.startswith('l_')}
                bar.set_postfix({'images/s': f'{batch / max(seconds, 1e-9):.1f}', **losses})
            bar.update()
            if _validation_is_due(opt, current_iter):
                _validate(opt, model, val_loaders, current_iter, tb_logger)
            stopping = meeting.anyone(bool(request))
            if stopping:
                announce(request)
            if stopping or current_iter == total or current_iter % opt['logger']['save_checkpoint_freq'] == 0:
                # after the validation of the same iteration, so that the state knows the best metrics
                logger.info('Saving models and training states.')
                model.save(epoch, current_iter)
            if stopping:
                raise Stopped(f'Stopped at iteration {current_iter} with its state saved. Go on with --auto_resume.')
            data_timer.start()
            iter_timer.start()
    elapsed = datetime.timedelta(seconds=int(time.time() - start_time))
    logger.info(f'End of training. Time consumed: {elapsed}')
    logger.info('Save the latest model.')
    model.save(epoch=-1, current_iter=-1)


def _validation_is_due(opt: dict[str, Any], iteration: int) -> bool:
    last = iteration == int(opt['train']['total_iter'])
    return bool(opt.get('val')) and (last or iteration % opt['val']['val_freq'] == 0)


def _validate(opt: dict[str, Any], model: Any, loaders: list[DataLoader], iteration: int, tb_logger: Any) -> None:
    """All validation sets that this iteration's weights have not been validated on."""
    validated = getattr(model, 'validated', {})
    done = validated['metrics'] if validated.get('iter') == iteration else {}
    for loader in loaders:
        if loader.dataset.opt['name'] not in done:  # type: ignore[attr-defined]
            model.validation(loader, iteration, tb_logger, opt['val']['save_img'])


@contextmanager
def _saving_what_fails(model: Any, epoch: int, iteration: int) -> Iterator[None]:
    """Saves the state of a training that cannot go on."""
    try:
        yield
    except TrainingError:
        model.save(epoch, iteration)
        raise


def test_pipeline(root_path: str, argv: Sequence[str] | None = None) -> None:
    """Tests as the command line says; see `train_pipeline`."""
    opt, args = _read_options(argv, root_path, is_train=False)
    if args.print_options:
        _print_options(opt)
        return
    if args.loop == 'basicsr':
        _run_stock(stock_test_pipeline, opt, args, root_path)
        return
    processes.start(opt, args)
    torch.backends.cudnn.benchmark = True
    with _logging(opt, args) as open_log_file:
        logger, loaders = get_root_logger(), []
        for _, dataset_opt in sorted(opt['datasets'].items()):
            loaders.append(_loader(build_dataset(dataset_opt), dataset_opt, opt))
            logger.info(f"Number of test images in {dataset_opt['name']}: {len(loaders[-1])}")
        model = build_model(opt)
        make_exp_dirs(opt)
        _write_options(opt, args, opt['path']['results_root'])
        open_log_file('test')
        for loader in loaders:
            logger.info(f"Testing {loader.dataset.opt['name']}...")  # type: ignore[attr-defined]
            model.validation(loader, current_iter=opt['name'], tb_logger=None, save_img=opt['val']['save_img'])
    processes.stop()


def _read_options(argv: Sequence[str] | None, root_path: str, is_train: bool) -> tuple[dict[str, Any], Any]:
    """The options, checked as far as is possible without building anything."""
    opt, args = parse_options(sys.argv[1:] if argv is None else list(argv), root_path, is_train)
    args.text = Path(args.opt).read_text(encoding='utf-8')  # its folder may be archived soon
    name = opt.get('model_type')
    model = MODEL_REGISTRY._obj_map.get(name) if isinstance(name, str) else None
    if isinstance(model, type) and issubclass(model, DistillationModel):
        args.messages += model.complete(opt)
    args.messages += check_options(opt, DistillationModel.losses)
    check_files(opt)
    if args.loop == 'basicsr' and is_train and teacher_caches(opt):
        raise OptionError("`teacher.cache` is not read by BasicSR's loop. Leave `--loop basicsr` or the cache out.")
    return CheckedOptions(opt), args


def _print_options(opt: dict[str, Any]) -> None:
    """The options as a file of their own, without what is set for this run only."""
    written = {key: value for key, value in opt.items() if key not in RUN}
    written['path'] = {key: value for key, value in opt['path'].items() if key not in FOLDERS}
    print(yaml.safe_dump(written, sort_keys=False), end='')


def _run_stock(pipeline: Any, opt: dict[str, Any], args: Any, root_path: str) -> None:
    """BasicSR's own loop, on a plain YAML file in which aliases, variables and `--force_yml` are already applied."""
    for message in args.messages:
        print(message, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = osp.join(folder, osp.basename(args.opt))
        with open(plain, 'w', encoding='utf-8') as file:
            yaml.safe_dump(dict(opt), file, sort_keys=False)
        flags = ['--auto_resume'] * args.auto_resume + ['--debug'] * args.debug
        sys.argv = [sys.argv[0], '-opt', plain, '--launcher', args.launcher, *flags]
        pipeline(root_path)


@contextmanager
def _logging(opt: dict[str, Any], args: Any) -> Iterator[Callable[[str], None]]:
    """BasicSR's logger; what it is told before the run has a folder waits for the log file.

    Yields:
        A function that opens the log file, given `train` or `test`.
    """
    logger = get_root_logger()
    waiting = MemoryHandler(capacity=10**9, flushLevel=logging.CRITICAL + 1)

    @master_only
    def open_log_file(task: str) -> None:
        file = logging.FileHandler(osp.join(opt['path']['log'], f"{task}_{opt['name']}_{get_time_str()}.log"))
        file.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
        waiting.setTarget(file)
        waiting.flushLevel = logging.NOTSET  # from now on nothing waits
        waiting.flush()

    logger.addHandler(waiting)
    if opt['rank'] == 0:
        logger.setLevel(logging.INFO)
    try:
        logger.info(get_env_info())
        logger.info(dict2str(opt))
        for message in args.messages:
            logger.warning(message)
        yield open_log_file
    finally:
        logger.removeHandler(waiting)
        if waiting.target:
            waiting.target.close()


def _make_folders(opt: dict[str, Any], lock: ExperimentLock, resumed: int | None) -> None:
    """The folders of a training: BasicSR's, which archives an older run, or those that a resumed run lacks."""
    if resumed is not None:  # perhaps from the state of another experiment
        for folder in ('experiments_root', 'models', 'training_states', 'visualization'):
            os.makedirs(opt['path'][folder], exist_ok=True)
        lock.hold()  # the folder may have been made just now
        remove_unfinished(opt['path'])
        if not opt['auto_resume']:
            set_aside_later(opt['path'], resumed)
        return
    lock.hold()  # another run may have made the folder since the first look; then this one is refused
    lock.before_renaming()
    make_exp_dirs(opt)  # which renames the folder of an older run, lock and all
    lock.hold()  # that of the new folder
    if opt['logger'].get('use_tb_logger') and 'debug' not in opt['name']:
        mkdir_and_rename(osp.join(opt['root_path'], 'tb_logger', opt['name']))


@master_only
def _write_options(opt: dict[str, Any], args: Any, folder: str) -> None:
    """BasicSR's copy of the YAML file with the command on top, and `options.yml` with the options as run."""
    with open(osp.join(folder, osp.basename(args.opt)), 'w', encoding='utf-8') as file:
        file.write(f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {" ".join(sys.argv)}\n\n{args.text}')
    with open(osp.join(folder, 'options.yml'), 'w', encoding='utf-8') as file:
        yaml.safe_dump(dict(opt), file, sort_keys=False)


def create_loaders(opt: dict[str, Any]) -> tuple[DataLoader, DrawSampler, list[DataLoader]]:
    """The training loader with its sampler, and a loader for each validation set."""
    logger, val_loaders = get_root_logger(), []
    for phase, dataset_opt in opt['datasets'].items():
        dataset = build_dataset(dataset_opt)
        if phase == 'train':
            for teacher, folder in teacher_caches(opt).items():
                dataset = TeacherCache(dataset, folder, teacher)
            ratio = dataset_opt.get('dataset_enlarge_ratio', 1)
            sampler = DrawSampler(dataset, opt['world_size'], opt['rank'], ratio)
            train_loader = _loader(SeededDraws(dataset, opt['manual_seed']), dataset_opt, opt, sampler)
            if not len(train_loader):
                raise OptionError(f'datasets.train has {len(dataset)} images, fewer than a batch of '
                                  f'{train_loader.batch_size} on {opt["world_size"]} processes needs. '
                                  'Set dataset_enlarge_ratio higher, or batch_size_per_gpu lower.')
            total = int(opt['train']['total_iter'])
            logger.info('Training statistics:'
                        f'\n\tNumber of train images: {len(dataset)}'
                        f'\n\tDataset enlarge ratio: {ratio}'
                        f'\n\tBatch size per gpu: {dataset_opt["batch_size_per_gpu"]}'
                        f'\n\tWorld size (gpu number): {opt["world_size"]}'
                        f'\n\tRequire iter number per epoch: {len(train_loader)}'
                        f'\n\tTotal epochs: {-(-total // len(train_loader))}; iters: {total}.')
        else:
            val_loaders.append(_loader(dataset, dataset_opt, opt))
            logger.info(f'Number of val images/folders in {dataset_opt["name"]}: {len(dataset)}')
    return train_loader, sampler, val_loaders


def _caches(dataset: Any) -> list[TeacherCache]:
    """The caches of the teachers, each of which holds the set before it."""
    return [*_caches(dataset.dataset), dataset] if isinstance(dataset, TeacherCache) else []


def _fill_cache(opt: dict[str, Any], cache: TeacherCache, model: Any, request: StopRequest) -> None:
    """Makes the images that the teacher's cache lacks, each process its share."""
    logger, missing, meeting = get_root_logger(), cache.missing(opt['rank'], opt['world_size']), processes.Meeting()
    logger.info(f'Teacher cache {cache.folder}: {len(missing)} images to be made on this process, for a training set '
                f'of {len(cache)}.')
    with _progress_bar(0, len(missing), opt['rank']) as bar:
        made = cache.fill(missing, lambda lq: model.cacheable(lq.to(model.device), cache.name))
        for done, _ in enumerate(made, 1):
            bar.update()
            if request:
                raise Stopped(f'Stopped before the training, with {done} of {len(missing)} missing images of the '
                              "teacher's cache made. They are kept; start again to go on.")
            if done == len(missing) or done % -(-len(missing) // 10) == 0:  # in a log file there is no bar
                logger.info(f'Teacher cache: {done} of {len(missing)} images made.')
    meeting.anyone(False)  # shares may differ by hours


def _loader(dataset: Any, dataset_opt: dict[str, Any], opt: dict[str, Any], sampler: Any = None) -> DataLoader:
    if dataset_opt.get('prefetch_mode') == 'cpu':
        # workers load ahead by themselves; BasicSR's thread never ends, keeps them, and at its exit the process waits
        # for them for ever
        dataset_opt = {**dataset_opt, 'prefetch_mode': None}
    dataset_opt = {'pin_memory': opt['num_gpu'] != 0, **dataset_opt}  # else a GPU is waited for in every iteration
    loader = build_dataloader(dataset, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], sampler=sampler,
                              seed=opt['manual_seed'])
    loader.worker_init_fn = IgnoringSignals(loader.worker_init_fn)
    return loader


def _batches(opt: dict[str, Any], loader: DataLoader, sampler: DrawSampler, done: int,
             total: int) -> Iterator[tuple[int, Any]]:
    """(epoch, batch) of iterations `done` + 1 to `total`: where an epoch is left is where it is resumed."""
    epoch, batches_done = divmod(done, len(loader))
    sampler.resume(epoch, batches_done * loader.batch_size)  # type: ignore[operator]
    use_cuda = opt['datasets']['train'].get('prefetch_mode') == 'cuda' and opt['num_gpu'] != 0
    while done < total:
        sampler.set_epoch(epoch)
        for data in _cuda_batches(loader, opt) if use_cuda else loader:
            done += 1
            yield epoch, data
            if done == total:
                break
        epoch += 1


def _cuda_batches(loader: DataLoader, opt: dict[str, Any]) -> Iterator[Any]:
    """BasicSR's prefetcher, which copies the next batch to the GPU on a stream of its own.

    To that stream the memory of a batch returns, which must not use it again while this one still reads it.
    """
    prefetcher = CUDAPrefetcher(loader, opt)
    while (data := prefetcher.next()) is not None:
        for value in data.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(torch.cuda.current_stream())
        yield data


@contextmanager
def _progress_bar(done: int, total: int, rank: int) -> Iterator[tqdm]:
    """A bar with ETA on a terminal, above which log lines scroll; nothing elsewhere."""
    if rank != 0 or not sys.stderr.isatty():
        yield tqdm(disable=True)
        return
    with logging_redirect_tqdm([get_root_logger()]), \
            tqdm(initial=done, total=total, unit='it', dynamic_ncols=True) as bar:
        yield bar
