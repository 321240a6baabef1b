"""Folds by what rows hold."""

from __future__ import annotations

import pytest
import torch

from rmd_dist.relations import fold_of, numerics

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_fold_has_its_share(dtype):
    rows = torch.randn(5000, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    sizes = torch.bincount(fold_of(rows, 5), minlength=5)
    assert len(sizes) == 5
    assert sizes.sub(1000).abs().max() < 120  # 4 standard deviations


def test_rows_of_few_values_spread_too():
    """Whose words differ in their high bits alone."""
    rows = ((torch.arange(4096)[:, None] >> torch.arange(12)) & 1).float()
    assert torch.bincount(fold_of(rows, 4), minlength=4).sub(1024).abs().max() < 120


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_share_a_fold_wherever_they_stand(dtype, monkeypatch):
    rows = torch.randn(600, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = fold_of(rows, 7)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(2))
    assert torch.equal(fold_of(torch.cat([rows, rows[order]]), 7), torch.cat([whole, whole[order]]))
    assert torch.equal(fold_of(rows.T.contiguous().T, 7), whole)  # another layout
    monkeypatch.setattr(numerics, "BLOCK_NUMBERS", 1)
    assert torch.equal(fold_of(rows, 7), whole)


def test_places_count():
    """Entries that have changed places make another row."""
    rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(fold_of(rows, 8), fold_of(rows.flip(1), 8))


def test_the_hash_is_the_documented_one():
    """Against Python's integers: folds must not move between versions, devices or torch releases."""
    rows = torch.tensor([[1.0, -2.5], [0.0, 3e-7]], dtype=torch.float32)

    def mixed(x: int) -> int:
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2**64
        return x ^ x >> 31

    weights = [mixed(place * 0x9E3779B97F4A7C15 % 2**64) | 1 for place in (1, 2)]
    for row, fold in zip(rows.view(torch.int32).tolist(), fold_of(rows, 5).tolist(), strict=True):
        h = mixed(sum(word * weight for word, weight in zip(row, weights, strict=True)) % 2**64)
        assert fold == (h - 2**64 if h >= 2**63 else h) % 5


def test_no_rows():
    assert fold_of(torch.zeros(0, 3), 5).shape == (0,)
