"""The end of a preparation: records into the betons, the index, lists of what was skipped, counts."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist import __version__
from rmd_dist.data.images.index import groups_of, write_index
from rmd_dist.data.images.listing import SPLITS, TEST, TRAIN, Listing
from rmd_dist.data.images.store import ShardWriter, shard_path
from rmd_dist.data.images.work import StoreOptions
from rmd_dist.data.render.jpeg import DECODER
from rmd_dist.data.sources.beton import BETON_VERSION, IMAGE, MANIFEST_VERSION
from rmd_dist.errors import ConfigError
from rmd_dist.files import to_json, write_csv, write_json


def finish(
    table: Any, listing: Listing, name: str, root: Path, work: Path, options: StoreOptions, source: str
) -> None:
    """Make of the written images and their rows a prepared data set; betons get their names last."""
    rows: dict[str, Any] = {
        column: _numbers(table, column) for column in table.column_names if _is_number(table, column)
    }
    rows["sha256"] = table["sha256"].to_pylist()
    groups = groups_of(rows["sha256"])
    _move_to_test(rows, groups, work, len(listing))
    manifests = _write_betons(rows, listing, name, work, options, source)
    folder = root / name
    folder.mkdir(exist_ok=True)
    table = table.set_column(table.column_names.index("split"), "split", [rows["split"].astype(np.int8)])
    for column in ("shard", "pointer"):
        kind = table.schema.field(column).type
        table = table.set_column(table.column_names.index(column), column, [_arrow(rows[column], kind)])
    write_index(folder / "index.parquet", table)
    _write_lists(folder, table, rows, groups, listing)
    for (split, shard), manifest in sorted(manifests.items(), reverse=True):  # the first shard last
        target = shard_path(root, name, split, shard)
        write_json(target.with_suffix(".json"), manifest)
        ShardWriter(work, split, len(listing)).path(shard).replace(target)
    for split in SPLITS.values():  # what a preparation before had more
        for stale in root.glob(f"{name}_{split}.*.beton"):
            if stale not in {shard_path(root, name, *key) for key in manifests}:
                stale.unlink()
                stale.with_suffix(".json").unlink(missing_ok=True)


def _arrow(values: npt.NDArray[Any], kind: Any) -> Any:
    import pyarrow as pa

    return pa.array(values, kind)


def _is_number(table: Any, column: str) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(table.schema.field(column).type))


def _numbers(table: Any, column: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = table[column].to_numpy().astype(np.int64)
    return numbers


def _move_to_test(rows: dict[str, Any], groups: npt.NDArray[np.int64], work: Path, room: int) -> None:
    """Where the hash has held out nothing of a small folder, hold out the image with the lowest hash."""
    used = np.flatnonzero(rows["split"] == TRAIN)
    if len(used) < 2 or not len(set(groups[used].tolist())) > 1:
        raise ConfigError(
            f"{len(used)} different images can be used for training; at least 2 are needed, and one to test: "
            "look at what the folder or table holds"
        )
    if (rows["split"] == TEST).any():
        return
    lowest = min(used, key=lambda k: rows["sha256"][k])
    train, test = ShardWriter(work, "train", room), ShardWriter(work, "test", room)
    for k in used[groups[used] == groups[lowest]]:
        with train.path(int(rows["shard"][k])).open("rb") as file:
            file.seek(int(rows["pointer"][k]))
            content = file.read(int(rows["bytes"][k]))
        rows["split"][k] = TEST
        rows["shard"][k], rows["pointer"][k] = test.append(content)
    test.close()


def _write_betons(
    rows: dict[str, Any], listing: Listing, name: str, work: Path, options: StoreOptions, source: str
) -> dict[tuple[str, int], dict[str, Any]]:
    """(split, shard) -> manifest of each beton, which is whole now but not in its place."""
    manifests, fingerprint = {}, listing.fingerprint()
    mean, std = _statistics(rows)
    for code, split in SPLITS.items():
        chosen = np.flatnonzero(rows["split"] == code)
        images = np.zeros(len(chosen), IMAGE)
        images["mode"], images["data_ptr"] = rows["mode"][chosen], rows["pointer"][chosen]
        images["width"], images["height"] = rows["stored_width"][chosen], rows["stored_height"][chosen]
        labels, sizes = rows["label"][chosen], rows["bytes"][chosen]
        digest = hashlib.sha256(to_json([options.to_json(), DECODER, list(listing.classes)]).encode())
        digest.update(b"".join(rows["sha256"][k] for k in chosen) + labels.astype("<i8").tobytes())
        shards = rows["shard"][chosen]
        writer = ShardWriter(work, split, len(listing))
        for shard in range(int(shards.max()) + 1):
            own = shards == shard
            size, sha256 = writer.finish(shard, images[own], sizes[own], labels[own])
            manifests[split, shard] = {
                "format": MANIFEST_VERSION,
                "dataset": name,
                "split": split,
                "classes": list(listing.classes),
                "count": int(own.sum()),
                "image_size": 0,
                "source": source,
                "source_sha256": fingerprint,
                "samples_sha256": digest.hexdigest(),
                "beton_bytes": size,
                "beton_sha256": sha256,
                "shards": int(shards.max()) + 1,
                "total": len(chosen),
                "mean": mean,
                "std": std,
                "decoder": DECODER,
                "options": options.to_json(),
                "versions": {"rmd_dist": __version__, "beton": BETON_VERSION, "numpy": np.__version__},
            }
    return manifests


def _statistics(rows: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(mean, std) of each colour over all stored training pixels, in units of 255."""
    train = rows["split"] == TRAIN
    pixels = float((rows["stored_width"] * rows["stored_height"])[train].sum())
    sums = [int(rows[name][train].sum()) for name in ("red", "green", "blue")]
    squares = [int(rows[f"{name}2"][train].sum()) for name in ("red", "green", "blue")]
    mean = [s / pixels for s in sums]
    std = [max(q / pixels - m * m, 1.0) ** 0.5 for q, m in zip(squares, mean, strict=True)]
    return [round(m / 255, 4) for m in mean], [round(s / 255, 4) for s in std]


def _write_lists(
    folder: Path, table: Any, rows: dict[str, Any], groups: npt.NDArray[np.int64], listing: Listing
) -> None:
    splits, labels = rows["split"], rows["label"]
    names = {**dict(enumerate(listing.classes)), -1: ""}
    paths, reasons = table["path"], table["reason"].to_pylist()
    skipped = [k for k, reason in enumerate(reasons) if reason]
    write_csv(
        folder / "skipped.csv",
        ["path", "reason"],
        ([os.fsdecode(paths[k].as_py()), reasons[k]] for k in skipped),
    )
    used = np.flatnonzero(np.isin(splits, list(SPLITS)))
    found, first, counts = np.unique(groups[used], return_index=True, return_counts=True)
    repeated = found[counts > 1]
    twins = used[np.isin(groups[used], repeated)]
    twins = twins[np.argsort(groups[twins], kind="stable")]
    conflicting, leaking = set[int](), set[int]()
    for k in twins:
        one = used[first[np.searchsorted(found, groups[k])]]
        if labels[k] != labels[one]:
            conflicting.add(int(groups[k]))
        if splits[k] != splits[one]:
            leaking.add(int(groups[k]))
    write_csv(
        folder / "duplicates.csv",
        ["group", "path", "label", "split", "conflict"],
        (
            [groups[k], os.fsdecode(paths[int(k)].as_py()), names[labels[k]], SPLITS[splits[k]],
             "labels differ" if int(groups[k]) in conflicting else ""]
            for k in twins
        ),
    )  # fmt: skip
    by_class = {
        name: {split: int(((labels == k) & (splits == code)).sum()) for code, split in SPLITS.items()}
        for k, name in enumerate(listing.classes)
    }
    write_json(folder / "classes.json", {"classes": list(listing.classes), "images": by_class})
    few = [name for name, count in by_class.items() if count["train"] <= 1]
    notes = Counter(note for text in table["notes"].to_pylist() for note in text.split())
    write_json(
        folder / "report.json",
        {
            "files": len(table),
            "images": {split: int((splits == code).sum()) for code, split in SPLITS.items()},
            "seen": dict(listing.counts.most_common()),
            "kinds": dict(notes.most_common()),
            "skipped": dict(Counter(_kind(reasons[k]) for k in skipped).most_common()),
            "duplicates": {
                "groups": len(repeated),
                "images": len(twins),
                "groups of unlike labels": len(conflicting),
                "groups in both splits": len(leaking),
            },
            "classes with no or one training image": few,
        },
    )


def _kind(reason: str) -> str:
    """A reason without the size of the one image."""
    return re.sub(r"[0-9]+ x [0-9]+", "W x H", reason)
