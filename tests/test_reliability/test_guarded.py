"""Losses and gradients that are not finite: the update is left out, counted and named, on every process."""
import copy
import re

import pytest
import torch
from basicsr.models import build_model
from torch import multiprocessing

from kd_cli.stopping import FAILED
from kd_models.guard import TrainingError
from kd_models.runtime import Runtime
from kd_utils import checkpoint
from tests.support import UNET, WithBatchNorm, assert_equal_weights, batches, gan_options, save_teacher, train, weights
from tests.test_reliability.harness import Experiment

NAN, INF = float('nan'), float('inf')


def with_everything(folder, mode, monkeypatch, **changes):
    """Statistics in the generator, spectral norm in the discriminator, adaptors of both, an EMA that lags behind."""
    from basicsr.utils.registry import ARCH_REGISTRY
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'WithBatchNorm', WithBatchNorm)
    teacher = save_teacher(folder, network_g={'type': 'WithBatchNorm'}, network_d=UNET)
    options = gan_options(folder, {
        'ema_decay': 0.5, 'update_order': mode, 'r1_reg_weight': 1, 'net_d_reg_every': 2,
        'feature_kd_opt': {'type': 'MLPFeatureLoss', 'layers': {'net.0': 'net.0'}},
        'feature_kd_d_opt': {'type': 'MLPFeatureLoss'}, **changes},
        network_g={'type': 'WithBatchNorm'}, network_d=UNET, teacher=teacher)
    torch.manual_seed(0)
    return build_model(options)


def snapshot(model, label):
    """All that an update of net_g or net_d may change."""
    nets = {'net_g': model.net_g, 'net_d': model.net_d,
            **{f'aux.{name}': net for name, net in model.aux.items()}}
    mine = {name: weights(net) for name, net in nets.items()
            if name == label or name.startswith('aux') and name.endswith('_d') == (label == 'net_d')}
    optimizer = model.optimizer_g if label == 'net_g' else model.optimizer_d
    return checkpoint.fingerprint([mine, optimizer.state_dict()]), mine


def poisoned(value, where='lq'):
    data, = batches(1)
    data[where][0, 0, 0, 0] = value
    return data


@pytest.mark.parametrize('mode', ['simultaneous', 'g_first', 'd_first'])
@pytest.mark.parametrize('value', [NAN, INF])
def test_a_poisoned_batch_changes_nothing(tmp_path, monkeypatch, mode, value, warnings_logged):
    model = with_everything(tmp_path, mode, monkeypatch)
    train(model, batches(3))
    before = {label: snapshot(model, label) for label in ('net_g', 'net_d')}
    ema, momentum = weights(model.net_g_ema), weights(model.net_g)
    train(model, [poisoned(value)], first=4)
    for label in before:
        assert snapshot(model, label)[0] == before[label][0], label
    for name, p in model.net_g_ema.named_parameters():  # it follows
        torch.testing.assert_close(p.detach(), 0.5 * ema[name] + 0.5 * momentum[name])
    assert all(value.isfinite().all() for value in model.net_g_ema.state_dict().values())
    texts = [text for text in warnings_logged if 'were skipped' in text]
    assert len(texts) == 2 and all(re.search('1 updates of net_[gd] were skipped', text) for text in texts)
    assert all('l_g_pix' in text for text in texts)
    train(model, batches(1), first=5)
    assert snapshot(model, 'net_g')[0] != before['net_g'][0]  # and on it goes


def test_only_the_update_that_is_not_finite_is_skipped(tmp_path, monkeypatch, warnings_logged):
    """The generator's pixel loss is poisoned; the images that the discriminator sees are fine."""
    model = with_everything(tmp_path, 'simultaneous', monkeypatch)
    term = model.terms['pixel']
    before = {label: snapshot(model, label)[0] for label in ('net_g', 'net_d')}
    monkeypatch.setattr(term, 'criterion', lambda *images: torch.tensor(INF))
    train(model, batches(1))
    assert snapshot(model, 'net_g')[0] == before['net_g'] and snapshot(model, 'net_d')[0] != before['net_d']
    assert any('1 updates of net_g were skipped since the last log: l_g_pix not finite' in text
               for text in warnings_logged)


@pytest.mark.parametrize('fused', [False, True])
def test_a_gradient_that_is_not_finite_under_a_finite_loss(tmp_path, monkeypatch, warnings_logged, fused):
    """Also as on a GPU, where a fused optimizer decides by the flag; its first step included."""
    model = with_everything(tmp_path, 'simultaneous', monkeypatch,
                            optim_g={'type': 'Adam', 'lr': 1e-3, 'fused': fused})

    def sqrt_of_zero(output, gt):  # 0, with an infinite gradient
        return (output - output.detach()).abs().sum().sqrt()
    before, real = weights(model.net_g), model.terms['pixel'].criterion
    monkeypatch.setattr(model.terms['pixel'], 'criterion', sqrt_of_zero)
    log, = train(model, batches(1))
    assert log['l_g_pix'] == 0
    assert_equal_weights(before, weights(model.net_g))
    for state in model.optimizer_g.state.values():
        assert state['step'] == 0 and (state['exp_avg'] == 0).all() and (state['exp_avg_sq'] == 0).all()
    assert any('all losses finite, but a gradient was not' in text for text in warnings_logged)
    monkeypatch.setattr(model.terms['pixel'], 'criterion', real)
    train(model, batches(1), first=2)
    assert all((weights(model.net_g)[name] != before[name]).any() for name, _ in model.net_g.named_parameters())


def test_ten_in_a_row_end_the_training(tmp_path, monkeypatch):
    model = with_everything(tmp_path, 'simultaneous', monkeypatch)
    bad, good = [poisoned(NAN)], batches(1)
    train(model, bad * 9 + good + bad * 9)
    with pytest.raises(TrainingError, match=r'net_g could not be updated 10 times in a row: l_g_pix.* not finite'):
        train(model, [*copy.deepcopy(bad)], first=20)


def test_counts_are_read_with_the_log_only(tmp_path, monkeypatch, warnings_logged):
    model = with_everything(tmp_path, 'simultaneous', monkeypatch)
    for iteration, data in enumerate([poisoned(NAN), *batches(1), poisoned(NAN, 'gt')], 1):
        model.feed_data(data)
        model.optimize_parameters(iteration)
    assert not [text for text in warnings_logged if 'skipped' in text]
    model.get_current_log()
    assert any('2 updates of net_g were skipped' in text for text in warnings_logged)
    warnings_logged.clear()
    model.get_current_log()
    assert not [text for text in warnings_logged if 'skipped' in text]


def test_clipping_bounds_the_norm_of_an_optimizers_gradient():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=1.)
    runtime = Runtime(torch.device('cpu'), train_opt={'grad_clip': 1.})
    for scale, expected in ((4., (-2 / 3, -2 / 3, -1 / 3)), (0.1, (-0.2, -0.2, -0.1))):
        with torch.no_grad():
            for p in parameters:
                p.zero_()
        optimizer.zero_grad()
        runtime.backward(scale * (2 * parameters[0].sum() + parameters[1].sum()))
        runtime.step(optimizer)
        assert torch.cat([p.detach() for p in parameters]).tolist() == pytest.approx(list(expected), rel=1e-5)


def test_an_update_sends_no_number_to_the_device(monkeypatch):
    """A GPU would have to be waited for."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer, runtime = torch.optim.SGD([parameter], lr=1.), Runtime(torch.device('cpu'))
    runtime.protect('net_g', optimizer)
    with monkeypatch.context() as patched:
        patched.setattr(torch, 'tensor', lambda *args, **kwargs: pytest.fail('a number was sent'))
        with runtime.iteration():
            runtime.backward(parameter.sum())
            runtime.step(optimizer)
    assert (parameter == 0).all()


def process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    (folder / str(rank)).mkdir()
    model = build_model(gan_options(folder / str(rank), {'ema_decay': 0.5}, rank=rank, world_size=2, dist=True))
    train(model, batches(2))
    before = weights(model.net_g), weights(model.net_d)
    train(model, [poisoned(NAN) if rank else batches(1)[0]], first=3)  # one process only
    after = weights(model.net_g), weights(model.net_d)
    train(model, batches(1), first=4)
    torch.save([before, after, weights(model.net_g)], folder / f'{rank}.pth')
    torch.distributed.destroy_process_group()


def test_all_processes_skip_what_one_cannot_do(tmp_path):
    multiprocessing.start_processes(process, (tmp_path, ), nprocs=2, start_method='fork')
    results = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    for before, after, last in results:
        for a, b in zip(before, after, strict=True):
            assert_equal_weights(a, b)
        assert any((last[name] != after[0][name]).any() for name in last)
    assert_equal_weights(results[0][2], results[1][2])


def test_the_run_ends_with_its_state_saved(tmp_path, images):
    """Through the command: a generator whose images are not finite from iteration 4 on."""
    experiment = Experiment(tmp_path, images, train__total_iter=40, train__max_bad_steps=5, val__val_freq=40,
                            logger__save_checkpoint_freq=40)

    def poison():
        from kd_models.distillation_model import DistillationModel
        feed, count = DistillationModel.feed_data, iter(range(1, 1000))

        def feed_poisoned(model, data):
            if next(count) > 3:
                data['lq'].fill_(NAN)
            feed(model, data)
        DistillationModel.feed_data = feed_poisoned
    child = experiment.start(before=poison)
    assert child.wait() == FAILED, child.text()[-2000:]
    assert 'error: net_g could not be updated 5 times in a row' in child.text() and 'Traceback' not in child.text()
    assert experiment.states() == [8]
    state = torch.load(experiment.folder / 'models' / 'net_g_8.pth')
    assert all(value.isfinite().all() for key in state for value in state[key].values())
    assert experiment.start('--auto_resume').wait() == 0 and experiment.states()[-1] == 40


def test_a_run_shorter_than_its_print_freq_is_guarded_too(tmp_path, images):
    experiment = Experiment(tmp_path, images, train__total_iter=12, logger__print_freq=100, val__val_freq=100,
                            logger__save_checkpoint_freq=100)

    def poison():
        from kd_models.distillation_model import DistillationModel
        feed = DistillationModel.feed_data
        DistillationModel.feed_data = lambda model, data: feed(model, {**data, 'gt': data['gt'] * NAN})
    child = experiment.start(before=poison)
    assert child.wait() == FAILED and 'times in a row' in child.text() and experiment.states() == [12]
