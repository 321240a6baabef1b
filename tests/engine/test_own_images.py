"""Runs on somebody's own images of varying sizes: the contracts of architecture.md hold for them, too."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from rmd_dist.commands.predict import main as predict
from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.loader import build_loader
from rmd_dist.data.prepare import open_dataset
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.predict import predict_classes
from rmd_dist.models.export import load
from tests.data.images.folders import write, write_classes
from tests.engine.test_kill import launch, scalars
from tests.launched import await_step, finish, kill_all
from tests.tiny import final_tensors, greatest_difference, train_tiny

COUNTS = {"cat": 40, "dog": 40}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 12 to 90 pixels a side, of two sorts: one is bright, the other is dark."""
    root = tmp_path_factory.mktemp("own") / "photos"
    write_classes(root, COUNTS)
    for k, path in enumerate(sorted(root.rglob("*.png"))):
        with Image.open(path) as image:
            pixels = np.asarray(image.resize((12 + 7 * k % 79, 12 + 11 * k % 79))) // 2
        Image.fromarray((pixels + 120 * (path.parent.name == "cat")).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def root(photos: Path) -> Path:
    """The folder of its betons."""
    open_dataset(str(photos), "train", root=photos.parent / "data", loader="memory")
    return photos.parent / "data"


STAGES = {
    "pretrain": "--simsiam.dim 32 --simsiam.hidden_dim 16 --lr 0.03",
    "distill": "--lr 0.02 --teacher random --K 0.2",
}


def words(stage: str, photos: Path, runs: Path, *more: str) -> list[str]:
    common = (
        "--loader memory --model resnet10t --image-size 64 --cpu true --batch-size 26 --workers 2 --epochs 4 "
        "--eval.train_samples 40 --eval.every_epochs 0 --checkpoint.every_epochs 0 --log-every 1 --name tiny"
    )
    given = [*common.split(), *STAGES[stage].split(), "--runs", str(runs)]
    return [*given, "--dataset", str(photos), "--data-root", str(photos.parent / "data"), *more]


@pytest.mark.parametrize("augment", [None, ViewConfig(), CropFlipConfig()], ids=["plain", "views", "crop"])
@pytest.mark.parametrize("raw_bytes", [None, 0], ids=["pixels", "jpeg"])
def test_both_sources_give_the_same_bytes(
    photos: Path, root: Path, tmp_path: Path, augment: Any, raw_bytes: int | None
) -> None:
    """Contract 8, of stored pixels and of JPEGs; and every size of a view shows the same crop."""
    pytest.importorskip("ffcv")
    if raw_bytes is not None:
        from rmd_dist.data.images.source import ImageFiles
        from rmd_dist.data.images.work import StoreOptions

        root = tmp_path / "data"
        ImageFiles.at(photos).prepare(root, StoreOptions(raw_bytes=raw_bytes))
    options: dict[str, Any] = {"augment": augment, "batch_size": 7, "seed": 3, "shuffle": augment is not None}
    batches = {}
    for loader, workers in (("ffcv", 1), ("memory", 2)):
        data = open_dataset(str(photos), "train", root=root, loader=loader)  # type: ignore[arg-type]
        with build_loader(data, sizes=(40, 24), workers=workers, **options) as opened:
            batches[loader] = [b for epoch in range(2) for b in opened.epoch(epoch)]
    assert len(batches["ffcv"]) == len(batches["memory"]) > 10
    for one, other in zip(batches["ffcv"], batches["memory"], strict=True):
        assert torch.equal(one.index, other.index)
        views = len(one.views) // 2
        assert [view.shape[1] for view in one.views] == [40] * views + [24] * views
        for a, b in zip(one.views, other.views, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_the_same_weights_on_any_number_of_ranks_and_after_a_stop(
    stage: str, photos: Path, root: Path, tmp_path: Path, ranks: Any
) -> None:
    """Contracts 1 and 2: in fp64 only a broken contract can part them."""
    more = ("--precision", "fp64", "--max-steps", "6")
    for name, plan in {"one": [(1, 6)], "two": [(2, 6)], "stopped": [(1, 2), (1, 6)]}.items():
        for world, steps in plan:
            argv = words(stage, photos, tmp_path / name, *more[:-1], str(steps))
            ranks(world).run(train_tiny, stage, argv)
    whole = final_tensors(stage, tmp_path / "one")
    assert greatest_difference(final_tensors(stage, tmp_path / "two"), whole) < 1e-9
    stopped = final_tensors(stage, tmp_path / "stopped")
    assert all(torch.equal(stopped[name], tensor) for name, tensor in whole.items())


def _trained(photos: Path, runs: Path, *more: str) -> Path:
    # One rate for all of it, without a teacher, until it tells the two classes apart.
    given = ("--K", "0", "--lr", "0.05", "--schedule", "constant", "--epochs", "6", *more)
    train_tiny("distill", words("distill", photos, runs, *given))
    return runs / "distill" / "tiny"


def test_timm_and_rmd_predict_give_the_accuracy_of_the_run(
    photos: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the files themselves, by timm's own transform, and by `rmd predict`."""
    run = _trained(photos, tmp_path)
    config = json.loads((run / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog"]
    assert config["rmd_dist"]["stored"]["background"] == [255, 255, 255]
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], cfg["crop_pct"], cfg["interpolation"]) == ([3, 64, 64], 0.875, "bilinear")
    test = open_dataset(str(photos), "test", root=root, loader="memory")
    assert test.files is not None
    files = [photos / path.decode() for path in test.files.paths()]
    ours = predict_classes(load(run, "").module, test)
    accuracy = float((ours == test.labels).mean())
    assert accuracy == json.loads((run / "manifest.json").read_text())["results"]["last"]["value"]
    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.inference_mode():
        theirs = [int(model(transform(Image.open(file).convert("RGB"))[None]).argmax()) for file in files]
    assert accuracy > 0.8 and theirs == ours.tolist()

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    predict([str(run), *map(str, files), str(broken), "--out", str(tmp_path / "found.csv"), "--cpu"])
    assert capsys.readouterr().err.startswith(f"{broken}: ")
    with (tmp_path / "found.csv").open() as table:
        lines = list(csv.DictReader(table))
    assert [line["path"] for line in lines] == [str(file) for file in files]
    assert [test.info.classes.index(line["class"]) for line in lines] == ours.tolist()
    assert all(0.5 <= float(line["confidence"]) <= 1 for line in lines)
    predict([str(run), str(photos / "cat"), "--cpu"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + COUNTS["cat"]
    with pytest.raises(ConfigError, match="none of 1 files could be read as an image"):
        predict([str(run), str(broken), "--cpu"])


@pytest.mark.parametrize(
    ("teacher", "size", "graph"),
    [
        ("vit_tiny_patch16_224", 224, "--graph.projector linear"),
        ("convnext_atto", 224, "--graph.node_weight 0"),
        ("resnet10t", 176, ""),
    ],
)
@pytest.mark.slow
def test_teachers_of_other_kinds_and_sizes(
    photos: Path, root: Path, tmp_path: Path, teacher: str, size: int, graph: str
) -> None:
    """Each gets the student's crop at its own size; widths differ but for the last."""
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model(teacher).state_dict(), file)
    given = ("--teacher", f"timm:{teacher}", "--weights", str(file), *graph.split(), "--epochs", "1")
    train_tiny("distill", words("distill", photos, tmp_path, *given))
    manifest = json.loads((tmp_path / "distill" / "tiny" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["teacher_input"]["input_size"][1] == size
    records = [json.loads(line) for line in (tmp_path / "distill" / "tiny" / "metrics.jsonl").open()]
    assert all(np.isfinite(record["train/loss_graph"]) for record in records if "train/loss_graph" in record)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_happened(
    photos: Path, root: Path, tmp_path: Path, ranks: Any
) -> None:
    """kill -9 in the second epoch of two ranks, timm's own ResNet-18; the end is the same to the bit."""
    more = (
        "--model resnet18 --max-steps 8 --checkpoint.every_steps 2 --threads 1 --eval.every_epochs 2".split()
    )
    whole, killed = (words("pretrain", photos, tmp_path / name, *more) for name in ("whole", "killed"))
    ranks(2).run(train_tiny, "pretrain", whole)
    process = launch("pretrain", killed, 2)
    await_step(process, tmp_path / "killed" / "pretrain" / "tiny", step=5)
    kill_all(process)
    assert "continuing at step" in finish(launch("pretrain", killed, 2))
    expected, found = (final_tensors("pretrain", tmp_path / name) for name in ("whole", "killed"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    records = [scalars(tmp_path / name / "pretrain" / "tiny") for name in ("whole", "killed")]
    assert records[0] == records[1]


def test_images_without_labels_are_for_pretraining_alone(tmp_path: Path) -> None:
    for k in range(60):
        write(tmp_path / "photos" / f"{k}.png", k, 20 + k % 9, 24)
    train_tiny("pretrain", words("pretrain", tmp_path / "photos", tmp_path, "--epochs", "1"))
    manifest = json.loads((tmp_path / "pretrain" / "tiny" / "manifest.json").read_text())
    assert (manifest["status"], manifest["results"], manifest["classes"]) == ("finished", {}, [])
    with pytest.raises(ConfigError, match="photos has no labels, with which only rmd pretrain works"):
        train_tiny("distill", words("distill", tmp_path / "photos", tmp_path))
    alone = write_classes(tmp_path / "alone", {"cat": 40})
    with pytest.raises(
        ConfigError, match="alone has one class alone, cat, with which only rmd pretrain works"
    ):
        train_tiny("distill", words("distill", alone, tmp_path))


def test_own_images_have_defaults_of_their_own(photos: Path, root: Path, tmp_path: Path) -> None:
    """No noise is made, nobody's truth is claimed, and the encoder found is that of these images."""
    pretraining = words("pretrain", photos, tmp_path, "--epochs", "1", "--max-steps", "2")
    train_tiny("pretrain", pretraining)
    given = words("distill", photos, tmp_path, "--epochs", "1", "--max-steps", "2")
    at = given.index("--teacher")
    train_tiny("distill", [*given[:at], *given[at + 2 :]])
    run = tmp_path / "distill" / "tiny"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["noise"]["protocol"] == "none" and manifest["noise"]["realised_rate"] is None
    assert manifest["dataset"] == "photos" and "pretrain/tiny" in manifest["teacher"]
    assert "memorisation" not in (run / "metrics.jsonl").read_text()
