"""Own images as a data set: named after their folder or table, prepared once, then found by that name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.config.datasets import dataset_name
from rmd_dist.data.images.build import Progress, build
from rmd_dist.data.images.index import groups_of, read_index
from rmd_dist.data.images.listing import TEST, TRAIN, list_images
from rmd_dist.data.images.store import open_shards, shard_path
from rmd_dist.data.images.work import StoreOptions
from rmd_dist.data.render.jpeg import DECODER
from rmd_dist.data.sources.base import DatasetInfo, Split
from rmd_dist.data.sources.beton import BetonHeader, read_manifest
from rmd_dist.errors import ConfigError
from rmd_dist.files import exclusive, write_json

IMAGE_SIZE = 224
"""Pixels of a side that models get unless asked otherwise."""
CROP_PCT = 0.875
"""An evaluation cuts the central 224 of 256."""


@dataclass(frozen=True)
class SampleFiles:
    """Which file each sample of a prepared split came from, by the index."""

    index: Path
    split: Split
    count: int

    def groups(self) -> npt.NDArray[np.int64]:
        """(N,), equal numbers for samples of equal content, which are to stay together."""
        return groups_of(self.digests())

    def digests(self) -> list[bytes]:
        """(N,), SHA-256 of the files' contents, 32 bytes each."""
        return self._column("sha256")

    def paths(self) -> list[bytes]:
        """(N,), relative to the folder or table."""
        return self._column("path")

    def others(self) -> list[bytes]:
        """Paths of all other files, those that were skipped among them."""
        return [path for split, path in self._rows("path") if split != self._code]

    @property
    def _code(self) -> int:
        return TRAIN if self.split == "train" else TEST

    def _rows(self, name: str) -> list[tuple[int, bytes]]:
        try:
            table = read_index(self.index, ("split", name))
            return list(zip(table["split"].to_pylist(), table[name].to_pylist(), strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{self.index} cannot be read ({error!s:.100}); prepare it anew") from error

    def _column(self, name: str) -> list[bytes]:
        found = [value for split, value in self._rows(name) if split == self._code]
        if len(found) != self.count:
            raise ConfigError(f"{self.index} is not that of the betons beside it; prepare it anew")
        return found


@dataclass(frozen=True)
class ImageFiles:
    """A folder of images, or a table that names them; or the name of one that has been prepared."""

    name: str
    place: Path | None
    """Where the files are; None: only what has been prepared is known."""

    @classmethod
    def at(cls, place: Path) -> ImageFiles:
        """The images of a folder or table; the name is that of the place, in plain letters."""
        return cls(dataset_name(str(place)), place)

    def is_prepared(self, root: Path) -> bool:
        """Whether both splits have been written below `root`."""
        return all(shard_path(root, self.name, split, 0).exists() for split in ("train", "test"))

    def info(self, root: Path) -> DatasetInfo:
        """Classes, counts and statistics of what was prepared. Raises ConfigError where nothing was."""
        train, test = (self._manifest(root, split) for split in ("train", "test"))
        try:
            mean, std = (tuple(float(x) for x in train[key]) for key in ("mean", "std"))
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError
            return DatasetInfo(
                name=self.name,
                classes=tuple(map(str, train["classes"])),
                image_size=IMAGE_SIZE,
                mean=mean,
                std=std,
                train_count=int(train["total"]),
                test_count=int(test["total"]),
                crop_pct=CROP_PCT,
                varied=True,
                stored=dict(train["options"]),
            )
        except (KeyError, TypeError, ValueError):
            path = shard_path(root, self.name, "train", 0).with_suffix(".json")
            raise ConfigError(f"{path} is damaged; delete it and {self._remedy}") from None

    def _manifest(self, root: Path, split: Split) -> dict[str, Any]:
        path = shard_path(root, self.name, split, 0)
        if not path.exists():
            raise ConfigError(f"{self.name} has not been prepared in {root}; {self._remedy}")
        return read_manifest(path)

    @property
    def _remedy(self) -> str:
        return f"run rmd prepare --dataset {self.place or 'FOLDER'}"

    def prepare(
        self,
        root: Path,
        options: StoreOptions | None = None,
        *,
        class_level: int = 1,
        allow_broken: bool = False,
        update: bool = False,
        look: bool = False,
        processes: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Write betons of both splits below `root` where missing.

        `look`: where they are there, look whether the files are still those that they were made from.
        `update`: then write them anew instead of raising. Raises ConfigError if they are of other files or
        options, or the files cannot be used.
        """
        if self.is_prepared(root) and not (look or update):
            return self._check_place(root)
        wanted = options or StoreOptions()
        if self.place is None:
            if update or (options and self._manifest(root, "train").get("options") != options.to_json()):
                raise ConfigError(f"{self.name} has been prepared; to do it anew give its folder or table")
            return self._check_decoder(root)
        if progress:
            progress(f"listing {self.place}", 0, 0)
        listing = list_images(self.place, class_level)
        waiting = (lambda: progress("waiting for the process that writes", 0, 0)) if progress else None
        with exclusive(root / f".{self.name}.lock", waiting):
            if self.is_prepared(root):
                manifest = self._manifest(root, "train")
                same = manifest["source_sha256"] == listing.fingerprint()
                if same and manifest.get("options") == wanted.to_json() and not update:
                    return self._record_place(root)
                if not update:
                    what = "with other options" if same else "from other files, or they have changed since"
                    raise ConfigError(
                        f"{self.name} was prepared in {root} {what} ({manifest['source']}); give --update to "
                        "prepare it anew, another --out for another folder of betons, or leave it"
                    )
            build(
                listing, self.name, root, wanted,
                source=str(self.place.resolve()), allow_broken=allow_broken, processes=processes,
                progress=progress,
            )  # fmt: skip
        return None

    def _record_place(self, root: Path) -> None:
        """Say in the manifests where the files are now."""
        assert self.place is not None
        for split in ("train", "test"):
            for header in open_shards(root, self.name, split):
                if header.manifest["source"] != (now := str(self.place.resolve())):
                    write_json(header.path.with_suffix(".json"), header.manifest | {"source": now})

    def _check_place(self, root: Path) -> None:
        """ConfigError if what is prepared under this name came from elsewhere."""
        source = self._manifest(root, "train")["source"]
        if self.place is not None and self.place.exists() and str(self.place.resolve()) != source:
            raise ConfigError(
                f"{self.name} in {root} was prepared from {source}, not from {self.place}; if it has moved, "
                f"run rmd prepare --dataset {self.place}, which looks; else give another --data-root"
            )
        self._check_decoder(root)

    def _check_decoder(self, root: Path) -> None:
        decoder = self._manifest(root, "train").get("decoder")
        if decoder != DECODER:
            print(f"note: {self.name} was prepared with {decoder}; {DECODER} reads it here", flush=True)

    def verify(self, root: Path) -> None:
        """Read all betons whole. Raises ConfigError if one is damaged."""
        for split in ("train", "test"):
            open_shards(root, self.name, split, hashed_bytes=1 << 62)

    def open_split(self, split: Split, root: Path) -> list[BetonHeader]:
        """The checked shards of a split."""
        return open_shards(root, self.name, split)

    def files(self, split: Split, root: Path, count: int) -> SampleFiles:
        """Where the `count` samples of a split came from."""
        return SampleFiles(root / self.name / "index.parquet", split, count)
