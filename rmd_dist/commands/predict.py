"""Classes of images by a trained student: the likeliest and how sure it is, a line for each image.

rmd predict runs/distill/NAME photo.jpg FOLDER ... [--out predictions.csv]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rmd_dist.commands import path
from rmd_dist.config.datasets import TABLES
from rmd_dist.data.images.listing import list_files, shown
from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import atomic_path, check_output


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=path, help="run folder of a student, or its model.safetensors")
    parser.add_argument("images", type=path, nargs="+", metavar="IMAGE", help="files, folders or tables")
    parser.add_argument("--out", type=path, help="write path, class, confidence to this CSV")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.out:
        check_output(args.out)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size = {args.batch_size}; give at least 1")
    files = [file for place in args.images for file in _files(place)]
    import torch

    from rmd_dist.evaluation.files import predict_files
    from rmd_dist.models.export import load
    from rmd_dist.parallel.compute import Compute
    from rmd_dist.parallel.processes import workers_per_rank

    model = load(args.model, "resnet18_cifar")
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    compute = Compute(torch.device(device), workers=workers_per_rank(0))
    with _lines(args.out) as line:
        failed = 0
        for file, found in predict_files(model, files, compute, args.batch_size):
            if found.reason:
                failed += 1
                print(f"{shown(os.fsencode(file))}: {found.reason}", file=sys.stderr)
            else:
                line([os.fsdecode(file), found.label, f"{found.confidence:.4f}"])
    if failed == len(files):
        raise ConfigError(f"none of {failed} files could be read as an image")
    return 0


def _files(place: Path) -> list[Path]:
    """The images that `place` is, holds or names."""
    if not place.exists():
        raise ConfigError(f"{place} does not exist; give image files, folders of images, or tables of paths")
    if place.is_file() and place.suffix.lower() not in TABLES:
        return [place]
    found = list_files(place)
    if not found:
        raise ConfigError(f"{place} holds no image; give image files, folders of images, or tables of paths")
    return found


@contextlib.contextmanager
def _lines(out: Path | None) -> Iterator[Any]:
    """What writes a line: to the CSV `out`, else to the screen."""
    header = ["path", "class", "confidence"]
    if out is None:
        print("\t".join(header))
        yield lambda values: print("\t".join(map(shown, values)))
        return
    with (
        writing(out),
        atomic_path(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer.writerow
    print(f"{out}: written")
