"""`rmd audit`: a folder of photos with wrong labels in it, from the command line to labels to train on."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import save_file

from rmd_dist.commands.audit import main
from rmd_dist.data.label_files import read_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.errors import ConfigError
from tests.data.images.folders import write_classes

WRONG = {"cat": 3, "dog": 2}  # images that lie in the other class's folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cats are bright and dogs are dark, but for some; one cat is a dog, too."""
    root = tmp_path_factory.mktemp("own") / "photos"
    write_classes(root, {"cat": 40, "dog": 40})
    for path in sorted(root.rglob("*.png")):
        name, number = path.parent.name, sorted(path.parent.iterdir()).index(path)
        bright = (name == "cat") != (number < WRONG[name])
        with Image.open(path) as image:
            pixels = np.asarray(image) // 3 + 150 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    first = sorted((root / "cat").iterdir())[10]
    shutil.copy(first, root / "dog" / "copy.png")
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), weights)
    return ["--model", "resnet10t", "--weights", str(weights), "--image-size", "32"]


def audit(photos: Path, *words: str) -> str:
    """The audit's folder of `rmd audit`."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    folder = photos.parent
    places = ["--data-root", str(folder / "data"), "--out", str(folder / "audits"), "--runs", str(folder)]
    main([str(photos), *places, "--loader", "memory", "--cpu", "true", "--name", "a", *words])
    return str(folder / "audits" / "a")


def lines_of(file: str) -> list[dict[str, str]]:
    with Path(file).open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_from_a_folder_to_labels_to_train_on(photos, encoder, capsys, tmp_path):
    folder = audit(photos, *encoder, "--budget", "7")
    said = capsys.readouterr().out
    assert "the worst labels" in said and f"review: {folder}/index.html" in said
    rows = lines_of(f"{folder}/wrong_labels.csv")
    wrong = {f"{name}/{p.name}" for name in WRONG for p in sorted((photos / name).iterdir())[: WRONG[name]]}
    worst = [row for row in rows if row["is_label_issue"] == "True"]
    # `dog/copy.png` comes first of its folder; it is bright, and the class's first two others are, too.
    assert len(worst) == 7 and len(wrong & {row["path"] for row in worst}) >= 4
    copy = next(row for row in rows if row["path"] == "dog/copy.png")
    assert copy["duplicate_of"].startswith("cat/") and copy["conflict"] == "True"
    assert {row["split"] for row in rows} == {"train", "test"} and len(rows) == 81

    page = Path(f"{folder}/index.html").read_text(encoding="utf-8")
    audit_id = page.split('"audit":')[1].split('"')[1]
    decisions = tmp_path / "decisions.csv"
    chosen = next(row for row in worst if row["path"] != "dog/copy.png" and row["split"] == "train")
    decisions.write_text(
        "audit,index,path,decision,label\n"
        f"{audit_id},{chosen['index']},{chosen['path']},relabel,{chosen['predicted_label']}\n"
        f"{audit_id},{copy['index']},{copy['path']},drop,\n"
    )
    main(["apply", folder, "--decisions", str(decisions)])
    assert "1 drop, 1 relabel" in capsys.readouterr().out
    train = open_dataset(str(photos), "train", root=photos.parent / "data", loader="memory")
    labels = read_labels(Path(f"{folder}/corrected.csv"), train)
    assert train.files is not None
    changed = {
        path.decode() for path, a, b in zip(train.files.paths(), labels, train.labels, strict=True) if a != b
    }
    assert changed == {chosen["path"]} | ({"dog/copy.png"} if copy["split"] == "train" else set())

    audit(photos, *encoder, "--labels", f"{folder}/corrected.csv", "--name", "again")
    assert "without a label" in capsys.readouterr().out
    again = lines_of(f"{photos.parent}/audits/again/wrong_labels.csv")
    assert [row["given_label"] for row in again if row["path"] == "dog/copy.png"] == [""]
    assert (
        next(row["given_label"] for row in again if row["path"] == chosen["path"])
        == (chosen["predicted_label"])
    )


def test_a_second_audit_encodes_nothing(photos, encoder, monkeypatch):
    audit(photos, *encoder)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was encoded again")

    monkeypatch.setattr("rmd_dist.evaluation.features.predict", refuse)
    audit(photos, *encoder, "--quick", "true")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "no encoder was found for photos.*rmd pretrain --dataset .*--model NAME --weights FILE"),
        ("--teacher random", "untrained encoder"),
        ("--model resnet10t --weights NOTHERE", "NOTHERE does not exist"),
        ("--weights FILE", "needs the timm model"),
        ("--model resnet10t --teacher X", "both name the encoder"),
        ("--budget 3 --precision 0.9", "give one"),
        ("--run NOTHERE --model resnet10t", r"NOTHERE has no margins.npy"),
        ("--folds 1", "out of range"),
    ],
)
def test_what_cannot_work_is_one_line(words, said, photos):
    with pytest.raises(ConfigError, match=said) as caught:
        audit(photos, *words.split())
    assert "\n" not in str(caught.value)


def test_no_data_set_is_one_line():
    with pytest.raises(ConfigError, match="use: rmd audit FOLDER"):
        main([])
