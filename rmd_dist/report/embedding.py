"""Figures 5 to 7 of the paper: t-SNE of the features of two classes, wrongly labelled samples in red."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.config import DistillConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.errors import ConfigError
from rmd_dist.report.conditions import conditions, objective_of
from rmd_dist.report.pictures import Picture, legend_below, new_figure
from rmd_dist.report.results import Results, dataset_title
from rmd_dist.report.run_data import open_data, run_config
from rmd_dist.study.spec import Embedding

WRONG, RIGHT = "#c2161c", "#6fbf85"  # also of unlike brightness
SEED = 0  # of t-SNE
NEIGHBOURS = 10
"""Of a sample, that `separation` looks at."""


@dataclass(frozen=True)
class Samples:
    """The training samples that a figure shows, of a run's own data and noise."""

    config: DistillConfig
    dataset: Dataset
    """The run's training split."""
    indices: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_]
    """Whether the given label is wrong, of each of `indices`."""


def embeddings(results: Results) -> tuple[list[Picture], list[str]]:
    """A figure of each data set, if the spec asks for them; remarks on those that could not be drawn."""
    wanted, pictures, remarks = results.spec.embedding, [], []
    if wanted is None:
        return [], []
    for dataset in results.datasets:
        try:
            pictures.append(_picture(results, dataset, wanted))
        except (ConfigError, OSError) as error:
            remarks.append(f"t-SNE of {dataset_title(dataset)} could not be drawn: {error}")
    return pictures, remarks


def _picture(results: Results, dataset: str, wanted: Embedding) -> Picture:
    """A panel of the teacher and of each method of the first loss, at the first noise setting and seed."""
    study = results.study
    rows = [row for row in results.rows if row.dataset == dataset]
    rows = [row for row in rows if row.loss == rows[0].loss]
    column, seed = results.columns[0], results.spec.seeds[0]
    entries = [e for row in rows for e in results.entries(row, column) if e.seed == seed]
    if missing := [entry.key for entry in entries if not study.finished(entry.key)]:
        raise ConfigError(f"{', '.join(missing)} has not finished")
    if not entries:
        raise ConfigError(f"the table has no runs of seed {seed}")
    shown = choose_samples(study.run(entries[0].key), wanted)
    models = [(entry.label, study.run(entry.key)) for entry in entries]
    if teacher := study.teacher(dataset, results.table):
        models.insert(0, (f"{objective_of(teacher) or ''} teacher".strip(), teacher))
    panels = [(title, features_of(path, shown)) for title, path in models]
    classes = " and ".join(wanted.classes)
    caption = (
        f"t-SNE (perplexity {wanted.perplexity:g}) of the pooled features of {len(shown.indices)} training "
        f"images labelled {' or '.join(wanted.classes)}; red: the label is wrong ({int(shown.wrong.sum())}). "
        "AUC: of telling wrong from right labels by the share of wrong ones among a sample's "
        f"{NEIGHBOURS} nearest in the full feature space; 0.5: mixed, 1: apart. Noise: {column.label}; "
        f"seed {seed}. {conditions(results, dataset)}"
    )
    title = f"Features of {classes}: {results.spec.name}"
    return Picture(
        f"{results.spec.name}-{dataset}-tsne", title, caption, _draw(panels, shown, wanted), raster=True
    )


def choose_samples(run: Path, wanted: Embedding) -> Samples:
    """The samples of `wanted`, by given label, from the training samples of a run folder.

    Raises ConfigError if the run's configuration or its data are not there: nothing is downloaded.
    """
    from rmd_dist.data.splits import probe
    from rmd_dist.tasks.parts import build_labels

    config = run_config(run)
    dataset, _, splits = open_data(config)
    labels, classes = build_labels(config, dataset), dataset.info.classes
    names = [name.lower() for name in classes]
    if unknown := [name for name in wanted.classes if name.lower() not in names]:
        raise ConfigError(f"embedding.classes: {unknown[0]!r} is none of {', '.join(classes)}")
    given = labels.given[splits.train]
    chosen = [
        probe(splits.train[given == names.index(name.lower())], max(1, wanted.samples))
        for name in wanted.classes
    ]
    indices = np.sort(np.concatenate(chosen))
    return Samples(config, dataset, indices, labels.given[indices] != dataset.labels[indices])


def features_of(path: Path, shown: Samples) -> npt.NDArray[np.float32]:
    """Pooled features (N, D) of the shown samples, unaugmented, by the model of a run folder or a file.

    Raises ConfigError if there is no model.
    """
    from rmd_dist.data.preprocess import Preprocess
    from rmd_dist.evaluation.predict import predict
    from rmd_dist.models.export import load
    from rmd_dist.models.student import Encoder

    loaded = load(path, shown.config.model.name)
    loaded.assume_input(Preprocess.for_dataset(shown.dataset.info).to_cfg())
    features: npt.NDArray[np.float32] = predict(Encoder(loaded.module), shown.dataset, shown.indices).numpy()
    return features


def _draw(panels: list[tuple[str, npt.NDArray[np.float32]]], shown: Samples, wanted: Embedding) -> Any:
    """A panel of each (title, features)."""
    from sklearn.manifold import TSNE

    perplexity = min(wanted.perplexity, max(1.0, (len(shown.indices) - 1) / 3))
    figure = new_figure(3.9 * len(panels), 4.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, features) in zip(axes, panels, strict=True):
        points = TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(features)
        for hit, colour, label in ((False, RIGHT, "label is right"), (True, WRONG, "label is wrong")):
            chosen = points[shown.wrong == hit]
            axis.scatter(chosen[:, 0], chosen[:, 1], s=9, color=colour, alpha=0.7, linewidths=0, label=label)
        auc = separation(features, shown.wrong)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("AUC not defined" if auc is None else f"AUC {auc:.3f}", fontsize=10.5)
        axis.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axis.spines[:].set_color("#c9d0d6")
    legend_below(figure, axes)
    return figure


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
