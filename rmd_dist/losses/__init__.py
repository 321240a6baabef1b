"""Losses: of classification, of the relation graph, of pretraining."""

from rmd_dist.losses.classification import LOSSES, ClassificationLoss, build_loss
from rmd_dist.losses.relation import RelationLoss, RelationMatrices, RelationTerms, relation_matrices
from rmd_dist.losses.simclr import nt_xent
from rmd_dist.losses.simsiam import feature_spread, simsiam_loss

__all__ = [
    "LOSSES",
    "ClassificationLoss",
    "RelationLoss",
    "RelationMatrices",
    "RelationTerms",
    "build_loss",
    "feature_spread",
    "nt_xent",
    "relation_matrices",
    "simsiam_loss",
]
