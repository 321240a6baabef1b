"""What relations cost: seconds and peak memory of `estimate` and `estimate_quickly` on synthetic rows.

    python benchmarks/relations.py [--rows 50000] [--width 384] [--classes 10] [--half] [--out FILE.json]

Rows are Gaussian classes, 20 % of their labels wrong. Memory is what the process holds at its greatest beyond
the features themselves, on a GPU what torch has allocated there.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

import torch
from torch import Tensor

from rmd_dist.files import to_json
from rmd_dist.relations import Samples, estimate, estimate_quickly, fold_of

BLOCK = 10_000


def synthetic(rows: int, width: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features (n, D) and labels (n,), a block at a time: no fp32 copy of half-precision rows."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(classes, width, generator=draw) * 5 / width**0.5
    true = torch.randint(classes, (rows,), generator=draw)
    features = torch.empty(rows, width, dtype=dtype)
    for start in range(0, rows, BLOCK):
        block = true[start : start + BLOCK]
        features[start : start + BLOCK] = means[block] + torch.randn(len(block), width, generator=draw)
    wrong = torch.rand(rows, generator=draw) < 0.2
    return features, torch.where(wrong, torch.randint(classes, (rows,), generator=draw), true)


def peak(device: str) -> float:
    """Bytes held at the greatest, so far."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--half", action="store_true", help="features in half precision")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("fold_of", "estimate_quickly", "estimate"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dtype = torch.float16 if args.half else torch.float32
    features, labels = (x.to(args.device) for x in synthetic(args.rows, args.width, args.classes, dtype))
    fold = fold_of(features, args.folds)
    samples = Samples(features, labels, fold, args.classes, args.folds)
    before, figures = peak(args.device), {"rows": args.rows, "width": args.width, "classes": args.classes}
    print(
        f"{args.rows} x {args.width} {dtype}, {args.classes} classes, features {features.nbytes / 1e9:.2f} GB"
    )
    print(f"{'':18}{'seconds':>9}{'CPU s':>9}{'GB beyond features':>20}{'load':>7}", flush=True)
    steps = {
        "fold_of": lambda: fold_of(features, args.folds),
        "estimate_quickly": lambda: estimate_quickly(samples).logits.cpu(),
        "estimate": lambda: estimate(samples).logits.cpu(),
    }
    for name, step in steps.items():
        if args.only not in (None, name):
            continue
        start, cpu = time.perf_counter(), time.process_time()
        step()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        beyond, load = (peak(args.device) - before) / 1e9, os.getloadavg()[0]
        print(f"{name:18}{seconds:9.1f}{cpu:9.1f}{beyond:20.2f}{load:7.1f}", flush=True)
        figures |= {f"{name}_seconds": seconds, f"{name}_cpu_seconds": cpu, f"{name}_beyond_GB": beyond}
    if args.out:
        args.out.write_text(to_json(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
