"""Folds of cross-fitting by what rows hold, so that equal rows are never on both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from rmd_dist.relations.numerics import row_blocks

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # constants of SplitMix64 (Steele et al. 2014), as int64
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def fold_of(features: Tensor, folds: int) -> Tensor:
    """Fold (n,), int64, in 0 to folds - 1, of each row (n, D), of 2, 4 or 8 bytes a number: a hash of them.

    Equal rows have equal folds on every rank and device, in any order; so have the copies of an image. (0.0
    and -0.0 are not equal here.)
    """
    width = features.shape[1]
    places = torch.arange(1, width + 1, device=features.device)
    weights = _mixed(places * _GOLDEN) | 1
    found = torch.empty(len(features), dtype=torch.int64, device=features.device)
    for block in row_blocks(len(features), width):
        rows = features[block].contiguous()
        words = rows.view(_WORDS[rows.element_size()]).long()
        found[block] = (words * weights).sum(1)  # modulo 2^64
    return _mixed(found) % folds


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of the result depends on every bit of x (int64, wrapping)."""
    for shift, factor in zip((30, 27), _MIX, strict=True):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of unsigned numbers; torch's own shift draws the sign after it."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
