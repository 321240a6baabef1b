"""Images/s of the loader alone by its threads, CIFAR-10's size, from memory: what a GPU would be fed with.

    python benchmarks/threads.py [--threads 1 4 16] [--device cuda] [--out FILE.json]

On CUDA batches go to the device, from pinned memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from on_device import seconds, title

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.dataset import Dataset, dataset_info
from rmd_dist.data.loader import build_loader
from rmd_dist.files import to_json

WORK = {"two-views": ViewConfig(), "crop-flip": CropFlipConfig()}
INFO = dataset_info("cifar10")


def rates(work: str, threads: int, args: argparse.Namespace) -> list[float]:
    """Images/s of each pass but the first."""
    device = torch.device(args.device)
    shape = (args.samples, INFO.image_size, INFO.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = Dataset(INFO, "train", np.zeros(len(pixels), np.int64), images=pixels)
    found = []
    with build_loader(
        data, augment=WORK[work], batch_size=args.batch_size, seed=0, workers=threads,
        pinned=device.type == "cuda",
    ) as loader:  # fmt: skip
        for epoch in range(1 + args.passes):
            start, count = time.perf_counter(), 0
            for batch in loader.epoch(epoch):
                count += len(batch.to(device).index)
            seconds(device, lambda: None)  # what is under way has arrived
            found.append(count / (time.perf_counter() - start))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"device": title(torch.device(args.device)), "rows": []}
    print(f"{'work':12}{'threads':>8}{'images/s':>12}")
    for work in WORK:
        for threads in args.threads:
            rate = statistics.median(rates(work, threads, args))
            results["rows"].append({"work": work, "threads": threads, "images_per_second": rate})
            print(f"{work:12}{threads:8}{rate:12,.0f}", flush=True)
            if args.out:
                args.out.write_text(to_json(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
