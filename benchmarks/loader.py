"""Images/s and memory of the loader, beside a torchvision DataLoader doing the same work.

    python benchmarks/loader.py                                   # synthetic 32 x 32 images
    python benchmarks/loader.py --data data --dataset cifar10     # the first images of prepared data

Each side of each row runs in a process of its own: one pass to warm up, then the median of `--passes`
timed passes over all images, the two sides taking turns. torchvision's side is what people write: a data
set of PIL images, v2 transforms, a DataLoader with persistent workers. Both sides deliver shuffled uint8
batches; normalising is left to the training device. `write` stores all images in a new file. Peak memory
is the resident set of the process and its workers, mapped files and imported libraries included; `own`
is the part of it that no file stands behind.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides import Side, serve
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.dataset import Dataset, Samples, dataset_info
from rmd_dist.data.loader import build_loader
from rmd_dist.data.sources.beton import beton_path, write_beton
from rmd_dist.files import to_json

WORK = ("write", "plain", "crop-flip", "two-views")
SIDES = ("rmd_dist", "torchvision")
INFO = dataset_info("cifar10")  # only its image size matters here
MIN_SECONDS = 0.5  # of a timed pass; shorter ones are repeated within it


class PilImages(TorchDataset[Any]):
    """As torchvision's CIFAR10: an array, of which each item becomes a PIL image and is transformed."""

    def __init__(self, images: np.ndarray[Any, Any], transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), index


class TwoViews:
    """Two draws of one transform, for SimSiam."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> tuple[Any, Any]:
        return self.transform(image), self.transform(image)


def torchvision_transform(work: str) -> Callable[[Any], Any]:
    from torchvision.transforms import v2  # here, so that our side's memory is not charged with it

    if work == "crop-flip":
        return v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    if work == "two-views":
        view = [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.PILToTensor(),
        ]
        return TwoViews(v2.Compose(view))
    return v2.PILToTensor()


def torchvision_pass(work: str, folder: Path, batch_size: int, workers: int) -> Callable[[int], int]:
    images = np.load(folder / "images.npy")
    loader = DataLoader(
        PilImages(images, torchvision_transform(work)),
        batch_size,
        shuffle=work != "write",
        drop_last=work != "write",
        num_workers=workers,
        persistent_workers=True,
    )

    def write(_: int) -> int:
        count, path = 0, folder / "images.raw"
        with path.open("wb") as file:
            for batch, index in loader:
                file.write(batch.permute(0, 2, 3, 1).contiguous().numpy().data)
                count += len(index)
            file.flush()
            os.fsync(file.fileno())
        return count

    return write if work == "write" else lambda _: sum(len(index) for _, index in loader)


def our_pass(work: str, folder: Path, batch_size: int, workers: int) -> Callable[[int], int]:
    if work == "write":
        images = np.load(folder / "images.npy")
        samples = Samples(images, np.zeros(len(images), np.int64))

        def write(_: int) -> int:
            with tempfile.TemporaryDirectory(dir=folder) as target:
                write_beton(samples, INFO, "train", Path(target))
            return len(images)

        return write
    count = json.loads((folder / "count.json").read_text())
    beton = beton_path(folder, INFO.name, "train")
    augment = {"plain": None, "crop-flip": CropFlipConfig(), "two-views": ViewConfig()}[work]
    loader = build_loader(
        Dataset(INFO, "train", np.zeros(count, np.int64), beton),
        augment=augment,
        batch_size=batch_size,
        seed=0,
        workers=workers,
    )
    return lambda epoch: sum(len(batch.index) for batch in loader.epoch(epoch))


def side_of(work: str, side: str, folder: Path, args: argparse.Namespace) -> Side:
    options = {"serve": True, "work": work, "side": side, "folder": folder}
    options |= {"batch_size": args.batch_size, "workers": args.workers}
    return Side(__file__, options, resident_bytes, 0.05)


def figures(side: Side) -> dict[str, Any]:
    return side.close() | {"peak_bytes": side.peaks[0], "own_bytes": side.peaks[1]}


def resident_bytes(pid: int) -> tuple[int, int]:
    """(all, own) resident bytes of a process; (0, 0) when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    return 1024 * int(fields.get("VmRSS", 0)), 1024 * int(fields.get("RssAnon", 0))


def compare(work: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides' figures and their ratio; passes take turns, so that a busy machine is busy for both."""
    sides = [side_of(work, side, folder, args) for side in SIDES]
    for _ in range(1 + args.passes):
        for side in sides:
            side.one_pass()
    ours, theirs = map(figures, sides)
    return {SIDES[0]: ours, SIDES[1]: theirs, "ratio": ours["rate"] / theirs["rate"]}


def load_images(args: argparse.Namespace) -> np.ndarray[Any, Any]:
    """(N, 32, 32, 3) uint8."""
    if args.data is None:
        return np.random.default_rng(0).integers(0, 256, (args.samples, 32, 32, 3), dtype=np.uint8)
    from rmd_dist.data.prepare import open_dataset

    images = open_dataset(args.dataset, "train", root=args.data, loader="memory").images
    assert images is not None
    return images[: args.samples]


def print_table(results: dict[str, dict[str, Any]]) -> None:
    print(f"{'':10} {'images/s':>24} {'':>7} {'peak memory, MB (own)':>27}")
    print(f"{'':10} {SIDES[0]:>12}{SIDES[1]:>12} {'ratio':>7} {SIDES[0]:>13} {SIDES[1]:>13}")
    for work, row in results.items():
        ours, theirs = (row[side]["rate"] for side in SIDES)
        memory = [f"{row[s]['peak_bytes'] / 1e6:.0f} ({row[s]['own_bytes'] / 1e6:.0f})" for s in SIDES]
        print(
            f"{work:10} {ours:>12,.0f}{theirs:>12,.0f} {ours / theirs:>6.1f}x {memory[0]:>13} {memory[1]:>13}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of prepared betons; unset: synthetic images")
    parser.add_argument("--dataset", default="cifar10", choices=("cifar10", "cifar100"))
    parser.add_argument("--samples", type=int, default=10_000, help="images used")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="our threads, and torchvision's processes")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    for hidden in ("--side", "--work"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        make = our_pass if args.side == SIDES[0] else torchvision_pass
        serve(make(args.work, args.folder, args.batch_size, args.workers), MIN_SECONDS)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, images = Path(name), load_images(args)
        np.save(folder / "images.npy", images)
        (folder / "count.json").write_text(json.dumps(len(images)))
        write_beton(Samples(images, np.zeros(len(images), np.int64)), INFO, "train", folder)
        results = {work: compare(work, folder, args) for work in WORK}
    about = f"{len(images)} images, batch {args.batch_size}, {args.workers} workers, {args.passes} passes"
    print(f"{about}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores\n")
    print_table(results)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(to_json({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
