"""A list of image files into betons, an index and a report; continued where it was interrupted.

ROOT/NAME_train.beton, NAME_test.beton (and .1, .2 ... where one is not enough), each with its .json
ROOT/NAME/index.parquet     a row for each file
ROOT/NAME/skipped.csv       the files that cannot be used, and why
ROOT/NAME/duplicates.csv    files of the same content
ROOT/NAME/classes.json      classes in their order, and images of each
ROOT/NAME/report.json       counts
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rmd_dist.data.images import finish
from rmd_dist.data.images.index import read_parts, write_part
from rmd_dist.data.images.listing import SPLITS, TEST, TRAIN, UNDECIDED, UNUSED, Listing, shown
from rmd_dist.data.images.pool import worked_on
from rmd_dist.data.images.store import ShardWriter
from rmd_dist.data.images.work import Done, StoreOptions
from rmd_dist.errors import ConfigError
from rmd_dist.files import read_json, write_json

Progress = Callable[[str, int, int], None]

HELD_OUT = 0.1
"""Share of the images that become the test split where none is given."""
BROKEN = 0.05
"""Share of files that cannot be used above which a preparation stops."""
SKIPPED = -1
PASSING = ("cannot be read: ", "its decoder ended", "not enough memory")
"""Beginnings of reasons that may be gone the next time."""
_PART_ROWS, _PART_SECONDS = 8192, 10.0


def build(
    listing: Listing,
    name: str,
    root: Path,
    options: StoreOptions,
    *,
    source: str,
    allow_broken: bool = False,
    processes: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write what `listing` names below `root`; callers that may run at the same time hold a lock.

    `processes`: that read and decode; 0: one for each core. An interrupted preparation of the same listing
    and options goes on where it was. Raises ConfigError if too many files cannot be used, or too few can.
    """
    try:
        _build(listing, name, root, options, source, allow_broken, processes, progress)
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be prepared in {root}: {error}; make room or give another folder, and give the "
            "same command again, which goes on"
        ) from error


def _build(
    listing: Listing,
    name: str,
    root: Path,
    options: StoreOptions,
    source: str,
    allow_broken: bool,
    processes: int,
    progress: Progress | None,
) -> None:
    work = root / f".{name}.partial"
    begun = {"listing": listing.fingerprint(), "options": options.to_json()}
    try:
        same = read_json(work / "begun.json", missing_ok=True) == begun and _goes_on(work)
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "begun.json", begun)
    _read_all(listing, name, work, options, allow_broken, processes, progress)
    _, table = read_parts(work)
    finish.finish(table, listing, name, root, work, options, source)
    shutil.rmtree(work)


def _goes_on(work: Path) -> bool:
    """Whether what was begun is whole, and nothing was skipped for a cause that may have passed."""
    _, table = read_parts(work)
    rows = zip(table["split"].to_pylist(), table["shard"].to_pylist(), strict=True)
    shards = {(split, shard) for split, shard in rows if split in SPLITS}
    passed = any(reason.startswith(PASSING) for reason in table["reason"].to_pylist())
    return not passed and all(ShardWriter(work, SPLITS[s], 0).path(k).exists() for s, k in shards)


def _read_all(
    listing: Listing,
    name: str,
    work: Path,
    options: StoreOptions,
    allow_broken: bool,
    processes: int,
    progress: Progress | None,
) -> None:
    """Every file into the index's parts, what can be used into betons."""
    parts, table = read_parts(work)
    done = len(table)
    writers = {code: ShardWriter(work, split, len(listing)) for code, split in SPLITS.items()}
    for code, writer in writers.items():
        _continue(writer, table, code)
    broken = Counter(reason for reason in table["reason"].to_pylist() if reason)
    if not allow_broken and _are_too_many(broken, listing):
        raise _too_many(broken, done, listing, work)
    rows: list[dict[str, Any]] = []
    saved = time.monotonic()

    def save() -> None:
        nonlocal parts, saved
        if rows:
            for writer in writers.values():
                writer.flush()
            write_part(work, parts, rows)
            parts, saved = parts + 1, time.monotonic()
            rows.clear()

    with contextlib.ExitStack() as ending:  # however the work ends, what has been done is saved
        for writer in writers.values():
            ending.callback(writer.close)
        ending.callback(save)
        for number, result in _results(listing, done, options, processes):
            rows.append(_row(listing, number, result, writers))
            if result.reason:
                broken[result.reason] += 1
                if not allow_broken and _are_too_many(broken, listing):
                    save()
                    raise _too_many(broken, number + 1, listing, work)
            if len(rows) >= _PART_ROWS or time.monotonic() - saved > _PART_SECONDS:
                save()
            if progress and (number % 64 == 63 or number + 1 == len(listing)):
                progress(f"reading {name}", number + 1, len(listing))


def _results(
    listing: Listing, first: int, options: StoreOptions, processes: int
) -> Iterator[tuple[int, Done]]:
    """(number, what became of it) of the files from `first` on; those of an unused split are not read."""
    numbers = range(first, len(listing))
    wanted = [listing.paths[k] for k in numbers if listing.splits[k] != UNUSED]
    results = worked_on(listing.root, wanted, options, processes)
    with contextlib.closing(results):  # type: ignore[type-var]
        for k in numbers:
            yield k, Done("") if listing.splits[k] == UNUSED else next(results)


def _row(listing: Listing, number: int, done: Done, writers: dict[int, ShardWriter]) -> dict[str, Any]:
    """The index's row of a file, whose image is now written."""
    split = listing.splits[number]
    if done.reason:
        split = SKIPPED
    elif split == UNDECIDED:
        split = TEST if held_out(done.sha256) else TRAIN
    shard, pointer = writers[split].append(done.content) if split in writers else (0, 0)
    sums = zip(("red", "green", "blue", "red2", "green2", "blue2"), done.sums, strict=True)
    return {
        "path": listing.paths[number],
        "size": listing.sizes[number],
        "mtime_ns": listing.times[number],
        "label": listing.labels[number],
        "sha256": done.sha256,
        "split": split,
        "reason": done.reason,
        "notes": " ".join(done.notes),
        **{key: getattr(done, key) for key in ("width", "height", "stored_width", "stored_height", "mode")},
        "shard": shard,
        "pointer": pointer,
        "bytes": len(done.content),
    } | dict(sums)


def held_out(sha256: bytes) -> bool:
    """Whether an image of this content belongs to the test split, where nobody says so: one in ten does."""
    return int.from_bytes(sha256[:8], "big") < HELD_OUT * 2**64


def _continue(writer: ShardWriter, table: Any, code: int) -> None:
    """Put a writer where the saved rows of its split end."""
    import pyarrow.compute as compute

    own = table.filter(compute.equal(table["split"], code))
    if len(own):
        writer.shard = compute.max(own["shard"]).as_py()
        last = own.filter(compute.equal(own["shard"], writer.shard))
        writer.count = len(last)
        writer.end = compute.max(compute.add(last["pointer"], last["bytes"])).as_py()


def _are_too_many(broken: Counter[str], listing: Listing) -> bool:
    return sum(broken.values()) > max(BROKEN * len(listing), 1)


def _too_many(broken: Counter[str], seen: int, listing: Listing, work: Path) -> ConfigError:
    _, table = read_parts(work)
    bad = next(row for row in table.to_pylist() if row["reason"])
    return ConfigError(
        f"{sum(broken.values())} of the first {seen} files cannot be used, such as "
        f"{shown(os.path.join(os.fsencode(listing.root), bad['path']))}, which {_predicate(bad['reason'])}; "  # noqa: PTH118
        f"at most {BROKEN:.0%} of {len(listing)} are left out without a word: look at them, or give "
        "--allow-broken, which goes on and lists them in skipped.csv"
    )


def _predicate(reason: str) -> str:
    return reason if reason.split()[0] in ("has", "is", "does", "cannot") else f"cannot be read: {reason}"
