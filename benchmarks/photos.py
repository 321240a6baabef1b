"""Images/s and memory of crops of 224 from photographs, beside a torchvision ImageFolder doing the same work.

    python benchmarks/photos.py --out photos.json

RandomResizedCrop(224) and a flip, shuffled uint8 batches. Our side reads images of 341 x 256 pixels from one
mapped file, as JPEG of quality 95 and as raw pixels, on threads; torchvision's reads a folder of JPEG files
in worker processes: the very same files, and the originals from which they were made, 640 x 480 and
2000 x 1500, since that is what people have in their folders. The photographs are made up: noise in
octaves and some edges, so that files are about as large as those of photographs.

Each side runs in a process of its own; one pass to warm up, then the median of `--passes` timed passes,
the sides taking turns. Peak memory is that of a process and its workers which no file stands behind; what
they share is counted once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sides import Pass, Side, serve

from rmd_dist.config import CropFlipConfig
from rmd_dist.data.render.jpeg import DECODER, decode_jpeg, encode_jpeg
from rmd_dist.files import to_json

OURS = ("jpeg", "raw")
THEIRS = {"341 x 256": (341, 256), "640 x 480": (640, 480), "2000 x 1500": (2000, 1500)}
STORED = (341, 256)
SIZE = 224
MIN_SECONDS = 1.0  # of a timed pass; shorter ones are repeated within it


def photo(number: int) -> Image.Image:
    """2000 x 1500: octaves of noise, the finer the weaker, and a few areas of other brightness."""
    random, (width, height) = np.random.default_rng(number), (2000, 1500)
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 11):
        cells = random.normal(size=(3, 3 * 2**octave // 4, 2**octave)).astype(np.float32)
        planes = [
            Image.fromarray(cell).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
            for cell in cells
        ]
        total += 0.77**octave * np.stack(planes, axis=-1)
    y, x = np.mgrid[0:1:1500j, 0:1:2000j]
    for slope, offset, shade in random.uniform(-1, 1, (8, 3)):
        total += 0.25 * shade * (y > slope * x + offset)[..., None]
    return Image.fromarray(np.clip(128 + 60 * total, 0, 255).astype(np.uint8))


def write_photos(folder: Path, count: int, distinct: int) -> None:
    """Our mapped files and torchvision's folders, of `count` images, of which `distinct` differ."""
    for name in THEIRS:
        (folder / name / "class").mkdir(parents=True)
    contents, raws = [], []
    for number in range(distinct):
        original = photo(number)
        for name, shape in THEIRS.items():
            resized = np.asarray(original.resize(shape, Image.Resampling.BICUBIC))
            content = encode_jpeg(resized)
            for copy in range(number, count, distinct):
                (folder / name / "class" / f"{copy:05}.jpg").write_bytes(content)
            if shape == STORED:
                contents.append(content)
                raws.append(resized.tobytes())
    for kind, parts in zip(OURS, (contents, raws), strict=True):
        sizes = [len(parts[k % distinct]) for k in range(count)]
        np.save(folder / f"{kind}.npy", np.cumsum([0, *sizes]))
        with (folder / kind).open("wb") as file:
            file.writelines(parts[k % distinct] for k in range(count))


def our_pass(kind: str, folder: Path, batch_size: int, workers: int) -> Pass:
    from rmd_dist.data.render.rng import permutation
    from rmd_dist.data.render.varied import VariedAugmenter

    data, cuts = np.memmap(folder / kind, np.uint8, "r"), np.load(folder / f"{kind}.npy")
    augmenter = VariedAugmenter(CropFlipConfig(), sizes=(SIZE,), seed=0, workers=workers)

    def load(sample: int) -> Any:
        content = np.asarray(data[cuts[sample] : cuts[sample + 1]])
        return decode_jpeg(content) if kind == "jpeg" else content.reshape(*STORED[::-1], 3)

    def one_pass(epoch: int) -> int:
        order = permutation(len(cuts) - 1, 0, epoch)
        batches = [order[k : k + batch_size] for k in range(0, len(order) - batch_size + 1, batch_size)]
        return sum(len(augmenter.render(load, batch, epoch)[0]) for batch in batches)

    return one_pass


def torchvision_pass(name: str, folder: Path, batch_size: int, workers: int) -> Pass:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(SIZE, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    loader: DataLoader[Any] = DataLoader(
        ImageFolder(folder / name, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    return lambda _: sum(len(labels) for _, labels in loader)


def side_of(name: str, folder: Path, args: argparse.Namespace) -> Side:
    options = {"serve": name, "folder": folder, "batch_size": args.batch_size, "workers": args.workers}
    return Side(__file__, options, own_bytes, 0.25)


def figures(side: Side) -> dict[str, Any]:
    return side.close() | {"peak_bytes": side.peaks[0]}


def own_bytes(pid: int) -> tuple[int]:
    """A process's share of anonymous and shared memory; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return (0,)
    kept = (line for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return (1024 * sum(int(line.split()[1]) for line in kept),)


def print_table(results: dict[str, dict[str, Any]]) -> None:
    for name, row in results.items():
        who = "rmd_dist, 341 x 256" if name in OURS else "torchvision, folder of"
        print(f"{who:23} {name:12} {row['rate']:>8,.0f} images/s {row['peak_bytes'] / 1e6:>7,.0f} MB")
    print()
    for ours in OURS:
        ratios = [f"{results[ours]['rate'] / results[name]['rate']:.1f}x {name}" for name in THEIRS]
        print(f"rmd_dist {ours:5} is " + ", ".join(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=512, help="images of one pass")
    parser.add_argument("--distinct", type=int, default=32, help="images that differ; the others are copies")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="our threads, and torchvision's processes")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        make = our_pass if args.serve in OURS else torchvision_pass
        serve(make(args.serve, args.folder, args.batch_size, args.workers), MIN_SECONDS)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder, args.samples, args.distinct)
        mean_kb = {kind: (folder / kind).stat().st_size / args.samples / 1e3 for kind in OURS}
        sides = {side: side_of(side, folder, args) for side in (*OURS, *THEIRS)}
        for _ in range(1 + args.passes):
            for side in sides.values():
                side.one_pass()
        results = {side: figures(process) for side, process in sides.items()}
    about = (
        f"{args.samples} images ({args.distinct} distinct, {mean_kb['jpeg']:.0f} kB as JPEG), batch "
        f"{args.batch_size}, {args.workers} workers, {args.passes} passes, torch {torch.__version__}, "
        f"{DECODER}, {len(os.sched_getaffinity(0))} cores"
    )
    print(f"{about}\n")
    print_table(results)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(to_json({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
