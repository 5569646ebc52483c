"""Stages: a pure function of the iteration."""
import pytest

from kd_models.stages import Stages

OPTIONS = [{'name': 'a', 'iters': 3, 'losses': ['pixel']},
           {'name': 'b', 'iters': 2e0, 'losses': ['pixel', 'feature_kd'], 'train_d': True},
           {'name': 'c', 'iters': 5, 'losses': ['pixel', 'gan'], 'optimizer': 'fresh', 'weights': {'gan': 2}}]


def test_boundaries_and_defaults():
    stages = Stages({'total_iter': 10, 'stages': OPTIONS}, ['pixel', 'feature_kd', 'gan'])
    assert [stages.at(i).name for i in range(1, 13)] == list('aaabbccccccc')  # the last one beyond the end
    assert [(s.start, s.end) for s in stages] == [(1, 3), (4, 5), (6, 10)]
    assert [s.train_d for s in stages] == [False, True, True]
    assert [s.optimizer for s in stages] == ['keep', 'keep', 'fresh'] and stages[2].weights == {'gan': 2}
    assert 'updates generator and discriminator' in str(stages[1])


def test_without_stages_everything_is_on():
    (stage,) = Stages({'total_iter': 7}, ['pixel', 'gan'])
    assert (stage.start, stage.end, stage.losses, stage.train_d) == (1, 7, ('pixel', 'gan'), True)


@pytest.mark.parametrize('losses, configured, expected', [
    (['pixel'], ['pixel'], [True]),                                           # nothing else distils: everywhere
    (['pixel', 'feature_kd'], ['pixel', 'feature_kd'], [True]),
    (['pixel'], ['pixel', 'feature_kd'], [False]),                            # a stage without distillation
])
def test_where_the_discriminator_is_distilled(losses, configured, expected):
    features = [name for name in configured if name == 'feature_kd']
    stages = Stages({'total_iter': 1, 'stages': [{'name': 'a', 'iters': 1, 'losses': losses}]}, configured, features)
    assert [s.distill_d for s in stages] == expected


def test_the_teachers_discriminator_does_not_train_the_students():
    stages = Stages({'total_iter': 1, 'stages': [{'name': 'a', 'iters': 1, 'losses': ['gan'],
                                                  'discriminator': 'teacher'}]}, ['gan'])
    assert not stages[0].train_d


@pytest.mark.parametrize('change', [{'name': 'other'}, {'optimizer': 'fresh'}, {'ema': 'fresh'}, {'adaptors': 'fresh'},
                                    {'phase': 2}])
def test_what_a_stage_does_at_its_beginning_is_in_the_plan(change):
    """By which a resumed run knows that its stages are not those that the state was made by."""
    def plan(first, second):
        return Stages({'total_iter': 10, 'stages': [{'name': 'a', 'iters': 5, 'losses': ['pixel'], **first},
                                                    {'name': 'b', 'iters': 5, 'losses': ['pixel'], **second}]},
                      ['pixel']).plan()
    assert plan({}, {}) == plan({}, {})
    assert plan(change, {}) != plan({}, {}) != plan({}, change)
    assert plan({'iters': 4}, {'iters': 6}) != plan({}, {})
