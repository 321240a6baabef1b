"""An audit on disk: its list, its page, its noise matrix, its summary."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rmd_dist import __version__
from rmd_dist.audit.dataset import ImageAudit
from rmd_dist.audit.detect import Share
from rmd_dist.audit.listing import (
    CORRECTED,
    WRONG_LABELS,
    write_corrected,
    write_noise_matrix,
    write_wrong_labels,
)
from rmd_dist.audit.page import Page, write_page
from rmd_dist.audit.pictures import Pictures, cases
from rmd_dist.audit.subject import Subject
from rmd_dist.config import TIMM, AuditConfig
from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import atomic_path, check_output_folder, read_json, write_json
from rmd_dist.runs.figures import confusion_matrix

SUMMARY = "summary.json"
PAGE = "index.html"


def default_name(config: AuditConfig, subject: Subject, encoder_name: str) -> str:
    """Of the folder: data set, labels where they are not its own, encoder."""
    protocol, name = subject.protocol, encoder_name
    labels = "" if protocol == "none" else f"-{protocol.removeprefix('human:')}"
    if labels and not protocol.startswith(("human", "file")):
        labels += f"{config.noise.rate:g}"
    encoder = name.removeprefix(TIMM) if name.startswith(TIMM) else Path(name).parent.name
    name = re.sub(r"[^\w.-]+", "_", f"{subject.name}{labels}-{encoder}")
    return name.encode()[:120].decode(errors="ignore")


def check_folder(folder: Path, audit_id: str, encoder_sha256: str, *, corrects: bool = False) -> None:
    """Make the folder. Raises ConfigError if another audit is in it, or labels that would be written over."""
    check_output_folder(folder)
    if (folder / SUMMARY).exists():
        before = read_summary(folder)
        if (before["audit"], before["encoder_sha256"]) != (audit_id, encoder_sha256):
            raise ConfigError(
                f"{folder} holds an audit of other images or labels, or by another encoder; give another "
                "--name, or delete it"
            )
    if corrects and (folder / CORRECTED).exists():
        raise ConfigError(
            f"{folder / CORRECTED} is there, perhaps from a review; move it, give another --name, or leave "
            "--accept-above to rmd audit apply"
        )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of an audit. Raises ConfigError if there is none or it is damaged."""
    path = folder / SUMMARY
    try:
        summary = read_json(path)
        texts, counts = ("audit", "encoder_sha256", "place"), ("images", "without_label")
        kinds = {"classes": list, **dict.fromkeys(texts, str), **dict.fromkeys(counts, int)}
        if wrong := [key for key, kind in kinds.items() if not isinstance(summary.get(key), kind)]:
            raise ValueError(f"bad {', '.join(wrong)}")
        return summary
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is no summary of an audit ({error!s:.100}); run rmd audit") from error


def write_audit(folder: Path, config: AuditConfig, found: ImageAudit) -> dict[str, Any]:
    """Write all files of an audit into its folder; returns what summary.json says."""
    subject, audit = found.subject, found.audit
    more = cleanlab_columns(found) if config.with_cleanlab else {}
    if found.margins is not None:
        more = {"margin": found.margins, **more}
    write_wrong_labels(folder / WRONG_LABELS, subject, audit, more)
    write_noise_matrix(folder / "noise_matrix.csv", audit, subject.classes)
    seen = np.where(audit.noise_matrix < 0.005, 0, audit.noise_matrix)
    title = f"{subject.name}: how labels were confused"
    picture = confusion_matrix(seen, subject.classes, title, column="given label")
    with writing(path := folder / "noise_matrix.png"), atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    if config.accept_above is not None:
        write_corrected(
            folder / CORRECTED, subject.paths, accepted(found, config.accept_above), subject.classes
        )
    summary = summarise(config, found)
    doubted = [int(row) for row in audit.order if audit.flagged[row]]
    page = Page(
        name=folder.name,
        audit_id=found.id,
        classes=subject.classes,
        cases=cases(subject, audit, found.features, doubted[: config.page_images]),
        pictures=Pictures(subject),
        summary=lines(summary),
        matrix=audit.noise_matrix,
        more=max(0, len(doubted) - config.page_images),
    )
    write_page(folder / PAGE, page)
    with writing(folder / SUMMARY):
        write_json(folder / SUMMARY, summary)
    return summary


def accepted(found: ImageAudit, above: float) -> npt.NDArray[np.int64]:
    """(N,): the labels with the suggestions of flagged images whose probability is at least `above`."""
    audit, labels = found.audit, found.subject.given.copy()
    sure = audit.posterior[np.arange(len(audit.given)), audit.suggested] >= above
    take = audit.flagged & sure
    labels[found.subject.rows[take]] = audit.suggested[take]
    return labels


def summarise(config: AuditConfig, found: ImageAudit) -> dict[str, Any]:
    """What summary.json says."""
    subject, audit = found.subject, found.audit
    flagged = np.bincount(audit.given[audit.flagged], minlength=len(subject.classes))
    counts, unjudged = np.bincount(audit.given, minlength=len(subject.classes)), set(audit.unjudged.tolist())
    by_class = [
        {
            "class": name,
            "images": int(counts[c]),
            "flagged": int(flagged[c]),
            "wrong": _share(audit.wrong_by_class[c]),
            "judged": c not in unjudged,
        }
        for c, name in enumerate(subject.classes)
    ]
    return {
        "audit": found.id,
        "dataset": subject.name,
        "data_sha256": [dataset.sha256 for dataset in subject.datasets],
        "classes": list(subject.classes),
        "place": config.dataset,
        "labels": subject.protocol if config.noise.labels is None else config.noise.labels,
        "noise_rate": config.noise.rate if subject.clean is not None else None,
        "noise_seed": config.noise.seed if subject.clean is not None else None,
        "labels_sha256": subject.labels_sha256(),
        "images": len(audit.given),
        "without_label": len(subject) - len(audit.given),
        "flagged": int(audit.flagged.sum()),
        "wrong": _share(audit.wrong),
        "by_class": by_class,
        "encoder": found.encoder.name,
        "encoder_sha256": found.encoder.sha256,
        "input_size": list(found.encoder.module.pretrained_cfg["input_size"]),
        "run": config.run,
        "precision": config.precision,
        "budget": config.budget,
        "accept_above": config.accept_above,
        "settings": audit.settings,
        "versions": {"rmd-dist": __version__}
        | {name: importlib.metadata.version(name) for name in ("torch", "timm", "numpy")},
    }


def _share(share: Share) -> dict[str, float]:
    return {"value": share.value, "low": share.low, "high": share.high}


def lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary for people: what, value."""
    images, flagged, wrong = summary["images"], summary["flagged"], summary["wrong"]
    few = [row["class"] for row in summary["by_class"] if not row["judged"]]
    found = [
        ("data", summary["dataset"]),
        ("labels", "its own" if summary["labels"] == "none" else str(summary["labels"])),
        ("images, classes", f"{images}, {len(summary['classes'])}"),
        ("flagged", f"{flagged} ({flagged / images:.1%})"),
        ("wrong, estimated", f"{wrong['value']:.1%} ({wrong['low']:.1%} to {wrong['high']:.1%})"),
        ("encoder", summary["encoder"]),
    ]
    if summary["without_label"]:
        found.append(("without a label", str(summary["without_label"])))
    if few:
        found.append(
            ("too few images to judge", f"{len(few)} classes: {', '.join(few[:5])}{', ...' * (len(few) > 5)}")
        )
    return found


def cleanlab_columns(found: ImageAudit) -> dict[str, npt.NDArray[Any]]:
    """cleanlab's judgement by its defaults, on p(given label | image), cross-fitted."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    audit = found.audit
    p = audit.clean.astype(np.float64) @ audit.noise_matrix
    p /= p.sum(1, keepdims=True)
    return {
        "cleanlab_is_label_issue": find_label_issues(audit.given, p, n_jobs=1),
        "cleanlab_label_score": get_label_quality_scores(audit.given, p),
    }
