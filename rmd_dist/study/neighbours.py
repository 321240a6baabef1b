"""How far features keep wrongly labelled samples apart from rightly labelled ones, as one number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 10


def separation(features: npt.NDArray[np.float32], wrong: npt.NDArray[np.bool_]) -> float | None:
    """How well the neighbours of a sample tell whether its label is wrong: an AUC.

    A sample's score is the share of wrongly labelled ones among its NEIGHBOURS nearest others by cosine
    similarity of features (N, D). The result is the chance that a wrongly labelled sample scores above a
    rightly labelled one, ties counting half: 0.5 if they are mixed, 1 if they lie apart. None where one of
    the two kinds, or enough samples, are missing.
    """
    if len(wrong) <= NEIGHBOURS or wrong.all() or not wrong.any():
        return None
    from sklearn.metrics import roc_auc_score

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argpartition(-similarity, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return float(roc_auc_score(wrong, wrong[nearest].mean(axis=1)))
