"""Relations of features to labels: a noise matrix, and posteriors of the true classes, cross-fitted."""

from rmd_dist.relations.estimate import Relations, classifier, estimate, estimate_plainly, estimate_quickly
from rmd_dist.relations.folds import fold_of
from rmd_dist.relations.noise_matrix import Calibration
from rmd_dist.relations.regression import Samples

__all__ = [
    "Calibration",
    "Relations",
    "Samples",
    "classifier",
    "estimate",
    "estimate_plainly",
    "estimate_quickly",
    "fold_of",
]
