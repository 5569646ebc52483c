"""The tables of keys."""
from __future__ import annotations

from kd_utils.options import nearest
from kd_utils.schema import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, arguments, tables
from kd_utils.schema.arguments import arguments_of
from kd_utils.schema.kinds import KINDS, words
from kd_utils.schema.messages import nearest_or_all


def test_every_kind_in_the_tables_exists():
    found = [value for name, value in {**vars(tables), **vars(arguments)}.items()
             if isinstance(value, dict) and not name.startswith('__')
             and all(isinstance(kind, str) for kind in value.values())]
    found += tables.DATASETS.values()
    kinds = {kind.partition('!')[0].rstrip('?') for table in found for kind in table.values()}
    assert len(found) > 20
    assert all('|' in kind or set(kind.split(' or ')) <= KINDS.keys() for kind in kinds), kinds - KINDS.keys()


def test_every_dataset_of_basicsr_has_a_table():
    names = {name.removesuffix('_basicsr') for name, cls in DATASET_REGISTRY if cls.__module__.startswith('basicsr.')}
    assert names == set(tables.DATASETS)


def test_every_registered_signature_becomes_a_table():
    for registry in (ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY):
        for name, factory in registry:
            for kind in arguments_of(factory).values():
                assert words(kind.rstrip('!')), name
    assert arguments_of(tables.OPTIMIZERS['Adam'])['betas'] == 'betas'
    assert not {'Optimizer', 'LBFGS', 'SparseAdam', 'Muon'} & tables.OPTIMIZERS.keys()


def test_nearest():
    assert nearest('scael', ['scale', 'name']) == ' Did you mean `scale`?'
    assert nearest('SCALE', ['scale']) == ' Did you mean `scale`?'
    assert nearest('zzz', ['scale']) == '' and nearest('a', []) == ''


def test_of_many_names_the_message_has_eight():
    assert nearest_or_all('z', 'hgfedcba') == ' Choose from: a, b, c, d, e, f, g, h.'
    names = [f'network{i:03}' for i in range(500)] + ['calculate_psnr']
    hint = nearest_or_all('psnr', names)
    assert hint.startswith(' Choose from: calculate_psnr, network0') and hint.endswith(', ...')
    assert hint.count(', ') == 8
