"""Counter-based randomness: every number is a pure function of (seed, epoch, sample, view, draw).

Nothing is ever advanced, so the order of evaluation, the number of threads and ranks and the step a
run was resumed at cannot change a number (docs/architecture.md, contracts 1 and 2). All functions but
`permutation` are numba kernels, callable from other kernels and from Python.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, constants of Stafford's variant
13), chained over the coordinates; along `draw` it is SplitMix64 itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rmd_dist.data.render.jit import kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3, _SHIFT_UNIT = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53


def permutation(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of `n` things in `epoch`, (n,) int64: a permutation of 0 .. n - 1.

    `seed` and `epoch` are at least 0 and below 2**63.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


@kernel
def _mix(z: np.uint64) -> np.uint64:
    """A bijection of 64-bit words in which every input bit reaches every output bit."""
    z = (z ^ (z >> _SHIFT_1)) * _MULTIPLY_1
    z = (z ^ (z >> _SHIFT_2)) * _MULTIPLY_2
    return z ^ (z >> _SHIFT_3)


@kernel
def stream(seed: int, epoch: int, sample: int, view: int) -> np.uint64:
    """The 64-bit word from which all draws of one view of one sample come; arguments are int64."""
    word = _mix(np.uint64(seed) + _GOLDEN)
    word = _mix((word ^ np.uint64(epoch)) + _GOLDEN)
    word = _mix((word ^ np.uint64(sample)) + _GOLDEN)
    return _mix((word ^ np.uint64(view)) + _GOLDEN)


@kernel
def draw_uniform(word: np.uint64, draw: int) -> float:
    """Draw number `draw` (int64) of a `stream`, uniform in [0, 1) with 53 random bits."""
    return (_mix(np.uint64(word) + np.uint64(draw + 1) * _GOLDEN) >> _SHIFT_UNIT) * _UNIT


@kernel
def draw_below(word: np.uint64, draw: int, bound: int) -> int:
    """Draw number `draw` of a `stream` as an integer, uniform in [0, bound), bound < 2**31."""
    return int(draw_uniform(word, draw) * bound)


@kernel
def uniform(seed: int, epoch: int, sample: int, view: int, draw: int) -> float:
    """One number in [0, 1); all arguments are int64, at least 0."""
    return draw_uniform(stream(seed, epoch, sample, view), draw)
