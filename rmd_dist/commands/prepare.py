"""Write the betons of a data set, or show what a noise protocol does to its labels.

rmd prepare --dataset cifar10 --source cifar-10-python.tar.gz --out data
rmd prepare --dataset PHOTOS                        (a folder of images, or a table of path and label)
rmd prepare noise --dataset cifar10 --protocol symmetric --rate 0.4 [--out-labels labels.csv]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmd_dist.commands import path
from rmd_dist.data.dataset import find_source
from rmd_dist.data.images.listing import shown
from rmd_dist.data.images.source import ImageFiles
from rmd_dist.data.images.work import StoreOptions
from rmd_dist.data.label_files import write_labels
from rmd_dist.data.labels import make_labels, transition_rows
from rmd_dist.data.noise import PROTOCOLS
from rmd_dist.data.prepare import SPLITS, open_dataset, prepare, refuse_source
from rmd_dist.data.sources import SOURCES
from rmd_dist.data.sources.beton import beton_path, read_manifest
from rmd_dist.errors import ConfigError, a_few, writing
from rmd_dist.files import check_output, expanded, read_json, to_json, write_json
from rmd_dist.runs.console import preparation_progress, print_table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("betons", "noise"), default="betons")
    parser.add_argument(
        "--dataset", required=True, type=_dataset, help=f"{', '.join(SOURCES)}, a folder, or a table"
    )
    parser.add_argument("--source", type=path, help="official python archive (tar.gz) or its unpacked folder")
    parser.add_argument("--out", type=path, default=Path("data"), help="betons, archives, human label files")
    own = parser.add_argument_group("own images")
    default = StoreOptions()
    own.add_argument(
        "--class-level", type=int, default=1, help="folder that names the class, from the root: 1, 2, ..."
    )
    own.add_argument(
        "--store-size",
        type=int,
        default=default.store_size,
        help="shorter side of stored images at most (256)",
    )
    own.add_argument(
        "--raw-bytes", type=int, default=default.raw_bytes,
        help="images up to so many bytes are stored as pixels, larger ones as JPEG (65536)",
    )  # fmt: skip
    own.add_argument(
        "--background",
        type=_colour,
        default=default.background,
        help="under transparent images: ffffff is white",
    )
    own.add_argument(
        "--allow-broken", action="store_true", help="go on where over 5 %% of files cannot be used"
    )
    own.add_argument("--update", action="store_true", help="prepare anew what was prepared from other files")
    own.add_argument("--processes", type=int, default=0, help="that read and decode; 0: one for each core")
    noise = parser.add_argument_group("noise")
    noise.add_argument("--protocol", default="symmetric", help=", ".join(PROTOCOLS))
    noise.add_argument("--rate", type=float, default=0.4)
    noise.add_argument("--seed", type=int, default=0)
    noise.add_argument("--manifest", type=path, help="also write the whole manifest to this JSON file")
    noise.add_argument("--out-labels", type=path, help="also write the labels: .csv, or .npy")
    return parser.parse_args(argv)


def _dataset(text: str) -> str:
    return text if text in SOURCES else expanded(text)


def _colour(text: str) -> tuple[int, int, int]:
    value = text.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no colour; give six hex digits such as ffffff"
        ) from None
    return red, green, blue


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "noise":
        show_noise(args)
        return
    source = find_source(args.dataset, args.out)
    if isinstance(source, ImageFiles):
        prepare_images(args, source)
        return
    with preparation_progress(enabled=True) as progress:
        prepare(args.dataset, args.out, args.source, progress=progress)
    for split in SPLITS:
        manifest = read_manifest(beton := beton_path(args.out, args.dataset, split))
        print(f"{beton}: {manifest['count']} images from {manifest['source']}, intact")


def prepare_images(args: argparse.Namespace, images: ImageFiles) -> None:
    refuse_source(args.source, args.dataset)
    if args.class_level < 1 or args.processes < 0:
        raise ConfigError("--class-level counts from 1, --processes from 0")
    options = StoreOptions(store_size=args.store_size, raw_bytes=args.raw_bytes, background=args.background)
    with preparation_progress(enabled=True) as progress:
        images.prepare(
            args.out, options, class_level=args.class_level, allow_broken=args.allow_broken,
            update=args.update, look=True, processes=args.processes, progress=progress,
        )  # fmt: skip
        images.verify(args.out)
    _report(args.out / images.name, images, args.out)


def _report(folder: Path, images: ImageFiles, root: Path) -> None:
    """Print what a preparation has found."""
    try:
        report = read_json(folder / "report.json")
        info = images.info(root)
        rows: list[list[Any]] = [
            ["images to train on", info.train_count],
            ["images to test", info.test_count],
        ]
        rows += [["classes", info.num_classes or "no labels: for pretraining alone"]]
        for title in ("kinds", "seen", "skipped"):
            rows += [[f"{title}: {what}", count] for what, count in report[title].items()]
        rows += [[f"duplicates: {what}", count] for what, count in report["duplicates"].items() if count]
        few = report["classes with no or one training image"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'report.json'} is damaged ({error}); prepare anew by --update"
        ) from error
    print_table(f"{images.name} in {root}", ["", ""], rows)
    if thin := report["kinds"].get("thin"):
        print(f"warning: {thin} images have a side of one pixel or one ten times as long as the other")
    if few:
        names = a_few([*map(shown, few)])
        print(f"warning: {len(few)} classes have no or one training image: {names}")
    if conflicts := report["duplicates"].get("groups of unlike labels"):
        print(f"warning: {conflicts} images have several labels: {folder / 'duplicates.csv'}")
    if leaks := report["duplicates"].get("groups in both splits"):
        print(f"warning: {leaks} images are in both splits: {folder / 'duplicates.csv'}")
    if report["skipped"]:
        print(f"skipped files and why: {folder / 'skipped.csv'}")
    print(f"now: rmd pretrain --dataset {images.name} --data-root {root}")


def show_noise(args: argparse.Namespace) -> None:
    for file in filter(None, (args.manifest, args.out_labels)):
        check_output(file)
    if args.out_labels and args.out_labels.suffix.lower() not in (".csv", ".npy"):
        raise ConfigError(f"--out-labels {args.out_labels} must end in .csv or .npy")
    data = open_dataset(args.dataset, "train", root=args.out, source=args.source, loader="memory")
    labels = make_labels(data, args.protocol, args.rate, args.seed, args.out)
    manifest = labels.manifest
    print(to_json({key: value for key, value in manifest.items() if key != "transitions"}, indent=1))
    print_table("labels", *transition_rows(manifest, data.info.classes))
    if args.manifest:
        with writing(args.manifest):
            write_json(args.manifest, manifest)
    if args.out_labels:
        write_labels(args.out_labels, labels.given, data)
        print(f"{args.out_labels}: train on them by --labels {args.out_labels}")
