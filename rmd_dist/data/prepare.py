"""From a name to samples ready for a loader: betons are written where missing, checked where present."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from rmd_dist.data.dataset import Dataset, find_source
from rmd_dist.data.images.source import ImageFiles
from rmd_dist.data.images.store import Store
from rmd_dist.data.sources.base import DatasetInfo, DataSource, Split
from rmd_dist.data.sources.beton import (
    BetonHeader,
    Progress,
    beton_path,
    check_beton,
    read_images,
    write_beton,
)
from rmd_dist.errors import ConfigError
from rmd_dist.files import exclusive

SPLITS: tuple[Split, ...] = get_args(Split)


def prepare(name: str, root: Path, source: Path | None = None, *, progress: Progress | None = None) -> None:
    """Write the betons of both splits of `name` into `root` where missing; check those that are there.

    Own images are prepared with the options of `rmd prepare` as they stand by default.

    Any number of processes may call this at once: one builds, the others wait. An existing beton is
    never written again. Raises ConfigError when a beton or its source is damaged, or when an existing
    beton was written from other samples than `source` holds.
    """
    data_source, root = find_source(name, Path(root)), Path(root)
    if isinstance(data_source, ImageFiles):
        refuse_source(source, name)
        return data_source.prepare(root, progress=progress)
    info = data_source.info
    if _missing(info, root):
        waiting = (lambda: progress("waiting for the process that writes", 0, 0)) if progress else None
        with exclusive(root / f".{info.name}.lock", waiting):
            _build(data_source, root, source, progress)
    headers = [_header(info, split, root) for split in SPLITS]
    if source is not None:
        sha256 = data_source.sha256(source)
        for header in headers:
            _check_source(header, data_source, source, sha256)
    return None


def refuse_source(source: Path | None, name: str) -> None:
    """ConfigError if own images are given a --source."""
    if source is not None:
        raise ConfigError(f"{name} is read from where it lies; leave --source ({source}) out")


def _build(data_source: DataSource, root: Path, source: Path | None, progress: Progress | None) -> None:
    """Write what is missing, unless what is there came from other samples."""
    info = data_source.info
    missing = _missing(info, root)  # another process may have been first
    present = [_header(info, split, root) for split in SPLITS if split not in missing]
    for split in missing:
        if progress:
            progress(f"reading {info.name} {split}", 0, 0)
        samples = data_source.load(split, root, source)
        for header in present:
            _check_source(header, data_source, Path(samples.source), samples.source_sha256)
        write_beton(samples, info, split, root, progress)


def open_dataset(
    name: str,
    split: Split,
    *,
    root: Path,
    source: Path | None = None,
    loader: Literal["ffcv", "memory"] = "ffcv",
    progress: Progress | None = None,
) -> Dataset:
    """One split of `name`, ready for a loader.

    `ffcv`: a checked beton in `root`, written first if it is missing (see `prepare`). `memory`: the
    pixels in one array, from `source`, else from an intact beton in `root`, else from the archive in
    `root` or torchvision's download. Neither needs ffcv to be installed.
    """
    if loader not in ("ffcv", "memory"):
        raise ConfigError(f"loader {loader!r} is unknown; choose ffcv or memory")
    data_source, root = find_source(name, Path(root)), Path(root)
    if isinstance(data_source, ImageFiles):
        prepare(name, root, source, progress=progress)
        return _open_images(data_source, split, root, loader)
    info = data_source.info
    if loader == "ffcv":
        prepare(name, root, source, progress=progress)
        header = _header(info, split, root)
        return Dataset(info, split, header.labels, header.path, None, header.manifest["samples_sha256"])
    if source is None and beton_path(root, info.name, split).exists():
        header = _header(info, split, root)
        images, sha256 = read_images(header), header.manifest["samples_sha256"]
        return Dataset(info, split, header.labels, None, images, sha256)
    samples = data_source.load(split, root, source)
    return Dataset(info, split, samples.labels, None, samples.images, samples.sha256())


def _open_images(images: ImageFiles, split: Split, root: Path, loader: str) -> Dataset:
    """A split of own images: both loaders read the same betons, `memory` without ffcv."""
    headers = images.open_split(split, root)
    store, sha256 = Store(headers), headers[0].manifest["samples_sha256"]
    beton = headers[0].path if loader == "ffcv" else None
    files = images.files(split, root, len(store))
    return Dataset(images.info(root), split, store.labels, beton, None, sha256, store, files)


def _missing(info: DatasetInfo, root: Path) -> list[Split]:
    return [split for split in SPLITS if not beton_path(root, info.name, split).exists()]


def _header(info: DatasetInfo, split: Split, root: Path) -> BetonHeader:
    """The checked beton of a split; ConfigError when it belongs to another data set."""
    path = beton_path(root, info.name, split)
    header = check_beton(path)
    given = [header.manifest[key] for key in ("dataset", "split", "classes", "image_size")]
    if given != [info.name, split, list(info.classes), info.image_size]:
        raise ConfigError(
            f"{path} holds {given[0]} {given[1]}, not {info.name} {split}; "
            "delete it and run rmd prepare, which writes it anew"
        )
    return header


def _check_source(header: BetonHeader, data_source: DataSource, source: Path, sha256: str) -> None:
    """ConfigError if the beton was written from other samples than `source` holds.

    A tar and its unpacked folder have other sums but the same samples, so those decide.
    """
    manifest = header.manifest
    if manifest["source_sha256"] == sha256:
        return
    samples = data_source.load(manifest["split"], Path(), source)
    if samples.sha256() != manifest["samples_sha256"]:
        raise ConfigError(
            f"{header.path} was written from {manifest['source']}, whose images are not those of {source}; "
            "leave --source out to use the beton, or delete it, or choose another folder for betons"
        )
