"""Figures of a model on disk: right, the same on any number of ranks, and clear where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from rmd_dist.commands import evaluate
from rmd_dist.config import EvaluateConfig
from rmd_dist.config.cli import parse
from rmd_dist.data.prepare import open_dataset
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.model import ModelFigures, evaluate_model, open_model
from tests.data.archives import cifar100, write_tar
from tests.tiny import train_tiny, words

CPU = torch.device("cpu")
TESTED = 97  # no multiple of the batch size, an odd number for two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of either stage, each with a checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    for stage in ("pretrain", "distill"):
        train_tiny(stage, words(stage, root, "--model", "resnet18_cifar_w16", "--max-steps", "10"))
    return root


def config_of(checkpoint: Path | str, *more: str) -> EvaluateConfig:
    fixed = (
        f"--loader memory --test_samples {TESTED} --train_samples 150 --batch-size 40 --workers 1 --cpu true "
        "--model resnet18_cifar_w16"
    )
    return parse(EvaluateConfig, ["--checkpoint", str(checkpoint), *fixed.split(), *more])


def figures_of(checkpoint: Path | str, *more: str) -> ModelFigures:
    config = config_of(checkpoint, *more)
    return evaluate_model(config, open_model(config), CPU)


def test_a_students_figures_are_those_of_a_plain_loop(runs):
    found = figures_of(runs / "distill" / "tiny")
    test = open_dataset("digits", "test", root=Path("nowhere"), loader="memory")
    weights = runs / "distill" / "tiny" / "model.safetensors"
    model = timm.create_model("resnet18_cifar_w16", num_classes=10, checkpoint_path=str(weights)).eval()
    counts = np.zeros((10, 10), np.int64)
    for image, label in zip(test.images[:TESTED], test.labels[:TESTED], strict=True):
        x = (torch.from_numpy(image) / 255 - torch.tensor(test.info.mean)) / torch.tensor(test.info.std)
        with torch.no_grad():
            counts[label, model(x.permute(2, 0, 1)[None]).argmax()] += 1
    np.testing.assert_array_equal(found.confusion, counts)
    assert found.figures == {"accuracy": pytest.approx(np.trace(counts) / TESTED, abs=1e-12)}
    assert found.per_class == pytest.approx((np.diag(counts) / counts.sum(1)).tolist())
    assert (found.model, found.dataset) == ("resnet18_cifar_w16", "digits")
    assert found.classes == [str(digit) for digit in range(10)]
    assert len(np.unique(counts.sum(0).nonzero())) > 1, "a constant answer would prove nothing"


def test_an_encoder_is_measured_by_its_neighbours_and_a_linear_probe(runs):
    found = figures_of(runs / "pretrain" / "tiny")
    knn, probe = found.figures
    assert (knn, probe) == ("kNN accuracy (k 150, bank 150)", "linear probe accuracy")  # k 200 is capped
    assert all(0.3 < value <= 1 for value in found.figures.values())
    assert found.confusion is None and found.per_class == []
    without = figures_of(runs / "pretrain" / "tiny", "--linear_probe", "false", "--knn_k", "1")
    assert list(without.figures) == ["kNN accuracy (k 1, bank 150)"]


def _figures(checkpoint: Path) -> dict[str, object]:
    return figures_of(checkpoint).to_json()


@pytest.mark.parametrize("stage", ["distill", "pretrain"])
def test_the_figures_are_the_same_on_any_number_of_ranks(stage, runs, ranks):
    (alone,) = ranks(1).run(_figures, runs / stage / "tiny")
    assert ranks(2).run(_figures, runs / stage / "tiny") == [alone, alone]


@pytest.mark.parametrize("stage", ["distill", "pretrain"])
def test_the_last_checkpoint_is_the_finished_model(stage, runs):
    (checkpoint,) = (runs / stage / "tiny" / "checkpoints").glob("*.safetensors")
    assert figures_of(checkpoint).to_json() == figures_of(runs / stage / "tiny").to_json()


def test_a_data_set_of_other_classes_is_refused(runs, tmp_path):
    source = write_tar(tmp_path / "cifar-100-python.tar.gz", cifar100())
    more = ("--dataset", "cifar100", "--source", str(source), "--data_root", str(tmp_path))
    with pytest.raises(ConfigError, match="has 10 classes, cifar100 has 100; give the --dataset") as caught:
        figures_of(runs / "distill" / "tiny", *more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_classes_are_compared_before_any_data_is_looked_for(runs, loader, tmp_path, monkeypatch):
    def download(*_: object) -> None:
        raise AssertionError("data was asked for")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    words = f"--checkpoint {runs / 'distill' / 'tiny'} --dataset cifar100 --cpu true --loader {loader}"
    with pytest.raises(ConfigError, match="has 10 classes, cifar100 has 100; give the --dataset"):
        evaluate.main([*words.split(), "--data_root", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()


def test_figures_that_are_not_there_are_null_in_the_file_and_a_dash_on_the_screen(runs, tmp_path, capsys):
    """Of four test samples at most four classes have one."""
    words = f"--checkpoint {runs / 'distill' / 'tiny'} --cpu true --loader memory --test_samples 4"
    evaluate.main([*words.split(), "--out", str(tmp_path / "new" / "e.json")])

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads((tmp_path / "new" / "e.json").read_text(), parse_constant=refuse)
    assert len(found["per_class"]) == 10 and found["per_class"].count(None) >= 6
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "said"), [("folder", "is a folder"), ("folder/file/e.json", "cannot write to")]
)
def test_an_output_that_cannot_be_is_refused_before_the_work(out, said, runs, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("")
    monkeypatch.setattr("rmd_dist.evaluation.model.open_model", lambda _: pytest.fail("work was begun"))
    words = f"--checkpoint {runs / 'distill' / 'tiny'} --cpu true --loader memory --out {tmp_path / out}"
    with pytest.raises(ConfigError, match=said):
        evaluate.main(words.split())


def test_weights_alone_do_not_tell_their_data_set(runs, tmp_path):
    alone = tmp_path / "weights.safetensors"
    alone.write_bytes((runs / "distill" / "tiny" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="does not say what it was trained on; give --dataset"):
        figures_of(alone)
    told = figures_of(alone, "--dataset", "digits")
    assert told.figures == figures_of(runs / "distill" / "tiny").figures


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("", "no checkpoint given; use: rmd evaluate"),
        ("nowhere/at/all", "nowhere/at/all does not exist"),
    ],
)
def test_a_missing_checkpoint_is_told(path, named):
    with pytest.raises(ConfigError, match=named):
        open_model(config_of(path))
