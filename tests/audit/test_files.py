"""What an audit writes, and how decisions on it become labels that a run can train on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rmd_dist import audit
from rmd_dist.audit.apply import apply
from rmd_dist.audit.dataset import ImageAudit, read_margins
from rmd_dist.audit.listing import COLUMNS
from rmd_dist.audit.subject import Subject, open_subject
from rmd_dist.audit.write import check_folder, default_name, write_audit
from rmd_dist.config import AuditConfig, NoiseConfig
from rmd_dist.config.checks import validate
from rmd_dist.data.label_files import read_labels
from rmd_dist.errors import ConfigError
from rmd_dist.files import write_json


def digits(noise: NoiseConfig, root: Path) -> Subject:
    return open_subject("digits", root, None, "memory", noise)


def audited(config: AuditConfig, root: Path) -> ImageAudit:
    """An audit of digits by their own pixels."""
    subject = digits(config.noise, root)
    pixels = torch.from_numpy(np.stack([subject.pixels(k) for k in range(len(subject))]))
    x = torch.nn.functional.avg_pool2d(pixels[..., 0].float()[:, None], 4).flatten(1)
    module = SimpleNamespace(pretrained_cfg={"input_size": (3, 32, 32)})
    encoder: Any = SimpleNamespace(module=module, name="timm:pixels", sha256="0" * 64)
    rules = {"precision": config.precision, "budget": config.budget}
    found = audit.features(x, subject.given, num_classes=10, quick=True, **rules)
    return ImageAudit(subject, found, encoder, x)


def config_of(**settings: Any) -> AuditConfig:
    noise = NoiseConfig(protocol="symmetric", rate=0.2)
    return validate(AuditConfig(dataset="digits", noise=noise, loader="memory", **settings))


def lines_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageAudit]:
    """(folder, what was found) of an audit of digits with a fifth of wrong labels."""
    root = tmp_path_factory.mktemp("audit")
    config = config_of(page_images=50, accept_above=0.9)
    found = audited(config, root)
    folder = root / "digits"
    check_folder(folder, found.id, "0" * 64)
    write_audit(folder, config, found)
    return folder, found


def test_the_list_has_every_image_worst_first(made: tuple[Path, ImageAudit]) -> None:
    folder, found = made
    rows, subject = lines_of(folder / "wrong_labels.csv"), found.subject
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(subject)
    assert sorted(int(row["index"]) for row in rows) == list(range(len(subject)))
    scores = [float(row["label_score"]) for row in rows]
    assert scores == sorted(scores) and [row["rank"] for row in rows[:2]] == ["1", "2"]
    for row in rows[:300]:
        index = int(row["index"])
        assert row["given_label"] == subject.classes[subject.given[index]]
        assert (row["is_label_issue"] == "True") == bool(found.audit.flagged[index])
        assert row["predicted_label"] == subject.classes[found.audit.suggested[index]]
    assert subject.clean is not None
    wrong = [subject.given[int(row["index"])] != subject.clean[int(row["index"])] for row in rows[:100]]
    assert np.mean(wrong) > 0.95


def test_summary_page_and_noise_matrix_say_the_same(made: tuple[Path, ImageAudit]) -> None:
    folder, found = made
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["flagged"] == found.audit.flagged.sum() and summary["audit"] == found.id
    assert summary["wrong"]["low"] <= 0.2 <= summary["wrong"]["high"] + 0.02
    assert [row["class"] for row in summary["by_class"]] == list(found.subject.classes)
    assert sum(row["flagged"] for row in summary["by_class"]) == summary["flagged"]
    matrix = list(csv.reader((folder / "noise_matrix.csv").open()))
    np.testing.assert_allclose(
        [[float(cell) for cell in row[1:]] for row in matrix[1:]], found.audit.noise_matrix, atol=1e-5
    )
    assert Image.open(folder / "noise_matrix.png").size[0] > 300
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert found.id in page and page.count('"p_given"') == 50


def test_suggestions_above_a_probability_are_taken_over(made: tuple[Path, ImageAudit]) -> None:
    folder, found = made
    labels = read_labels(folder / "corrected.csv", found.subject.datasets[0])
    changed = labels != found.subject.given
    assert changed.sum() > 50 and found.audit.flagged[changed].all()
    assert (labels == found.subject.clean)[changed].mean() > 0.9
    assert (found.audit.posterior[np.arange(len(labels)), labels][changed] >= 0.9).all()


def write_decisions(file: Path, audit_id: str, rows: list[tuple[int, str, str]]) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["audit", "index", "path", "decision", "label"])
        writer.writerows([audit_id, index, "", kind, label] for index, kind, label in rows)
    return file


def test_decisions_become_labels(made: tuple[Path, ImageAudit], tmp_path: Path) -> None:
    folder, found = made
    given, classes = found.subject.given, found.subject.classes
    other = classes[(given[5] + 1) % 10]
    rows = [(5, "relabel", other), (6, "drop", ""), (7, "keep", classes[given[7]])]
    decisions = write_decisions(tmp_path / "decisions.csv", found.id, rows)
    done = apply(folder, decisions, out=tmp_path / "labels.csv")
    assert done == {"relabel": 1, "drop": 1, "keep": 1}
    labels = read_labels(tmp_path / "labels.csv", found.subject.datasets[0])
    assert labels[5] == (given[5] + 1) % 10 and labels[6] == -1
    rest = np.setdiff1d(np.arange(len(given)), [5, 6])
    assert (labels[rest] == given[rest]).all()
    assert apply(folder, decisions, 0.9, tmp_path / "more.csv")["accepted"] > 50


def test_decisions_go_before_suggestions(made: tuple[Path, ImageAudit], tmp_path: Path) -> None:
    folder, found = made
    worst = int(np.argmin(found.audit.p_given))
    keep = [(worst, "keep", found.subject.classes[found.subject.given[worst]])]
    decisions = write_decisions(tmp_path / "decisions.csv", found.id, keep)
    apply(folder, decisions, 0.5, tmp_path / "labels.csv")
    labels = read_labels(tmp_path / "labels.csv", found.subject.datasets[0])
    assert labels[worst] == found.subject.given[worst]


def test_the_same_labels_are_the_same_audit_and_others_are_not(
    made: tuple[Path, ImageAudit], tmp_path: Path
) -> None:
    folder, found = made
    noise = NoiseConfig(protocol="symmetric", rate=0.2)
    assert digits(noise, tmp_path).fingerprint() == found.id
    noise.seed = 1
    other = digits(noise, tmp_path).fingerprint()
    assert other != found.id and other.startswith("a")
    check_folder(folder, found.id, "0" * 64)
    for audit_id, encoder in ((other, "0" * 64), (found.id, "1" * 64)):
        with pytest.raises(ConfigError, match="another encoder; give another --name"):
            check_folder(folder, audit_id, encoder)
    with pytest.raises(ConfigError, match=r"corrected.csv is there, perhaps from a review"):
        check_folder(folder, found.id, "0" * 64, corrects=True)
    decisions = write_decisions(tmp_path / "decisions.csv", other, [(0, "drop", "")])
    with pytest.raises(ConfigError, match="of audit"):
        apply(folder, decisions)


def test_damaged_files_are_one_line(made: tuple[Path, ImageAudit], tmp_path: Path) -> None:
    folder, found = made
    decisions = write_decisions(tmp_path / "decisions.csv", found.id, [(0, "drop", "")])
    with pytest.raises(ConfigError, match="no summary of an audit"):
        apply(tmp_path, decisions)
    (copy := tmp_path / "copy").mkdir()
    (copy / "summary.json").write_bytes((folder / "summary.json").read_bytes())
    with pytest.raises(ConfigError, match=r"wrong_labels.csv cannot be read"):
        apply(copy, decisions)
    text = (folder / "wrong_labels.csv").read_text().replace(",4,", ",four,")
    (copy / "wrong_labels.csv").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        apply(copy, decisions)
    lines = (folder / "wrong_labels.csv").read_text().splitlines(keepends=True)
    (copy / "wrong_labels.csv").write_text("".join(lines[:20]))
    with pytest.raises(ConfigError, match="does not list each of 1437 images once"):
        apply(copy, decisions)
    with pytest.raises(ConfigError, match="accept-above = 7 is out of range"):
        apply(folder, decisions, 7)


def test_the_name_says_what_was_audited(made: tuple[Path, ImageAudit]) -> None:
    assert default_name(config_of(), made[1].subject, "timm:pixels") == "digits-symmetric0.2-pixels"
    path = "runs/pretrain/mine/model.safetensors"
    assert default_name(config_of(), made[1].subject, path) == "digits-symmetric0.2-mine"


def test_cleanlab_columns_stand_beside(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    config = config_of(with_cleanlab=True, page_images=0)
    found = audited(config, tmp_path)
    check_folder(tmp_path / "a", found.id, "0" * 64)
    write_audit(tmp_path / "a", config, found)
    rows = lines_of(tmp_path / "a" / "wrong_labels.csv")
    by_cleanlab = [row["cleanlab_is_label_issue"] == "True" for row in rows]
    assert sum(by_cleanlab[:200]) > 100 and sum(by_cleanlab) < len(rows) / 2
    assert float(rows[0]["cleanlab_label_score"]) < float(rows[-1]["cleanlab_label_score"])


def test_margins_must_be_of_these_images_and_labels(tmp_path: Path) -> None:
    subject, run = digits(NoiseConfig(protocol="none"), tmp_path), tmp_path / "run"
    run.mkdir()
    manifest = {"data_sha256": subject.datasets[0].sha256, "labels_sha256": subject.labels_sha256()}
    write_json(run / "manifest.json", manifest)
    with pytest.raises(ConfigError, match=r"has no margins.npy"):
        read_margins(run, subject)
    margins = np.linspace(-1, 1, len(subject), dtype=np.float32)
    np.save(run / "margins.npy", margins)
    np.testing.assert_array_equal(read_margins(run, subject), margins)
    write_json(run / "manifest.json", manifest | {"labels_sha256": "0"})
    with pytest.raises(ConfigError, match="trained on other labels"):
        read_margins(run, subject)
    write_json(run / "manifest.json", manifest)
    np.save(run / "margins.npy", margins[:5])
    with pytest.raises(ConfigError, match="is damaged"):
        read_margins(run, subject)
