"""Datasets of any size: the pairs are BasicSR's, found in linear time, and their names are no Python objects."""
import os
import pickle
import time
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from basicsr.data import build_dataset as stock_build_dataset
from basicsr.data import paired_image_dataset
from basicsr.data.data_util import paired_paths_from_folder
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import DataLoader, Dataset

from kd_data import building
from kd_data.building import PackedRecords, PackedTexts, build_dataset, paired_paths
from kd_data.draws import DrawSampler, SeededDraws, seed_everything
from kd_utils.options import OptionError

TEXTS = ['set/a.png', 'set/b.c.png', 'set/ü 漢.png', 'set/' + os.fsdecode(b'\xff.png'), 'set/', 'set/long' * 9]


@pytest.fixture
def folders(tmp_path):
    for folder, template in (('lq', '{}x2.png'), ('gt', '{}.png')):
        (tmp_path / folder / 'sub').mkdir(parents=True)
        (tmp_path / folder / '.hidden').touch()
        (tmp_path / folder / 'sub' / 'x.png').touch()
        for name in ('b', 'a', '10', 'c.d', 'ü'):
            (tmp_path / folder / template.format(name)).touch()
    return [str(tmp_path / 'lq'), str(tmp_path / 'gt')]


def paired(images, **options):
    return {'name': 'Tiny', 'type': 'PairedImageDataset', 'dataroot_gt': str(images / 'hr'), 'phase': 'train',
            'dataroot_lq': str(images / 'lr'), 'io_backend': {'type': 'disk'}, 'gt_size': 32, 'use_hflip': True,
            'use_rot': True, 'scale': 2, **options}


def test_the_pairs_are_basicsrs(folders):
    arguments = folders, ['lq', 'gt'], '{}x2'
    assert paired_paths(*arguments) == paired_paths_from_folder(*arguments)
    assert len(paired_paths(*arguments)) == 5


def test_it_takes_linear_time(monkeypatch):
    """60,000 pairs, with which BasicSR's lookups in a list take 20 seconds."""
    monkeypatch.setattr(building, '_names', lambda folder: [f'{number:06}.png' for number in range(60_000)])
    start = time.perf_counter()
    assert len(paired_paths(['lq', 'gt'], ['lq', 'gt'], '{}')) == 60_000
    assert time.perf_counter() - start < 4


@pytest.mark.parametrize('template, message', [('{}', '.png in .*gt has no partner .*.png in .*lq. Add it'),
                                               ('{}x2', 'gt has 5 images, and .*lq has 6')])
def test_what_does_not_pair_is_refused(folders, template, message):
    if template == '{}x2':
        open(os.path.join(folders[0], 'more.png'), 'w').close()
    with pytest.raises(OptionError, match=message):
        paired_paths(folders, ['lq', 'gt'], template)


@pytest.mark.parametrize('texts', [TEXTS, TEXTS[:1], ['x', 'y'], ['', ''], []])
def test_packed_texts_are_the_texts(texts):
    packed = PackedTexts(texts)
    assert list(packed) == texts and len(packed) == len(texts)
    assert [packed[-1 - i] for i in range(len(texts))] == texts[::-1]
    assert packed[1:3] == texts[1:3] and packed[::-2] == texts[::-2]
    for index in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            packed[index]


def test_packed_records_are_the_records():
    records = [{'lq_path': f'lq/{text}', 'gt_path': f'gt/{text}'} for text in TEXTS]
    packed = PackedRecords(records)
    assert list(packed) == records and packed[-1] == records[-1] and packed[:2] == records[:2]


def test_they_are_small_and_shared_with_spawned_workers():
    """What a worker is sent does not grow with them, and what they hold is little more than the differing letters."""
    texts = [f'/a/folder/with/a/long/name/{number:07}.png' for number in range(20_000)]
    packed = PackedTexts(texts)
    assert len(ForkingPickler.dumps(packed)) < 3000
    assert len(pickle.dumps(packed)) < 20_000 * (len('/0000000.png') + 8 + 1)


def test_a_dataset_gives_basicsrs_items(images):
    ours, stock = build_dataset(paired(images)), stock_build_dataset(paired(images))
    assert isinstance(ours.paths, PackedRecords) and list(ours.paths) == stock.paths
    for index in range(len(stock)):
        items = []
        for dataset in (ours, stock):
            seed_everything(index)
            items.append(dataset[index])
        assert all(torch.equal(items[0][key], items[1][key]) for key in ('lq', 'gt'))
        assert items[0]['lq_path'] == items[1]['lq_path']
    assert paired_image_dataset.paired_paths_from_folder is paired_paths_from_folder, 'BasicSR is left as it was'


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_workers_read_them(images, context):
    dataset = build_dataset(paired(images))
    loader = DataLoader(SeededDraws(dataset, 0), sampler=DrawSampler(dataset, 1, 0), num_workers=1,
                        multiprocessing_context=context)
    assert len({item['lq_path'][0] for item in loader}) == 6


def test_lists_of_one_name_are_packed(images):
    single = build_dataset({'name': 'Single', 'type': 'SingleImageDataset', 'dataroot_lq': str(images / 'lr'),
                            'io_backend': {'type': 'disk'}, 'phase': 'val', 'scale': 2})
    assert isinstance(single.paths, PackedTexts) and len(single.paths) == 6
    assert single[0]['lq'].shape == (3, 32, 32)


def test_the_lists_of_another_projects_dataset_stay_lists(images, monkeypatch):
    class OfAnotherProject(PairedImageDataset):
        def __init__(self, opt):
            super().__init__(opt)
            self.paths.append(self.paths[0])

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'OfAnotherProject', OfAnotherProject)
    assert len(build_dataset(paired(images, type='OfAnotherProject')).paths) == 7


def test_a_dataset_without_paths(monkeypatch):
    class Bare(Dataset):
        def __init__(self, opt):
            pass

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'Bare', Bare)
    assert isinstance(build_dataset({'name': 'x', 'type': 'Bare'}), Bare)
