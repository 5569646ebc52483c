"""Two gloo processes, each on half a batch, against one process on the whole batch."""
import pytest
import torch
from basicsr.models import build_model
from torch import multiprocessing

from tests.support import UNET, batches, gan_options, save_teacher, train, weights

# statistics of normalized maps are those of each process, as batch normalisation's are
PLAIN = {'normalize': 'none'}
STAGES = [{'name': 'supervised', 'iters': 1, 'losses': ['pixel']},
          {'name': 'distill', 'iters': 1, 'losses': ['pixel', 'feature_kd', 'response_kd'], 'train_d': True},
          {'name': 'adversarial', 'iters': 98, 'losses': ['pixel', 'feature_kd', 'response_kd', 'gan']}]


def run(folder, rank, world_size, mode):
    options = gan_options(folder, {
        'response_kd_opt': {'type': 'L1Loss'}, 'r1_reg_weight': 1, 'net_d_reg_every': 2, 'ema_decay': 0.5,
        'feature_kd_opt': {'type': 'MLPFeatureLoss', 'loss_weight': 0.001, **PLAIN},
        'feature_kd_d_opt': {'type': 'MLPFeatureLoss', **PLAIN},
        'stages': STAGES, 'update_order': mode,
        # plain descent: Adam's first steps are signs of gradients and would hide their size
        'optim_g': {'type': 'SGD', 'lr': 1e-3}, 'optim_d': {'type': 'SGD', 'lr': 1e-3}},
        teacher=save_teacher(folder, network_d={**UNET, 'num_feat': 6}))
    options.update(rank=rank, world_size=world_size, dist=world_size > 1)
    torch.manual_seed(rank)  # as BasicSR seeds its processes: each would start from other weights
    model = build_model(options)
    if rank:
        torch.manual_seed(0)
    half = slice(rank * 2, rank * 2 + 2) if world_size > 1 else slice(None)
    data = [{key: value[half] for key, value in item.items()} for item in batches(4, batch=4)]
    logs = train(model, data)
    return logs, {name: weights(getattr(model, name)) for name in ('net_g', 'net_g_ema', 'net_d', 'aux')}


def process(rank, folder, mode):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    (folder / str(rank)).mkdir()
    torch.save(run(folder / str(rank), rank, 2, mode), folder / f'{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('mode', ['simultaneous', 'g_first', 'd_first'])
def test_two_processes_equal_one(tmp_path, mode):
    multiprocessing.start_processes(process, (tmp_path, mode), nprocs=2, start_method='fork')
    (logs, nets), (other_logs, other_nets) = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert logs == other_logs
    expected_logs, expected = run(tmp_path, 0, 1, mode)
    for log, expected_log in zip(logs, expected_logs, strict=True):
        for measured in (log, expected_log):  # R2 of half a batch refers to the variance of that half
            measured.pop('feature_kd_r2', None)
        assert log == pytest.approx(expected_log, rel=1e-4, abs=1e-6)
    for name, net in nets.items():
        for key, value in net.items():
            assert torch.equal(value, other_nets[name][key]), f'{name}.{key} differs between the processes'
            torch.testing.assert_close(value, expected[name][key], rtol=1e-4, atol=1e-6)


class RandomBranch(torch.nn.Module):
    """Stochastic depth: each process, seeded differently, may skip another branch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 12, 3, 1, 1), torch.nn.Conv2d(3, 12, 5, 1, 2)
        self.branch = None

    def forward(self, x):
        branches = [self.a, self.b] if self.branch is None else [(self.a, self.b)[self.branch]]
        return torch.nn.functional.pixel_shuffle(sum(branch(x) for branch in branches), 2)


def branch_process(rank, folder):
    from basicsr.utils.registry import ARCH_REGISTRY
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    ARCH_REGISTRY._obj_map['RandomBranch'] = RandomBranch
    (folder / str(rank)).mkdir()
    model = build_model(gan_options(folder / str(rank), network_g={'type': 'RandomBranch'}, rank=rank, world_size=2,
                                    dist=True))
    for iteration, branches in enumerate([(0, 1), (1, 1), (1, 0)], 1):
        model.net_g.branch = branches[rank]
        train(model, batches(1), first=iteration)
    torch.save(weights(model.net_g), folder / f'{rank}.pth')
    torch.distributed.destroy_process_group()


def test_processes_that_skip_different_branches_stay_equal(tmp_path):
    multiprocessing.start_processes(branch_process, (tmp_path, ), nprocs=2, start_method='fork')
    a, b = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
