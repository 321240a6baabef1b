"""How right an audit is, where the true labels are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rmd_dist.audit.detect import Audit

FIRST = 500


def detection(audit: Audit, clean: npt.NDArray[np.int64]) -> dict[str, str]:
    """Measure -> value, for people; `clean` (n,): the true labels of the audited images."""
    wrong = audit.given != clean
    figures = {"labels that are wrong": f"{wrong.mean():.2%}"}
    if wrong.any() and not wrong.all():
        from sklearn.metrics import average_precision_score, roc_auc_score

        figures["AUROC"] = f"{roc_auc_score(wrong, audit.score):.3f}"
        figures["average precision"] = f"{average_precision_score(wrong, audit.score):.3f}"
    hits = int((wrong & audit.flagged).sum())
    precision, recall = hits / max(int(audit.flagged.sum()), 1), hits / max(int(wrong.sum()), 1)
    figures["flagged that are wrong (precision)"] = f"{precision:.2%}"
    figures["wrong that are flagged (recall)"] = f"{recall:.2%}"
    figures["F1"] = f"{2 * precision * recall / max(precision + recall, 1e-12):.3f}"
    worst = audit.order[:FIRST]
    figures[f"wrong among the {len(worst)} worst"] = f"{wrong[worst].mean():.2%}"
    right = (audit.suggested == clean)[wrong & audit.flagged]
    if len(right):
        figures["suggestions that are right, of wrong ones flagged"] = f"{right.mean():.2%}"
    return figures
