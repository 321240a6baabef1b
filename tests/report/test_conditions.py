"""What captions say of encoders, by the manifests beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmd_dist.report.conditions import _file, objective_of

CONFIG = {
    "data.train_samples": None,
    "data.dataset": "digits",
    "data.root": "data",
    "data.batch_size": 64,
    "optim.epochs": 3,
    "optim.lr": 0.1,
}


@pytest.mark.parametrize(
    ("more", "title"),
    [({}, "SimSiam"), ({"objective": "simsiam"}, "SimSiam"), ({"objective": "simclr"}, "SimCLR")],
)
def test_how_an_encoder_was_pretrained(more: dict[str, str], title: str, tmp_path: Path) -> None:
    """There were manifests before there was a choice."""
    manifest = {"config": CONFIG | more, "results": {"last": {"value": 0.5}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    weights = tmp_path / "model.safetensors"
    weights.touch()
    for place in (tmp_path, weights):
        assert objective_of(place) == title
        assert _file(place).startswith(
            f"{title}, 1 437 images without labels, 3 epochs of batch 64, lr 0.1, kNN"
        )


def test_an_encoder_of_which_nothing_is_told(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.touch()
    assert objective_of(weights) is None
    assert _file(weights) == "an encoder made beforehand, mine.safetensors"
