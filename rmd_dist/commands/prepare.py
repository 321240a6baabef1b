"""Write the betons of a data set, or show what a noise protocol does to its labels.

rmd prepare --dataset cifar10 --source cifar-10-python.tar.gz --out data
rmd prepare noise --dataset cifar10 --protocol symmetric --rate 0.4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rmd_dist.commands import path
from rmd_dist.data.labels import make_labels, transition_rows
from rmd_dist.data.noise import PROTOCOLS
from rmd_dist.data.prepare import SPLITS, open_dataset, prepare
from rmd_dist.data.sources import SOURCES
from rmd_dist.data.sources.beton import beton_path, read_manifest
from rmd_dist.errors import writing
from rmd_dist.files import check_output, to_json, write_json
from rmd_dist.runs.console import preparation_progress, print_table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("betons", "noise"), default="betons")
    parser.add_argument("--dataset", required=True, help=", ".join(SOURCES))
    parser.add_argument("--source", type=path, help="official python archive (tar.gz) or its unpacked folder")
    parser.add_argument("--out", type=path, default=Path("data"), help="betons, archives, human label files")
    noise = parser.add_argument_group("noise")
    noise.add_argument("--protocol", default="symmetric", help=", ".join(PROTOCOLS))
    noise.add_argument("--rate", type=float, default=0.4)
    noise.add_argument("--seed", type=int, default=0)
    noise.add_argument("--manifest", type=path, help="also write the whole manifest to this JSON file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "noise":
        show_noise(args)
        return
    with preparation_progress(enabled=True) as progress:
        prepare(args.dataset, args.out, args.source, progress=progress)
    for split in SPLITS:
        manifest = read_manifest(beton := beton_path(args.out, args.dataset, split))
        print(f"{beton}: {manifest['count']} images from {manifest['source']}, intact")


def show_noise(args: argparse.Namespace) -> None:
    if args.manifest:
        check_output(args.manifest)
    data = open_dataset(args.dataset, "train", root=args.out, source=args.source, loader="memory")
    manifest = make_labels(data, args.protocol, args.rate, args.seed, args.out).manifest
    print(to_json({key: value for key, value in manifest.items() if key != "transitions"}, indent=1))
    print_table("labels", *transition_rows(manifest, data.info.classes))
    if args.manifest:
        with writing(args.manifest):
            write_json(args.manifest, manifest)
