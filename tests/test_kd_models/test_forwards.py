"""The table of forwards: who is called, in which order, and what each writes."""
import torch

from kd_models.forwards import FORWARDS, run
from kd_models.step import Step
from tests.support import batches, build, full_options, save_teacher, weights


def step_for(model, wanted, **more):
    [item] = batches(1)
    return Step(1, model.training.stages.at(1), item['lq'], {'gt': item['gt']}, wanted=frozenset(wanted), **more)


def test_what_is_wanted_runs_in_the_order_of_the_table(tmp_path):
    options = full_options(tmp_path)
    (tmp_path / 'large').mkdir()
    options['teachers'] = {'large': save_teacher(tmp_path / 'large')}
    options['train']['response_kd_opt']['teacher'] = 'large'
    model, called = build(options), []
    table = {kind: lambda training, step, name: called.append(name) for kind in FORWARDS}
    run(table, model.training, step_for(model, ['teacher.large', 'teacher', 'ema', 'student']))
    run(table, model.training, step_for(model, ['teacher.large']))
    assert called == ['student', 'ema', 'teacher', 'teacher.large', 'teacher.large']


def test_what_each_writes(tmp_path):
    """Only the student's has a graph; its maps and the teacher's are those that the losses read."""
    model = build(full_options(tmp_path))
    step = step_for(model, ['student', 'ema', 'teacher'], losses=('pixel', 'feature_kd'))
    run(FORWARDS, model.training, step)
    assert step.output.requires_grad and not step.ema.requires_grad and not step.teachers['teacher'].requires_grad
    assert torch.equal(step.output, step.ema)  # before the first update
    assert torch.equal(step.teachers['teacher'], model.teacher.generate(step.lq)[0])
    assert list(step.features) == ['student', 'teacher'] and all(step.features.values())


def test_a_cached_image_stands_for_the_pass(tmp_path):
    model = build(full_options(tmp_path))
    cached = torch.rand(2, 3, 32, 32)
    step = step_for(model, ['teacher'], cached={'teacher': cached})
    model.teacher.net_g.forward = None
    run(FORWARDS, model.training, step)
    assert torch.equal(step.teachers['teacher'], cached)


def test_batch_statistics_of_what_is_not_wanted_stay(tmp_path):
    model = build(full_options(tmp_path))
    before = weights(model.net_d)
    run(FORWARDS, model.training, step_for(model, ['student']))
    assert all(torch.equal(value, before[name]) for name, value in model.net_d.state_dict().items())
