"""Figures of a finished model or a checkpoint, each sample counted once on any number of processes.

accelerate launch launch/evaluate.py runs/distill/NAME [--dataset cifar10] [--out figures.json]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rmd_dist.config import EvaluateConfig
from rmd_dist.config.cli import parse
from rmd_dist.runs.console import print_table

LARGEST_CONFUSION = 20  # classes; a larger matrix is only written to --out


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(EvaluateConfig, argv, positional="checkpoint")
    from functools import partial
    from pathlib import Path

    from rmd_dist.data.dataset import find_source

    if config.dataset:
        find_source(config.dataset, Path(config.root))  # an unknown name is told before torch is loaded
    from rmd_dist import parallel
    from rmd_dist.engine.start import prepare_data
    from rmd_dist.errors import writing
    from rmd_dist.evaluation.model import dataset_of, evaluate_model, open_model
    from rmd_dist.files import check_output, write_json
    from rmd_dist.parallel.accelerator import make_accelerator
    from rmd_dist.parallel.processes import from_main

    accelerator = make_accelerator("no", config.cpu)
    out = Path(config.out) if config.out else None
    if out:
        from_main(partial(check_output, out))
    model = open_model(config)
    prepare_data(dataset_of(config, model), config.root, config.source, config.loader)
    figures = evaluate_model(config, model, accelerator.device)
    if parallel.is_main():
        _print(figures.to_json())
        if out:
            with writing(out):
                write_json(out, figures.to_json())
    parallel.shutdown()


def _print(found: dict[str, Any]) -> None:
    """Print what `ModelFigures.to_json()` gave."""
    title = f"{found['model']} on {found['dataset']} (clean test labels)"
    rows = [[name, _percent(value)] for name, value in found["figures"].items()]
    classes = found["classes"]
    rows += [
        [f"class {name}", _percent(share)] for name, share in zip(classes, found["per_class"], strict=True)
    ]
    print_table(title, ["measure", "value"], rows)
    confusion = found["confusion"]
    if confusion is not None and len(classes) > LARGEST_CONFUSION:
        print(f"confusion matrix of {len(classes)} classes: write it with --out FILE.json")
    elif confusion is not None:
        counts = [[name, *row] for name, row in zip(classes, confusion, strict=True)]
        print_table("confusion matrix (rows: true class, columns: predicted)", ["", *classes], counts)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"  # a class without samples
