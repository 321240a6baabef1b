"""How right an audit is, where the true labels are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.audit.detect import Audit

FIRST = 500


def detection(
    wrong: npt.NDArray[np.bool_],
    score: npt.NDArray[np.float64],
    flagged: npt.NDArray[np.bool_],
    right_suggestion: npt.NDArray[np.bool_],
) -> dict[str, float]:
    """Measure -> value in [0, 1], of n labels (n,) that are `wrong` or not; a high score doubts a label.

    `auroc` and `ap` where there are labels of both kinds, `suggestions` where wrong ones are flagged.
    """
    figures: dict[str, Any] = {"wrong": wrong.mean()}
    if wrong.any() and not wrong.all():
        from sklearn.metrics import average_precision_score, roc_auc_score

        figures["auroc"] = roc_auc_score(wrong, score)
        figures["ap"] = average_precision_score(wrong, score)
    hits = int((wrong & flagged).sum())
    precision, recall = hits / max(int(flagged.sum()), 1), hits / max(int(wrong.sum()), 1)
    figures |= {"precision": precision, "recall": recall}
    figures["f1"] = 2 * precision * recall / max(precision + recall, 1e-12)
    figures["precision_500"] = wrong[np.argsort(-score, kind="stable")[:FIRST]].mean()
    if hits:
        figures["suggestions"] = right_suggestion[wrong & flagged].mean()
    return {name: float(value) for name, value in figures.items()}


def detection_lines(audit: Audit, clean: npt.NDArray[np.int64]) -> list[list[str]]:
    """(measure, value) for people; `clean` (n,): the true labels of the audited images."""
    # Not the score: of labels that are surely wrong 1 - p would all be 1.
    found = detection(audit.given != clean, -audit.p_given, audit.flagged, audit.suggested == clean)
    shown = {
        "wrong": ("labels that are wrong", ".2%"),
        "auroc": ("AUROC", ".3f"),
        "ap": ("average precision", ".3f"),
        "precision": ("flagged that are wrong (precision)", ".2%"),
        "recall": ("wrong that are flagged (recall)", ".2%"),
        "f1": ("F1", ".3f"),
        "precision_500": (f"wrong among the {min(FIRST, len(clean))} worst", ".2%"),
        "suggestions": ("suggestions that are right, of wrong ones flagged", ".2%"),
    }
    return [[title, format(found[key], style)] for key, (title, style) in shown.items() if key in found]
