"""Noise protocols: exact rates, where labels go, reproducibility, human label files."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmd_dist.data.labels import transition_rows
from rmd_dist.data.noise import make_noise
from rmd_dist.data.sources.cifar_classes import CIFAR100_CLASSES, CIFAR100_COARSE, next_in_superclass
from rmd_dist.errors import ConfigError

from .archives import SHARED
from .noisy import info_of, noisy

CIFAR10 = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 500))
CIFAR100 = np.random.default_rng(2).permutation(np.repeat(np.arange(100), 50))


def matrix(*args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
    return np.array(noisy(*args, **kwargs).manifest["transitions"])


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    protocol=st.sampled_from(["none", "symmetric", "symmetric-inclusive", "pairflip"]),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_properties(labels: list[int], protocol: str, rate: float, seed: int) -> None:
    noise = noisy(labels, protocol, rate, seed, 5)
    clean = np.array(labels)
    assert noise.given.dtype == np.int64
    assert ((noise.given >= 0) & (noise.given < 5)).all()
    np.testing.assert_array_equal(noise.flipped, noise.given != clean)
    counts = np.array(noise.manifest["transitions"])
    np.testing.assert_array_equal(counts.sum(1), np.bincount(clean, minlength=5))
    for i, c in enumerate(clean):
        counts[c, noise.given[i]] -= 1
    assert not counts.any()
    assert noise.manifest["realised_rate"] == noise.flipped.mean()
    for c in range(5):
        flips, quota = noise.flipped[clean == c].sum(), round(rate * (clean == c).sum())
        if protocol in ("symmetric", "pairflip"):
            assert flips == quota
        else:
            assert flips <= (quota if protocol == "symmetric-inclusive" else 0)
    again = make_noise(clean.astype(np.uint8), protocol, rate, seed, info_of(5))
    np.testing.assert_array_equal(again, noise.given)
    json.dumps(noise.manifest)


@settings(max_examples=20, deadline=None)
@given(low=st.floats(0, 1), high=st.floats(0, 1), protocol=st.sampled_from(["symmetric", "asymmetric"]))
def test_a_lower_rate_flips_a_subset(low: float, high: float, protocol: str) -> None:
    low, high = sorted((low, high))
    few, many = (noisy(CIFAR10[:300], protocol, rate, 3, 10) for rate in (low, high))
    assert not (few.flipped & ~many.flipped).any()
    np.testing.assert_array_equal(few.given[few.flipped], many.given[few.flipped])


def test_symmetric_is_uniform_over_the_other_classes() -> None:
    counts = matrix(np.repeat(np.arange(10), 20_000), "symmetric", 0.45, 0, 10)
    assert (np.diag(counts) == 11_000).all()
    others = counts[~np.eye(10, dtype=bool)]
    assert abs(others - 1000).max() < 5 * 1000**0.5  # five standard deviations
    assert 0.5 < ((others - 1000) ** 2 / 1000).mean() < 1.5  # as scattered as chance, not evened out


def test_inclusive_draws_the_true_class_too() -> None:
    noise = noisy(np.repeat(np.arange(10), 20_000), "symmetric-inclusive", 0.5, 0, 10)
    counts = np.array(noise.manifest["transitions"])
    assert abs(np.diag(counts) - 11_000).max() < 5 * 1000**0.5
    assert abs(counts[~np.eye(10, dtype=bool)] - 1000).max() < 5 * 1000**0.5
    assert noise.manifest["realised_rate"] == pytest.approx(0.45, abs=0.005)


def test_asymmetric_cifar10_is_simultaneous() -> None:
    """Done in place, cat becomes dog and then cat again (TRAPS 31): cat would lose less than its rate."""
    expected = np.diag(np.full(10, 500))
    for source, target in (("truck", "automobile"), ("bird", "airplane"), ("deer", "horse")):
        move(expected, source, target)
    move(expected, "cat", "dog")
    move(expected, "dog", "cat")
    np.testing.assert_array_equal(matrix(CIFAR10, "asymmetric", 0.4, 0, 10), expected)
    np.testing.assert_array_equal(matrix(CIFAR10, "asymmetric", 0.4, 0, 10, dataset="cifar10"), expected)


def move(counts: np.ndarray[Any, Any], source: str, target: str) -> None:
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    counts[names.index(source), names.index(source)] -= 200
    counts[names.index(source), names.index(target)] += 200


def test_asymmetric_cifar100_stays_in_its_superclass() -> None:
    noise = noisy(CIFAR100, "asymmetric", 0.4, 0, 100)
    coarse = np.array(CIFAR100_COARSE)
    np.testing.assert_array_equal(coarse[noise.given], coarse[CIFAR100])
    assert noise.manifest["realised_rate"] == 0.4
    name = CIFAR100_CLASSES.index
    target = next_in_superclass()
    assert target[name("beaver")] == name("dolphin")
    assert target[name("whale")] == name("beaver")  # circular
    assert target[name("bicycle")] == name("bus")
    for c in range(100):  # one circle of five in each superclass
        seen = [c]
        while target[seen[-1]] != c:
            seen.append(target[seen[-1]])
        assert len(seen) == 5


def test_asymmetric_idblock() -> None:
    counts = matrix(CIFAR100, "asymmetric-idblock", 0.4, 0, 100)
    target = [np.argmax(row * (np.arange(100) != c)) for c, row in enumerate(counts)]
    assert target[:6] == [1, 2, 3, 4, 0, 6]
    assert target[99] == 95
    assert (counts[np.arange(100), target] == 20).all()
    assert sum(CIFAR100_COARSE[c] == CIFAR100_COARSE[t] for c, t in enumerate(target)) == 6  # TRAPS 31


def test_pairflip() -> None:
    counts = matrix(CIFAR10, "pairflip", 0.45, 0, 10)
    np.testing.assert_array_equal(counts, 275 * np.eye(10) + 225 * np.roll(np.eye(10), 1, axis=1))


def test_none() -> None:
    noise = noisy(CIFAR10, "none", 0.4, 0, 10)
    np.testing.assert_array_equal(noise.given, CIFAR10)
    assert noise.manifest["nominal_rate"] == noise.manifest["realised_rate"] == 0


def test_seeds_differ_and_the_clean_labels_stay() -> None:
    clean = CIFAR10.copy()
    first, second = (noisy(clean, "symmetric", 0.4, seed, 10) for seed in (0, 1))
    overlap = (first.flipped & second.flipped).mean()
    assert overlap == pytest.approx(0.16, abs=0.02)
    np.testing.assert_array_equal(clean, CIFAR10)


GOLDEN = {
    "symmetric": "1d21fc45a8ec45559c1211a6a7e6559a882a84e934b1f2892f88989c1c69c04b",
    "symmetric-inclusive": "8d629141c92ef0f8d1b5090426ae63692f872b488f805da1bd372bc0208928f8",
    "asymmetric": "5c691e7a1971003fb4c66ba2c1d4f7254e4d361fa8a09921de455ad7b56007f4",
    "pairflip": "a2fab83870fda25a2a0dafc7aee28f857caa2af205a72cd629e51b6145dd8f7c",
}


@pytest.mark.parametrize("protocol", GOLDEN)
def test_golden(protocol: str) -> None:
    """The labels of a published run must come out the same for ever, on every platform."""
    manifest = noisy(np.arange(1000) % 10, protocol, 0.4, 7, 10).manifest
    assert manifest["labels_sha256"] == GOLDEN[protocol]


@pytest.mark.parametrize("rate", [-0.1, 1.01, float("nan"), float("inf")])
def test_bad_rates(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"noise rate .* is not in \[0, 1\]"):
        noisy(CIFAR10, "symmetric", rate, 0, 10)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seeds(seed: int) -> None:
    with pytest.raises(ConfigError, match="noise seed"):
        noisy(CIFAR10, "symmetric", 0.4, seed, 10)


def test_protocols_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="'symetric' is unknown; choose one of none, symmetric,"):
        noisy(CIFAR10, "symetric", 0.4, 0, 10)
    with pytest.raises(ConfigError, match=r"not defined for digits; choose one of none, symmetric"):
        noisy(CIFAR10, "asymmetric", 0.4, 0, 10, dataset="digits")
    with pytest.raises(ConfigError, match="not defined for 7 classes"):
        noisy([0, 6], "asymmetric", 0.4, 0, 7)
    with pytest.raises(ConfigError, match=r"not defined for cifar10; choose one of .*, asymmetric"):
        noisy(CIFAR10, "asymmetric-idblock", 0.4, 0, 10)
    with pytest.raises(ConfigError, match="no human labels of digits"):
        noisy(CIFAR10, "human:worse_label", 0.4, 0, 10, dataset="digits")


@pytest.mark.parametrize(
    ("labels", "classes"), [([], 10), ([0.5], 10), ([[1]], 10), ([10], 10), ([-1], 10), ([0], 1)]
)
def test_bad_labels(labels: list[Any], classes: int) -> None:
    with pytest.raises(ValueError, match=r"labels|classes"):
        make_noise(labels, "symmetric", 0.4, 0, info_of(classes))


def test_transition_rows() -> None:
    manifest = noisy(CIFAR10, "pairflip", 0.4, 0, 10).manifest
    columns, rows = transition_rows(manifest, [str(c) for c in range(10)])
    assert columns[1:] == [str(c) for c in range(10)]
    assert rows[3] == ["3", 0, 0, 0, 300, 200, 0, 0, 0, 0, 0]
    manifest = noisy(CIFAR100, "asymmetric", 0.4, 0, 100).manifest
    columns, rows = transition_rows(manifest, CIFAR100_CLASSES)
    assert rows[0] == ["apple", 30, 20, "mushroom 20"]
    assert len(columns) == len(rows[0])


def human_file(path: Path, content: Any, name: str = "archive/data.pkl") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3\n")
    return path


def test_human_labels(tmp_path: Path) -> None:
    given = np.roll(CIFAR10, 1)
    path = human_file(tmp_path / "CIFAR-10_human.pt", {"clean_label": CIFAR10, "worse_label": given})
    for root in (tmp_path, path):
        noise = noisy(CIFAR10, "human:worse_label", 0.4, 0, 10, root=root)
        np.testing.assert_array_equal(noise.given, given)
        assert noise.manifest["nominal_rate"] is None
        assert noise.manifest["realised_rate"] == (given != CIFAR10).mean()
    # A shortened archive holds the first images.
    short = noisy(CIFAR10[:100], "human:worse_label", 0.4, 0, 10, root=tmp_path)
    np.testing.assert_array_equal(short.given, given[:100])


def test_human_labels_of_other_data_are_refused(tmp_path: Path) -> None:
    good = {"clean_label": CIFAR10, "worse_label": CIFAR10}
    cases: list[tuple[Any, str]] = [
        (good | {"clean_label": CIFAR10[::-1].copy()}, "other images or another order"),
        (good | {"clean_label": CIFAR10[:-1]}, "other images or another order"),
        (good | {"worse_label": CIFAR10[:-1]}, "other images or another order"),
        (good | {"worse_label": CIFAR10 + 1}, "labels outside 0 to 9"),
        (good | {"clean_label": CIFAR10 - 1}, "labels outside 0 to 9"),
        (good | {"worse_label": CIFAR10[:, None]}, "no array worse_label"),
        ({"clean_label": CIFAR10}, "no array worse_label"),
        (good | {"clean_label": CIFAR10.astype(float)}, "not of integers"),
        ([1], "instead of a dict"),
    ]
    for content, message in cases:
        path = human_file(tmp_path / "CIFAR-10_human.pt", content)
        with pytest.raises(ConfigError, match=message):
            noisy(CIFAR10, "human:worse_label", 0.4, 0, 10, root=path)


def test_human_files_are_not_executed(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "trace",))

    path = human_file(tmp_path / "CIFAR-10_human.pt", {"clean_label": Touch(), "worse_label": CIFAR10})
    with pytest.raises(ConfigError, match="no numpy array needs"):
        noisy(CIFAR10, "human:worse_label", 0.4, 0, 10, root=path)
    assert not (tmp_path / "trace").exists()


def test_bad_human_files(tmp_path: Path) -> None:
    def attempt(name: str = "worse_label") -> None:
        noisy(CIFAR10, f"human:{name}", 0.4, 0, 10, root=tmp_path)

    with pytest.raises(ConfigError, match=r"does not exist; get CIFAR-10_human.pt from"):
        attempt()
    with pytest.raises(ConfigError, match="choose one of human:aggre_label, human:random_label1"):
        attempt("worst_label")
    path = human_file(tmp_path / "CIFAR-10_human.pt", {"clean_label": CIFAR10, "worse_label": CIFAR10})
    attempt()
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for spoilt in (b"", content[:-30], content[30:], b"text", flipped):
        path.write_bytes(spoilt)
        with pytest.raises(ConfigError, match="damaged or no label file"):
            attempt()
    human_file(path, {}, name="archive/other")
    with pytest.raises(ConfigError, match=r"no single data.pkl"):
        attempt()


@pytest.mark.skipif(
    not (SHARED / "CIFAR-10_human.pt").exists(), reason="no human labels beside the repository"
)
def test_real_human_labels() -> None:
    """The published rates (Wei et al. 2022, table 1), in percent."""
    from rmd_dist.data.sources.archive import load_pickled_dict

    rates = {"aggre_label": 9.03, "random_label1": 17.23, "random_label2": 18.12, "random_label3": 17.64}
    with zipfile.ZipFile(SHARED / "CIFAR-10_human.pt") as archive:
        clean = load_pickled_dict(archive.read("archive/data.pkl"), "x")["clean_label"]
    for name, rate in (rates | {"worse_label": 40.21}).items():
        manifest = noisy(clean, f"human:{name}", 0, 0, 10, root=SHARED).manifest
        assert 100 * manifest["realised_rate"] == pytest.approx(rate, abs=0.03)
    with zipfile.ZipFile(SHARED / "CIFAR-100_human.pt") as archive:
        content = load_pickled_dict(archive.read("CIFAR-100_human/data.pkl"), "x")
    fine = content["clean_label"]
    np.testing.assert_array_equal(np.array(CIFAR100_COARSE)[fine], content["clean_coarse_label"])
    manifest = noisy(fine, "human:noisy_label", 0, 0, 100, root=SHARED).manifest
    assert 100 * manifest["realised_rate"] == pytest.approx(40.20, abs=0.03)
    with pytest.raises(ConfigError, match=r"no array worse_label|labels outside"):
        noisy(clean, "human:worse_label", 0, 0, 10, root=SHARED / "CIFAR-100_human.pt")
