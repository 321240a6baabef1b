"""Does K mean the same at any batch size? The relation loss of real features, by size of the batch.

    python benchmarks/k_transfer.py STUDENT TEACHER [--data_root data] [--batches 64 256 1024 4096]

STUDENT and TEACHER are run folders or exported files of one width. Their features of training images,
augmented as in training, are cut at random into batches, and RelationLoss is taken of each: the mean over
draws and its standard error with `reference_batch=64`, and the mean of the raw norms. Draws are cut from the
same images, so that error is of the cutting, not of the images.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import torch
from torch import Tensor

from rmd_dist.config import CropFlipConfig
from rmd_dist.data.loader import build_loader
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.splits import probe
from rmd_dist.files import to_json
from rmd_dist.losses import RelationLoss
from rmd_dist.models.export import load
from rmd_dist.parallel.processes import workers_per_rank

REFERENCE = 64


def features_of(student: Path, teacher: Path, data_root: Path, count: int) -> tuple[Tensor, Tensor]:
    """(count, D) of both models, of the same augmented training images."""
    loaded = [load(path, "resnet18_cifar_w16") for path in (student, teacher)]
    name = loaded[1].dataset
    assert name is not None, f"{teacher} does not say what it was trained on"
    modules = [model.module.eval() for model in loaded]
    for module in modules:
        module.reset_classifier(0)  # type: ignore[operator]
    data = open_dataset(name, "train", root=data_root, source=None, loader="ffcv")
    to_input = Preprocess.for_dataset(data.info)
    indices = probe(torch.arange(len(data)).numpy(), count)
    found: list[list[Tensor]] = [[], []]
    with build_loader(
        data, augment=CropFlipConfig(), batch_size=256, seed=0, indices=indices,
        workers=workers_per_rank(0),
    ) as loader, contextlib.closing(loader.epoch(0)) as batches, torch.inference_mode():  # fmt: skip
        for batch in batches:
            for rows, module in zip(found, modules, strict=True):
                rows.append(module(to_input(batch.views[0])))
    student_rows, teacher_rows = (torch.cat(rows) for rows in found)
    return student_rows, teacher_rows


def mean_loss(
    loss: RelationLoss, student: Tensor, teacher: Tensor, batch: int, draws: int
) -> tuple[float, float]:
    """Mean over random batches, and its standard error."""
    g = torch.Generator().manual_seed(batch)
    values: list[float] = []
    while len(values) < draws:
        order = torch.randperm(len(student), generator=g)
        for rows in order[: len(order) // batch * batch].split(batch)[: draws - len(values)]:
            values.append(loss(student[rows], teacher[rows]).loss.item())
    drawn = torch.tensor(values, dtype=torch.float64)
    return drawn.mean().item(), (drawn.std() / len(drawn) ** 0.5).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    parser.add_argument("--batches", type=int, nargs="+", default=[REFERENCE, 256, 1024, 4096])
    parser.add_argument("--images", type=int, default=16384)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    args = parser.parse_args()
    student, teacher = features_of(args.student, args.teacher, args.data_root, args.images)
    results = []
    print(f"{len(student)} images, {student.shape[1]} features")
    heading = f"reference_batch {REFERENCE}"
    print(f"{'B':>6}{'draws':>7}{heading:>22}{'/ first':>9}{'raw norm':>12}{'/ first':>9}")
    for batch in args.batches:
        draws = max(8, 65536 // batch)
        row: dict[str, float] = {"batch": batch, "draws": draws}
        for name, reference in (("referred", REFERENCE), ("raw", None)):
            loss = RelationLoss(reference_batch=reference)
            row[name], row[f"{name}_error"] = mean_loss(loss, student, teacher, batch, draws)
        results.append(row)
        ratios = {name: row[name] / results[0][name] for name in ("referred", "raw")}
        line = f"{batch:6}{draws:7}{row['referred']:12.4f} ± {row['referred_error']:7.4f}"
        line += f"{ratios['referred']:9.4f}{row['raw']:12.3f}{ratios['raw']:9.2f}"
        print(line, flush=True)
    if args.out:
        args.out.write_text(to_json(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
