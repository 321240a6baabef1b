"""Figures 5 to 7 of the paper: t-SNE of the features of two classes, wrongly labelled samples in red."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.config import ConfigError, DistillConfig
from rmd_dist.study.conditions import conditions
from rmd_dist.study.folder import Study
from rmd_dist.study.neighbours import NEIGHBOURS, separation
from rmd_dist.study.pictures import Picture, legend_below, new_figure
from rmd_dist.study.places import DATASET_TITLES, Places
from rmd_dist.study.spec import Embedding

WRONG, RIGHT = "#c2161c", "#6fbf85"  # also of unlike brightness
SEED = 0  # of t-SNE


@dataclass(frozen=True)
class Shown:
    """The training samples that a figure shows, of a run's own data and noise."""

    task: Any
    """The run's `DistillTask`."""
    indices: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_]
    """Whether the given label is wrong, of each of `indices`."""


def embeddings(study: Study, places: Places) -> tuple[list[Picture], list[str]]:
    """A figure of each data set, if the spec asks for them; remarks on those that could not be drawn."""
    wanted, pictures, remarks = places.spec.embedding, [], []
    if wanted is None:
        return [], []
    for dataset in places.datasets:
        try:
            pictures.append(_picture(study, places, dataset, wanted))
        except (ConfigError, OSError) as error:
            title = DATASET_TITLES.get(dataset, dataset)
            remarks.append(f"t-SNE of {title} could not be drawn: {error}")
    return pictures, remarks


def _picture(study: Study, places: Places, dataset: str, wanted: Embedding) -> Picture:
    """A panel of the teacher and of each method of the first loss, at the first noise setting and seed."""
    rows = [row for row in places.rows if row.dataset == dataset]
    rows = [row for row in rows if row.loss == rows[0].loss]
    column, seed = places.columns[0], places.spec.seeds[0]
    entries = [e for row in rows for e in places.entries(row, column) if e.seed == seed]
    if missing := [entry.key for entry in entries if not study.finished(entry.key)]:
        raise ConfigError(f"{', '.join(missing)} has not finished")
    if not entries:
        raise ConfigError(f"the table has no runs of seed {seed}")
    shown = choose_samples(study.run(entries[0].key), wanted)
    models = [(entry.label, study.run(entry.key)) for entry in entries]
    if teacher := study.teacher(dataset, places.table):
        models.insert(0, ("SimSiam teacher", teacher))
    panels = [(title, features_of(path, shown)) for title, path in models]
    classes = " and ".join(wanted.classes)
    caption = (
        f"t-SNE (perplexity {wanted.perplexity:g}) of the pooled features of {len(shown.indices)} training "
        f"images labelled {' or '.join(wanted.classes)}; red: the label is wrong ({int(shown.wrong.sum())}). "
        "AUC: of telling wrong from right labels by the share of wrong ones among a sample's "
        f"{NEIGHBOURS} nearest in the full feature space; 0.5: mixed, 1: apart. Noise: {column.label}; "
        f"seed {seed}. {conditions(study, places, dataset)}"
    )
    title = f"Features of {classes}: {places.spec.name}"
    return Picture(
        f"{places.spec.name}-{dataset}-tsne", title, caption, _draw(panels, shown, wanted), raster=True
    )


def choose_samples(run: Path, wanted: Embedding) -> Shown:
    """The samples of `wanted`, by given label, from the training samples of a run folder.

    Raises ConfigError if the run's configuration or its data are not there: nothing is downloaded.
    """
    from rmd_dist.cli import parse
    from rmd_dist.data.splits import probe
    from rmd_dist.tasks.base import Place
    from rmd_dist.tasks.distill import DistillTask

    config = parse(DistillConfig, ["--config", str(run / "config.yaml")])
    _insist_on_data(config)
    config.run.precision = "no"
    task = DistillTask(config, Place(), None)
    names = [name.lower() for name in task.classes]
    if unknown := [name for name in wanted.classes if name.lower() not in names]:
        raise ConfigError(f"embedding.classes: {unknown[0]!r} is none of {', '.join(task.classes)}")
    given = task.noisy.labels[task.indices]
    chosen = [
        probe(task.indices[given == names.index(name.lower())], max(1, wanted.samples))
        for name in wanted.classes
    ]
    indices = np.sort(np.concatenate(chosen))
    return Shown(task, indices, task.noisy.labels[indices] != task.train_set.labels[indices])


def _insist_on_data(config: DistillConfig) -> None:
    """ConfigError where reading the data set would first fetch it or write a beton."""
    from rmd_dist.data.beton import beton_path
    from rmd_dist.data.cifar import LAYOUTS, find_local

    data = config.data
    if data.dataset not in LAYOUTS:
        return
    root, given = Path(data.root), Path(data.source) if data.source else None
    betons = all(beton_path(root, data.dataset, split).exists() for split in ("train", "test"))
    archive = (given is not None and given.exists()) or find_local(data.dataset, root) is not None
    if not betons and (data.loader == "ffcv" or not archive):
        raise ConfigError(f"the data of {data.dataset} that its runs used are not where they were")


def features_of(path: Path, shown: Shown) -> npt.NDArray[np.float32]:
    """Pooled features (N, D) of the shown samples, unaugmented, by the model of a run folder or a file.

    Raises ConfigError if there is no model.
    """
    from rmd_dist.data.loader import build_loader
    from rmd_dist.evaluate import extract_features
    from rmd_dist.models.export import load
    from rmd_dist.tasks.distill import Encoder

    task, indices = shown.task, shown.indices
    config = task.config
    model = load(path, config.model.name).module
    loader = build_loader(
        task.train_set,
        kind=config.data.loader,
        augment=None,
        batch_size=min(config.eval.batch_size, len(indices)),
        seed=0,
        indices=indices,
        shuffle=False,
    )
    with loader:
        features, _ = extract_features(Encoder(model), loader, task.normalize, task.place.device, indices)
    return features.numpy()


def _draw(panels: list[tuple[str, npt.NDArray[np.float32]]], shown: Shown, wanted: Embedding) -> Any:
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
