"""Configurations of the commands that train nothing: `rmd evaluate` and `rmd audit`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rmd_dist.config.fields import setting
from rmd_dist.config.running import MeasureConfig
from rmd_dist.config.schema import NoiseConfig, SourceConfig


@dataclass
class EvaluateConfig(SourceConfig, MeasureConfig):
    """Figures of a model on disk: accuracy of a classifier, kNN and linear probe of an encoder."""

    checkpoint: str = setting("", path=True)
    """Run folder, exported model.safetensors, or a file of a run's checkpoints/ folder."""

    dataset: str | None = setting(None, path=True)
    """Name of a data set, or own images; unset: what the model was trained on."""

    model: str = "resnet18_cifar"
    """timm model name, for weights that do not say what they are."""

    train_samples: int = setting(0, low=0)
    """Training samples of the kNN bank and the linear probe; 0: all."""

    linear_probe: bool = True
    """Fit a linear classifier on an encoder's features."""

    cpu: bool = False
    """Use the CPU even where there is a GPU."""

    out: str | None = setting(None, path=True)
    """Also write the figures to this JSON file."""


@dataclass
class AuditConfig(SourceConfig):
    """Which labels are wrong: rmd audit DATASET; after a review rmd audit apply AUDIT --decisions FILE."""

    dataset: str = setting("", path=True)
    """cifar10, cifar100, digits, a folder of images, or a table of paths and labels."""

    teacher: str | None = setting(None, path=True)
    """Run folder, encoder file or `timm:NAME[.TAG]`; unset: the data set's newest pretraining."""

    model: str | None = None
    """timm model whose weights are in --weights, or where timm has them: the same as --teacher timm:NAME."""

    weights: str | None = setting(None, path=True)
    """File of a timm model's weights, safetensors or torch.save's."""

    image_size: int | None = setting(None, low=8, high=1024)
    """Height and width of what the encoder gets, in pixels; unset: what its weights want."""

    batch_size: int = setting(64, low=1)
    """Images of one batch of the encoder, on each rank."""

    noise: NoiseConfig = field(default_factory=NoiseConfig)

    run: str | None = setting(None, path=True)
    """Run folder of a distillation: the margins of its training join in."""

    quick: bool = False
    """Ridge regression, one pass over the features, in place of the regression through a noise matrix."""

    folds: int = setting(5, low=2, high=20)
    """Every label is judged by a regression that has not seen it, one of so many."""

    precision: float | None = setting(None, low=0, high=1)
    """Flag as many labels as let this share of them be wrong, by the audit's own estimate."""

    budget: int | None = setting(None, low=0)
    """Flag so many labels, the worst; unset, as precision: as many as are estimated to be wrong."""

    accept_above: float | None = setting(None, low=0, high=1)
    """corrected.csv takes over suggestions of at least this probability, without a person's review."""

    page_images: int = setting(1000, low=0, high=20_000)
    """Flagged images that the page shows, the worst."""

    with_cleanlab: bool = False
    """Add the columns of cleanlab's find_label_issues, on the same cross-fitted probabilities."""

    name: str | None = setting(None, in_names=True)
    """Folder of the audit below `out`; unset: made from data set, labels and encoder."""

    out: str = setting("audits", path=True)
    """Folder of audits."""

    runs: str = setting("runs", path=True)
    """Folder of runs, where pretrainings are looked for."""

    cpu: bool = False
    """Use the CPU even where there is a GPU."""
