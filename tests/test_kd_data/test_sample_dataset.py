"""Latents of validation: fixed by the seed, whatever their number."""
import torch

from kd_data.sample_dataset import SampleDataset


def latents(**opt):
    dataset = SampleDataset({'num_style_feat': 512, **opt})
    return torch.stack([dataset[i]['lq'] for i in range(len(dataset))])


def test_a_larger_set_begins_with_the_smaller_one():
    few, many = latents(n=3, seed=1), latents(n=5, seed=1)
    assert few.shape == (3, 512) and few.dtype is torch.float32
    assert torch.equal(few, many[:3])
    assert len({tuple(row.tolist()) for row in many}) == 5


def test_the_seed_counts():
    assert torch.equal(latents(n=2), latents(n=2, seed=0))
    assert not torch.equal(latents(n=2), latents(n=2, seed=1))


def test_they_are_standard_normal():
    z = latents(n=40)
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03


def test_names_sort_as_numbers():
    dataset = SampleDataset({'num_style_feat': 2, 'n': 12})
    names = [dataset[i]['lq_path'] for i in range(12)]
    assert names == sorted(names) and names[0] == 'sample_00000'
