"""The benchmark: the steps that it compares do the same, and its targets count."""
from dataclasses import replace

import pytest
import torch

from benchmarks import bench
from benchmarks.bench import Bench, Row, main, table
from benchmarks.operations import Operations
from benchmarks.steps import UNET, cases

CPU = torch.device('cpu')
SMALL = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 6, 'num_block': 1, 'upscale': 4}
COMPACT = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 4, 'upscale': 4}
NETWORK_D = {**UNET, 'num_feat': 4}
CHANGES = {
    'SRModel': {},
    'SRGANModel': {'network_g': SMALL, 'network_d': NETWORK_D},
    'SDAKD compact': {'network_g': COMPACT, 'network_d': NETWORK_D,
                      'teacher': {'network_g': {**COMPACT, 'num_feat': 8}, 'network_d': {**UNET, 'num_feat': 6}}},
    'MCAD-KD': {'network_g': SMALL, 'network_d': NETWORK_D, 'teacher': {'network_g': {**SMALL, 'num_feat': 8}}},
}


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(step, data):
    for iteration in range(3):
        torch.manual_seed(iteration)
        step(dict(data))


@pytest.mark.parametrize('name', CHANGES)
def test_the_steps_train_alike(tmp_path, name):
    """Generator, discriminator and EMA of three updates; by hand, and by BasicSR where it has such a model."""
    case = replace(cases(small=True)[name], gt_size=64 if name != 'SRModel' else 32, batch=2)
    case.changes.update(CHANGES[name])
    model, ours = case.ours(tmp_path)
    by_hand, data = case.by_hand(model), case.data(model.opt, CPU)
    before = weights(model.net_g)
    others = [(by_hand, by_hand.net_g, by_hand.net_d, by_hand.ema)]
    if case.stock:
        stock, step = case.of_basicsr(tmp_path)
        others.append((step, stock.net_g, getattr(stock, 'net_d', None), getattr(stock, 'net_g_ema', None)))
    trained(ours, data)
    assert (weights(model.net_g) - before).abs().max() > 1e-4
    for step, *nets in others:
        trained(step, data)
        for mine, other in zip((model.net_g, model.net_d, getattr(model, 'net_g_ema', None)), nets, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                torch.testing.assert_close(weights(other), weights(mine), rtol=0, atol=1e-6)


def test_operations_and_reads_are_counted():
    x = torch.rand(3, requires_grad=True)
    with Operations() as operations:
        y = (x * 2).sum()
        y.backward()
        assert len(operations.reads) == 0
        float(y)
        torch.unique(x.detach())
    assert operations.count >= 5 and len(operations.reads) == 2


def test_the_peak_is_what_is_held_at_once(tmp_path):
    def work():
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        third = second * 2
        del second
        return third

    assert Bench(CPU, 0, tmp_path).peak(work) == pytest.approx(2 * 4e6, rel=0.01)


def test_ratios_are_of_alternating_rounds(tmp_path):
    calls = []
    works = {'slow': lambda: (calls.append('slow'), sum(range(400_000))), 'fast': lambda: (calls.append('fast'),
                                                                                           sum(range(100_000)))}
    [row] = Bench(CPU, 0, tmp_path).compare('sums', works, {'fast': 2}, rounds=15)
    assert row.what == 'sums: slow / fast' and 2.5 < row.value < 6 and row.missed
    rounds = [set(calls[i:i + 2]) for i in range(0, len(calls), 2)]
    assert len(rounds) == 16 and rounds == [{'slow', 'fast'}] * 16 and len(set(calls[::2])) == 2


def test_targets():
    assert [Row('', value, 1.03).missed for value in (1.0, 1.03, 1.031, float('nan'))] == [False, False, True, True]
    assert not Row('', 99.).missed
    text = table([Row('a', 2., 1, {'x': 20., 'y': 10.}), Row('b', 0.5)], milliseconds=True)
    assert '| a | 2 | 1, **missed** | 20.0 / 10.0 |' in text and '| b | 0.500 |  |  |' in text


@pytest.mark.parametrize('value, code', [(4., 0), (6., 1)])
def test_a_missed_target_is_the_exit_code(monkeypatch, capsys, value, code):
    monkeypatch.setattr(Bench, 'crops', lambda self: iter([Row('patch crops', value, 5)]))
    assert main(['--only', 'crops']) == code
    assert '| patch crops | ' in capsys.readouterr().out


def test_the_short_sections_run(monkeypatch, capsys):
    """At their shortest; whether targets are met is not for a busy machine to say."""
    monkeypatch.setattr(Bench, 'alternate', lambda self, works, rounds: {name: [self._time(work)]
                                                                         for name, work in works.items()})
    monkeypatch.setattr(bench, '_degradable', lambda count, device, make=bench._degradable: make(1, device))
    monkeypatch.setattr(bench, '_many', lambda folder, count, many=bench._many: many(folder, count // 1000))
    main(['--only', 'degradation', 'crops', 'pairing', 'validation', '--seconds', '0'])
    rows = [line.split('|')[1].strip() for line in capsys.readouterr().out.splitlines()[4:]]
    assert rows == ['degradation: fast / exact', 'degradation: waits for the device for a batch',
                    'patch crops: batch of 32 / batch of 8', 'pairing: 60,000 files / 20,000 files',
                    'validation: ours / a bare loop']


def test_precision_is_compared_where_it_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, '_known', lambda opt: False)
    assert list(Bench(CPU, 0, tmp_path).precision()) == []
    opt = cases(small=True)['SRModel'].options(tmp_path)
    monkeypatch.undo()
    assert bench._known(opt) and not bench._known({**opt, 'train': {**opt['train'], 'no_such_key': 1}})


def test_a_gpu_that_is_not_there(capsys):
    if torch.cuda.is_available():
        pytest.skip('there is one')
    with pytest.raises(SystemExit):
        main(['--gpu'])
    assert 'there is no GPU here. Leave --gpu out.' in capsys.readouterr().err
