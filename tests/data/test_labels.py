"""The one door to labels: given ones, true ones where known, and the manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rmd_dist.data.labels import Labels, make_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.errors import ConfigError


def test_digits_with_noise(tmp_path: Path) -> None:
    data = open_dataset("digits", "train", root=tmp_path, loader="memory")
    labels = make_labels(data, "symmetric", 0.4, 3)
    assert labels.clean is not None and labels.flipped is not None
    np.testing.assert_array_equal(labels.clean, data.labels)
    np.testing.assert_array_equal(labels.flipped, labels.given != data.labels)
    assert labels.given.dtype == np.int64
    assert labels.manifest["realised_rate"] == labels.flipped.mean() == pytest.approx(0.4, abs=0.005)
    assert [labels.manifest[key] for key in ("dataset", "protocol", "seed")] == ["digits", "symmetric", 3]
    assert labels.manifest["count"] == len(data)


def test_no_noise_is_not_the_array_of_the_data_set(tmp_path: Path) -> None:
    data = open_dataset("digits", "train", root=tmp_path, loader="memory")
    labels = make_labels(data, "none", 0.4, 0)
    np.testing.assert_array_equal(labels.given, data.labels)
    labels.given[0] += 1
    assert labels.clean is not None and labels.clean[0] != labels.given[0]


def test_a_protocol_that_does_not_fit(tmp_path: Path) -> None:
    data = open_dataset("digits", "train", root=tmp_path, loader="memory")
    with pytest.raises(ConfigError, match="not defined for digits"):
        make_labels(data, "asymmetric", 0.4, 0)
    with pytest.raises(ConfigError, match="no human labels of digits"):
        make_labels(data, "human:worse_label", 0.4, 0, tmp_path)


def test_where_nobody_knows_the_true_labels() -> None:
    assert Labels(np.arange(3), None, {}).flipped is None
