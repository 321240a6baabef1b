"""References below the methods: what a teacher's features do with the students' labels, in every output."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmd_dist.commands.report import main
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.predict import predict
from rmd_dist.files import read_json, write_json
from rmd_dist.relations import Relations, Samples, estimate, estimate_plainly
from rmd_dist.report import teacher_alone
from rmd_dist.report.references import FILE, find_references
from rmd_dist.report.results import REFERENCES, Column, Place, Results
from rmd_dist.report.run_data import open_data, run_config
from rmd_dist.report.tables import accuracy_grid
from rmd_dist.report.teacher_alone import Measure
from rmd_dist.study.cells import Entry
from rmd_dist.study.folder import Study, read_study
from rmd_dist.study.runner import Data
from rmd_dist.tasks.parts import build_labels
from rmd_dist.tasks.teacher import FrozenEncoder, open_source
from tests.study.synthetic import make_study, small_spec

COLUMN = Column("symmetric", 0.4)
WAITING = ("digits-ce-symmetric0.4-K0-seed2", "digits-ce-symmetric0.4-K1-seed2")
OUTPUTS = ("report.md", "cells.csv", "report.html")


def small(root: Path, **changes: Any) -> dict[str, Any]:
    data = {"root": str(root), "loader": "memory"}
    model = {"name": "resnet18_cifar_w16"}
    settings: dict[str, Any] = {
        "losses": ("ce",),
        "seeds": (0,),
        "noise": {"symmetric": (0.4,)},
        "clean": False,
        "pretrain": {"data": data, "model": model},
        "distill": {"data": data | {"train_samples": 300}, "model": model, "optim": {"epochs": 2}},
    }
    return settings | changes


def accuracy(entry: Entry) -> float:
    return 0.5 + 0.01 * entry.seed


def say_what_runs_had(study: Study) -> None:
    """Put into manifests which images and labels runs were trained on, as a trainer does."""
    for key, cell in study.cells.items():
        if cell.stage == "pretrain" or not study.finished(key):
            continue
        run = study.run(key)
        config = run_config(run)
        train, _, splits = open_data(config)
        write_json(
            run / "manifest.json",
            read_json(run / "manifest.json")
            | {
                "data_sha256": train.sha256,
                "labels_sha256": build_labels(config, train).manifest["labels_sha256"],
                "train_samples": len(splits.train),
                "validation_samples": 0,
            },
        )


def forget_last(folder: Path) -> Any:
    """Take the last of a study's references from its file; returns it."""
    kept = read_json(folder / FILE)
    gone = kept["references"].pop()
    write_json(folder / FILE, kept)
    return gone


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study on digits, of which the third seed was not run, and its report with made-up references."""
    folder = tmp_path_factory.mktemp("studies") / "digits"
    spec = small_spec(**small(folder.parent / "data", seeds=(0, 1, 2)))
    make_study(folder, [spec], accuracy, models=True, waiting=WAITING)
    say_what_runs_had(read_study(folder))
    values = iter((0.7, 0.6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measure, "__call__", lambda *_: dict.fromkeys(REFERENCES, next(values)))
        main([str(folder), "--references"])
    return folder


@pytest.fixture
def folder(measured: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(measured, tmp_path / "digits")


def test_values_are_those_of_the_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the regressions were given, their weights, and kNN's formula."""
    seen: list[tuple[Samples, Relations]] = []

    def recorded(samples: Samples, of: Callable[[Samples], Relations]) -> Relations:
        seen.append((samples, of(samples)))
        return seen[-1][1]

    for function in (estimate_plainly, estimate):
        monkeypatch.setattr(teacher_alone, function.__name__, partial(recorded, of=function))
    forget_last(folder)
    study = read_study(folder)
    found = find_references(study, Data(), print)[Place("table1", "digits", COLUMN, 1)]

    (key,) = (e.key for e in study.entries(study.tables[0], seed=1, K=1.0))
    config = run_config(study.run(key))
    train, test, splits = open_data(config)
    file = study.teacher("digits", study.tables[0])
    assert file is not None
    encoder = open_source(file, train.info, "", Preprocess.for_dataset(train.info).to_cfg()).module
    bank, queries = predict(encoder, train, splits.train), predict(encoder, test).double()
    given, truth = torch.from_numpy(build_labels(config, train).given), torch.from_numpy(test.labels)
    for samples, relations in seen:
        assert torch.equal(samples.labels, given[torch.from_numpy(splits.train)])
        assert torch.allclose(samples.features.float(), bank, rtol=2e-3, atol=1e-4)
        weights, scale = relations.weights.mean(1), relations.scale
        logits = (queries - scale.mean) * scale.inverse_std @ weights[:-1] + weights[-1]
        right = (logits.argmax(1) == truth).double().mean()
        name = REFERENCES[0] if relations.calibration.noise_matrix.trace() == 10 else REFERENCES[2]
        assert found[name] == pytest.approx(float(right), abs=0.01) and right > 0.4
    near = (F.normalize(queries) @ F.normalize(seen[0][0].features.double()).T).topk(200)
    votes = torch.zeros(len(queries), 10).double()
    votes.scatter_add_(1, samples.labels[near.indices], (near.values / 0.1).exp())
    right = (votes.argmax(1) == truth).double().mean()
    assert found[REFERENCES[1]] == pytest.approx(float(right), abs=0.01)  # half precision turns 3 of 360
    assert list(found) == list(REFERENCES) and len(seen) == 2


def test_rows_stand_below_the_methods_in_every_output(measured: Path) -> None:
    """Set apart, with mean and deviation; a seed that was not run is missing, not made up."""
    report = measured / "report"
    line = "| *teacher, kNN (200)* | *–* | 65.00 ± 7.07 (2 of 3) |"  # noqa: RUF001
    lines = (report / "report.md").read_text().splitlines()
    assert [f"*{name}*" for name in REFERENCES] == [
        text.split(" | ")[0].removeprefix("| ")
        for text in lines[lines.index(line) - 1 : lines.index(line) + 2]
    ]
    assert lines[lines.index(line) - 2].startswith("| CE+RMDNet | 1 |")
    page = (report / "report.html").read_text()
    assert page.index(">CE+RMDNet<") < page.index(f'<em class="soft">{REFERENCES[0]}</em>')
    assert "65.00 ± 7.07 (2 of 3)" in page
    assert "launch/report.py studies/digits --references" in page
    with (report / "cells.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == REFERENCES[1]]
    found = {row["seed"]: row["last"] for row in rows}
    assert found == {"0": "70", "1": "60", "2": ""}
    assert {(row["state"], row["loss"], row["K"], row["cell"]) for row in rows} == {("reference", "", "", "")}


def test_nothing_is_measured_twice(
    folder: Path, measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second report reads what the study keeps, without the images; what is missing there is measured."""
    monkeypatch.setattr(Measure, "__call__", lambda *_: pytest.fail("measured again"))
    main([str(folder), "--references", "--data-root", str(folder / "nowhere")])
    assert "references of" not in capsys.readouterr().out
    for name in OUTPUTS:
        assert (folder / "report" / name).read_bytes() == (measured / "report" / name).read_bytes()
    monkeypatch.setattr(Measure, "__call__", lambda *_: gone["accuracy"])
    gone = forget_last(folder)
    main([str(folder), "--references"])
    assert capsys.readouterr().out.count("references of") == 1
    assert gone in read_json(folder / FILE)["references"]


def test_without_the_option_nothing_changes(folder: Path) -> None:
    """Not a byte, whether or not the study keeps references."""
    main([str(folder)])
    texts = [(folder / "report" / name).read_bytes() for name in OUTPUTS]
    (folder / FILE).unlink()
    main([str(folder)])
    assert texts == [(folder / "report" / name).read_bytes() for name in OUTPUTS]
    assert not any(b"teacher, " in text or b"--references" in text for text in texts)
    assert not (folder / FILE).exists()


def test_what_is_missing_is_one_line(folder: Path, tmp_path: Path) -> None:
    """The teacher, the labels that runs had, what the study keeps, the images."""
    study = read_study(folder)
    kept = (folder / FILE).read_text()
    (folder / FILE).write_text('{"references": [{}]}')
    with pytest.raises(ConfigError, match=r"references.json is damaged .*; delete it"):
        main([str(folder), "--references"])
    (folder / FILE).unlink()
    for entry in study.tables[0].entries:
        manifest = study.run(entry.key) / "manifest.json"
        if manifest.exists():
            write_json(manifest, read_json(manifest) | {"labels_sha256": "other"})
    with pytest.raises(ConfigError, match=r"labels of digits-ce.* are not those .*--data-root"):
        main([str(folder), "--references"])
    (folder / FILE).write_text(kept)
    teacher = study.teacher("digits", study.tables[0])
    assert teacher is not None
    (teacher / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"digits-simsiam.* has no model.safetensors") as caught:
        main([str(folder), "--references"])
    assert "\n" not in str(caught.value)

    changes = small(tmp_path / "nowhere")
    cifar = make_study(tmp_path / "c", [small_spec(datasets=("cifar10",), **changes)], accuracy, models=True)
    for manifest in (cifar / "runs/distill").glob("*/manifest.json"):
        facts = {"data_sha256": "", "labels_sha256": "", "train_samples": 1, "validation_samples": 0}
        write_json(manifest, read_json(manifest) | facts)
    with pytest.raises(
        ConfigError, match=r"cifar10 .* not where they were; say where .* --data-root"
    ) as caught:
        main([str(cifar), "--references"])
    assert "\n" not in str(caught.value)


def test_a_teacher_is_measured_by_images_of_the_size_that_students_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = small(tmp_path / "data")
    changes["distill"]["teacher_image_size"] = 24
    folder = make_study(tmp_path / "s", [small_spec(**changes)], accuracy, models=True)
    say_what_runs_had(read_study(folder))
    sizes = []

    def measured(_: Measure, run: Path, teacher: FrozenEncoder) -> dict[str, float]:
        sizes.append(Preprocess.of(teacher.module).size)
        return dict.fromkeys(REFERENCES, 0.5)

    monkeypatch.setattr(Measure, "__call__", measured)
    find_references(read_study(folder), Data(), print)
    assert sizes == [(24, 24)]
    assert read_json(folder / FILE)["references"][0]["by"]["teacher_image_size"] == 24


def test_a_table_without_teachers_has_none(tmp_path: Path) -> None:
    """Of its two tables the one has, though its teacher is still to be pretrained: its places are empty."""
    plain = small_spec(name="plain", **small(tmp_path, methods={"": {"K": 0}}))
    taught = small_spec(name="taught", **small(tmp_path))
    folder = make_study(tmp_path / "s", [plain, taught], accuracy, waiting=("digits-simsiam-seed0",))
    found = find_references(read_study(folder), Data(), print)
    assert found == {Place("taught", "digits", COLUMN, 0): {}}
    study = read_study(folder)
    grids = {table.spec.name: accuracy_grid(Results(study, table, found)) for table in study.tables}
    assert len(grids["plain"].rows) == 1 and not grids["plain"].references
    assert [cell.text for cell in grids["taught"].rows[2]] == [REFERENCES[0], "–", "– (0 of 1)"]  # noqa: RUF001


def test_each_data_set_has_its_own(tmp_path: Path) -> None:
    """Below its methods, above the next one's."""
    spec = small_spec(datasets=("digits", "cifar10"), losses=("ce",), seeds=(0,), noise={"symmetric": (0.4,)})
    study = read_study(make_study(tmp_path / "s", [spec], accuracy))
    places = {Place("table1", name, COLUMN, 0): value for name, value in (("digits", 0.7), ("cifar10", 0.6))}
    references = {place: dict.fromkeys(REFERENCES, value) for place, value in places.items()}
    grid = accuracy_grid(Results(study, study.tables[0], references))
    assert [[cell.text for cell in row] for row in grid.rows[2:7]] == [
        ["", REFERENCES[0], "–", "70.00 (1)"],  # noqa: RUF001
        ["", REFERENCES[1], "–", "70.00 (1)"],  # noqa: RUF001
        ["", REFERENCES[2], "–", "70.00 (1)"],  # noqa: RUF001
        ["CIFAR-10", "CE", "0", "50.00 (1)"],
        ["", "CE+RMDNet", "1", "50.00 (1)"],
    ]
    assert grid.references == {2, 3, 4, 7, 8, 9} and grid.blocks == {2, 5, 7}
