"""Outputs of a model for samples of a data set: each sample once, on any number of ranks.

All that is measured comes from `predict` (docs/architecture.md, contract 6): a rank runs the model on its
share of the samples, the outputs are gathered and put in order by sample index, and an index that is missing
or comes twice is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rmd_dist import parallel
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.loader import Loader, build_loader
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.splits import Indices
from rmd_dist.parallel.compute import Compute

BetweenBatches = Callable[[], None]
"""A collective that every rank calls equally often while it predicts; what it raises ends the prediction."""


def predict(
    model: nn.Module,
    dataset: Dataset,
    indices: Indices | None = None,
    *,
    compute: Compute | None = None,
    batch_size: int = 512,
    reduce: Callable[[Tensor], Tensor] | None = None,
    between: BetweenBatches | None = None,
) -> Tensor:
    """Outputs (N, ...) of `model` for the samples `indices` (N,) of `dataset`, in their order. Collective.

    The model gets unaugmented images as its `pretrained_cfg` wants them (`Preprocess.of`), in eval mode and
    without gradient; it must be where `compute` says (default: fp32 on the CPU). Pass the bare module, not
    DDP: ranks may have different numbers of batches, and DDP talks in its forward pass.

    `indices`: int64 without repetitions; default: all. `batch_size`: images of one batch on each rank.
    `reduce`: applied to the outputs of each batch (B, ...) -> (B, ...), for outputs too large to be kept.
    `between`: called after every batch, on all ranks as often as the rank that has most. Every rank holds the
    whole result on its CPU: N D 4 bytes (100 MB for 50 000 x 512).
    """
    compute = compute or Compute()
    indices = np.arange(len(dataset)) if indices is None else indices
    wanted = Preprocess.of(model)
    loader = build_loader(
        dataset,
        # Images of varying sizes are cut and resized once, to what the model wants; others by Preprocess.
        sizes=(max(wanted.size),) if dataset.store else None,
        crop_pct=wanted.crop_pct,
        augment=None,
        batch_size=batch_size,
        indices=indices,
        shuffle=False,
        workers=compute.workers,
        pinned=compute.device.type == "cuda",
    )
    with loader, compute.autocasting():
        index, outputs = _own_share(model, loader, compute, reduce, between)
    return gather_by_index(index, outputs, indices)


def predict_classes(
    model: nn.Module,
    dataset: Dataset,
    indices: Indices | None = None,
    *,
    compute: Compute | None = None,
    batch_size: int = 512,
    between: BetweenBatches | None = None,
) -> npt.NDArray[np.int64]:
    """Classes (N,) that `model` (logits (B, C)) predicts; arguments as of `predict`. Collective."""
    found = predict(
        model, dataset, indices, compute=compute, batch_size=batch_size, reduce=_argmax, between=between
    )
    return found.numpy()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode; afterwards every submodule has the mode it had (a frozen part stays frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def gather_by_index(index: Tensor, values: Tensor, expected: npt.NDArray[np.int64] | Tensor) -> Tensor:
    """All ranks' rows `values` (n, ...) of samples `index` (n,), as `expected`: (N, ...), CPU. Collective.

    `expected`: the N sample indices that must arrive, in the order in which their rows are wanted. Raises
    RuntimeError, on every rank, when one is missing, comes twice, or was not asked for.
    """
    if parallel.world_size() > 1:
        # A rank without samples knows neither width nor dtype of the others' rows.
        known = [k for k in parallel.all_gather_object(_row_type(values)) if k is not None]
        if known and not len(values):
            values = torch.empty((0, *known[0][0]), dtype=known[0][1], device=values.device)
        index, values = parallel.all_gather_rows(index), parallel.all_gather_rows(values)
    index, order = index.cpu().sort()
    wanted, position = torch.as_tensor(expected, dtype=torch.int64).cpu().sort()
    if not torch.equal(index, wanted):
        raise RuntimeError(_coverage_error(index, wanted))
    return values.cpu()[order[position.argsort()]]


def _own_share(
    model: nn.Module,
    loader: Loader,
    compute: Compute,
    reduce: Callable[[Tensor], Tensor] | None,
    between: BetweenBatches | None,
) -> tuple[Tensor, Tensor]:
    """Of this rank's samples: (index (n,), outputs (n, ...)) on the device."""
    preprocess = Preprocess.of(model)
    index: list[Tensor] = []
    outputs: list[Tensor] = []
    with evaluating(model), torch.inference_mode():
        for batch in loader.epoch(0):
            batch = batch.to(compute.device)
            output = model(preprocess(batch.views[0], compute.channels_last, compute.dtype))
            index.append(batch.index)
            outputs.append(reduce(output) if reduce else output)
            if between:
                between()
    for _ in range(loader.most_batches - len(index)):
        if between:
            between()
    # cat outside inference mode gives ordinary tensors, which collectives and autograd accept.
    if not index:
        empty = torch.empty(0, device=compute.device)
        return empty.long(), empty
    return torch.cat(index), torch.cat(outputs)


def _argmax(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def _row_type(values: Tensor) -> tuple[tuple[int, ...], torch.dtype] | None:
    return (tuple(values.shape[1:]), values.dtype) if len(values) else None


def _coverage_error(index: Tensor, wanted: Tensor) -> str:
    """`index` and `wanted` are sorted and differ."""
    seen, counts = torch.unique(index, return_counts=True)
    twice = seen[counts > 1]
    missing = wanted[~torch.isin(wanted, seen)]
    foreign = seen[~torch.isin(seen, wanted)]
    parts = [
        f"{len(found)} {what} (first: {found[:5].tolist()})"
        for what, found in (("missing", missing), ("more than once", twice), ("not asked for", foreign))
        if len(found)
    ]
    return (
        f"evaluation must see each of {len(wanted)} samples once, but of the {len(index)} rows gathered: "
        f"{', '.join(parts)}; the loader must serve in order, split over all ranks, without padding"
    )
