"""Cost and exactness of the relation graph's forms, beside whole matrices and autograd.

    python benchmarks/graph.py [--worlds 1 2] [--batches 64 256 ...] [--width 512] [--out FILE.json]
    python benchmarks/graph.py --device cuda --no-errors                # one GPU: time and memory
    python benchmarks/graph.py --cost [--worlds 8 64 1024] [--batches ...]      # the cost model alone

`naive` is what is usually written: gather the features of all ranks with their gradient, standardise, make
the B x B matrices on every rank, let autograd do the rest. `rows` and `gram` are RelationLoss's forms;
a star marks the one that `auto` takes. All compute the paper's loss (raw norms) of B samples over all ranks
and its gradient with respect to the student's features; the cores are shared among the ranks.

seconds median of forward + backward, the forms taking turns in the same processes
MiB     peak memory above what stood before, inputs included in the latter: resident, greatest of the ranks;
        on CUDA that of torch's allocator
MB sent what a rank sends in a ring: (W - 1) / W of what a gather makes, twice that of what a reduction sums
errors  relative to float64, of the value and of the gradient (of its norm), for features of nothing in
        common (apart), of a network's kind (related), and for a student that is its teacher + 1e-4 (near);
        with a ~ relative to the gram form in float64, which shows rounding alone
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from on_device import peak_mib, seconds
from torch import Tensor

from rmd_dist.files import to_json
from rmd_dist.losses import RelationLoss
from rmd_dist.losses.relation_forms import BLOCK_NUMEL, cheaper
from rmd_dist.parallel import collectives as dist

NODE_WEIGHT, EDGE_WEIGHT = 0.8, 0.35
KINDS = ("apart", "related", "near")
NAIVE_MOST = 16384
ROWS_MOST = {"cpu": 16384, "cuda": 65536}
REFERENCE_MOST = 4096
"""Up to so many nodes float64 is that of autograd over blocks of rows, above it that of the gram form."""

Loss = Callable[[Tensor, Tensor], Tensor]


def features(batch: int, width: int, kind: str) -> tuple[Tensor, Tensor]:
    """Student and teacher (B, D), the same on every rank."""
    g = torch.Generator().manual_seed(batch)
    teacher, student = (torch.randn(batch, width, generator=g) for _ in range(2))
    if kind == "apart":
        return student, teacher
    centres = torch.randn(10, width, generator=g)[torch.randint(10, (batch,), generator=g)]
    teacher = (teacher + centres).relu_()
    return ((student + centres).relu_() if kind == "related" else teacher + 1e-4 * student), teacher


def standardized(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """The paper's equations 7 to 10 as they stand, over the features of all ranks."""
    if dist.world_size() > 1:
        from torch.distributed.nn.functional import all_gather

        student, teacher = (torch.cat(list(all_gather(x))) for x in (student, teacher))
    s, t = standardized(student), standardized(teacher)
    node = (t @ s.T - torch.eye(len(s), device=s.device)).norm()
    edge = (t @ t.T - s @ s.T).norm()
    return NODE_WEIGHT * node + EDGE_WEIGHT * edge


def closed(form: str, batch: int) -> Loss:
    """RelationLoss, raw norms."""
    module = RelationLoss(NODE_WEIGHT, EDGE_WEIGHT, form, reference_batch=None)  # type: ignore[arg-type]
    sizes = dist.share_sizes(batch, dist.world_size())
    return lambda student, teacher: module(student, teacher, sizes).loss


def forms_for(batch: int, device: torch.device) -> dict[str, Loss]:
    """What is measured at this batch."""
    forms: dict[str, Loss] = {}
    if batch <= NAIVE_MOST // dist.world_size():
        forms["naive"] = naive  # on two ranks each holds all of the matrices: twice the memory
    if batch <= ROWS_MOST[device.type]:
        forms["rows"] = closed("rows", batch)
    forms["gram"] = closed("gram", batch)
    return forms


def run(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value, and the gradient of this rank's student features."""
    student = student.detach().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert student.grad is not None
    return value.detach(), student.grad


def exact(student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """Value and gradient in float64 of whole batches, by autograd over blocks of the matrices' rows."""
    leaf = student.double().requires_grad_()
    s, t = standardized(leaf), standardized(teacher.double())
    rows, batch = s.detach().requires_grad_(), len(s)

    def squares(block: slice) -> Tensor:
        node = t[block] @ rows.T - torch.eye(batch, dtype=torch.float64)[block]
        edge = t[block] @ t.T - rows[block] @ rows.T
        return torch.stack([node.square().sum(), edge.square().sum()])

    blocks = [slice(i, min(i + 512, batch)) for i in range(0, batch, 512)]
    with torch.no_grad():
        norms = torch.stack([squares(b) for b in blocks]).sum(0).sqrt()
    weights = torch.tensor([NODE_WEIGHT, EDGE_WEIGHT], dtype=torch.float64)
    for block in blocks:
        (squares(block) * weights / (2 * norms)).sum().backward()
    assert rows.grad is not None
    s.backward(rows.grad)
    assert leaf.grad is not None
    return float(weights @ norms), leaf.grad


def reference(batch: int, width: int, kind: str) -> tuple[float, Tensor]:
    """Float64 value and gradient of the whole batch. Collective."""
    student, teacher = features(batch, width, kind)
    if batch <= REFERENCE_MOST:
        return exact(student, teacher)
    own = dist.share(batch, dist.rank(), dist.world_size())
    value, gradient = run(closed("gram", batch), student[own].double(), teacher[own].double())
    return value.item(), dist.all_gather_rows(gradient / dist.world_size())


def cost(form: str, batch: int, width: int, world: int) -> tuple[float, float]:
    """(operations of the matrix products, bytes sent) of one rank in one step: what docs/scaling.md says."""
    ring = (world - 1) / world
    if (
        form == "naive"
    ):  # 3 products forward, 3 backward, on every rank; the student's gradients go home again
        return 12 * batch**2 * width, 4 * 3 * batch * width * ring
    if form == "rows":  # on one rank the edges' two products are one
        products = 5 if world > 1 else 4
        return 2 * products * batch**2 * width / world, 4 * 2 * batch * width * ring
    return 10 * batch * width**2 / world, 2 * 4 * 3 * width**2 * ring


@contextlib.contextmanager
def counted_bytes() -> Iterator[dict[str, float]]:
    """Bytes that this rank sends by a ring, under "sent", of all collectives inside."""
    counts = {"sent": 0.0}
    ring = (dist.world_size() - 1) / dist.world_size()
    c10d = dist.c10d
    originals = {name: getattr(c10d, name) for name in ("all_gather", "all_reduce", "all_to_all_single")}

    def count(name: str, *args: Any, **options: Any) -> Any:
        whole = sum(x.nbytes for x in args[0]) if isinstance(args[0], list) else args[0].nbytes
        counts["sent"] += whole * ring * (2 if name == "all_reduce" else 1)
        return originals[name](*args, **options)

    for name in originals:
        setattr(c10d, name, partial(count, name))
    try:
        yield counts
    finally:
        for name, original in originals.items():
            setattr(c10d, name, original)


def greatest(value: float) -> float:
    """Over ranks."""
    return max(dist.all_gather_object(value))


def measure(batch: int, width: int, limit: float, device: torch.device) -> dict[str, dict[str, float]]:
    """Form -> figures, of one batch size in the present world."""
    own = dist.share(batch, dist.rank(), dist.world_size())
    forms = forms_for(batch, device)
    found: dict[str, dict[str, float]] = {name: {} for name in forms}
    small = [x[: 64 // dist.world_size()].to(device) for x in features(64, width, "related")]
    student, teacher = (x[own].clone().to(device) for x in features(batch, width, "related"))
    for loss in forms_for(64, device).values():
        run(loss, *small)  # imports, thread pools and connections are not the form's
    for name, loss in forms.items():
        dist.barrier()
        with counted_bytes() as count:
            found[name]["memory_mib"] = greatest(peak_mib(device, partial(run, loss, student, teacher)))
        if name != "naive":  # its backward pass sends from inside of torch
            found[name]["bytes"] = count["sent"]
    times: dict[str, list[float]] = {name: [] for name in forms}
    deadline, rounds = time.perf_counter() + limit, 0
    while rounds < 2 or dist.broadcast_object(time.perf_counter() < deadline):
        rounds += 1
        for name, loss in forms.items():
            dist.barrier()
            times[name].append(seconds(device, partial(run, loss, student, teacher), max(1, 1024 // batch)))
    for name in forms:  # of each round the slowest rank's
        times[name] = [max(round) for round in zip(*dist.all_gather_object(times[name]), strict=True)]
        found[name]["seconds"] = statistics.median(times[name])
    if "naive" in forms:
        for name in forms:
            paired = [a / b for a, b in zip(times["naive"], times[name], strict=True)]
            found[name]["speedup"] = statistics.median(paired)
    return found


def errors(batch: int, width: int, kind: str, device: torch.device) -> dict[str, dict[str, float]]:
    """Form -> relative errors against float64, of features of one kind."""
    expected = reference(batch, width, kind)
    own = dist.share(batch, dist.rank(), dist.world_size())
    student, teacher = (x[own].clone().to(device) for x in features(batch, width, kind))
    found = {}
    for name, loss in forms_for(batch, device).items():
        value, gradient = run(loss, student, teacher)
        # The convention of dist.py: a rank's own gradient is W times its share of the global one.
        whole = dist.all_gather_rows(gradient / dist.world_size()).cpu()
        found[name] = {
            f"value_{kind}": abs(value.item() - expected[0]) / expected[0],
            f"gradient_{kind}": float((whole.double() - expected[1]).norm() / expected[1].norm()),
        }
    return found


def rank_main(rank: int, world: int, store: str, batch: int, args: argparse.Namespace, out: str) -> None:
    """All figures of one batch size and world; rank 0 writes them to `out`."""
    warnings.filterwarnings("ignore", message=".*all_gather is deprecated", category=FutureWarning)
    torch.set_num_threads(max(1, args.threads // world))
    if world > 1:
        dist.c10d.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    device = torch.device(args.device)
    if args.block_numel:
        BLOCK_NUMEL[device.type] = args.block_numel
    torch.backends.cuda.matmul.allow_tf32 = False
    found = measure(batch, args.width, args.seconds, device)
    for kind in KINDS if args.errors else ():
        for name, figures in errors(batch, args.width, kind, device).items():
            found[name] |= figures
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.shutdown()


def table(results: list[dict[str, Any]], width: int) -> str:
    """Rows of figures, for people."""
    header = f"{'W':>2} {'B':>6} {'form':6}{'seconds':>10}{'x naive':>9}{'MiB':>8}{'MB sent':>9}"
    header += "".join(f"{f'{what} {kind}':>18}" for kind in KINDS for what in ("value", "gradient"))
    lines = [header]
    for row in results:
        mark = "~" if row["batch"] > REFERENCE_MOST else " "
        for form, f in row["forms"].items():
            star = "*" if form == cheaper(row["batch"], width, row["world"]) else ""
            speed = f"{f['speedup']:9.2f}" if "speedup" in f else f"{'-':>9}"
            line = f"{row['world']:2} {row['batch']:6} {form + star:6}{f['seconds']:10.5f}{speed}"
            line += f"{f['memory_mib']:8.1f}"
            line += f"{f['bytes'] / 1e6:9.3f}" if "bytes" in f else f"{'-':>9}"
            measured = [f.get(f"{what}_{kind}") for kind in KINDS for what in ("value", "gradient")]
            line += "".join(f"{'-':>18}" if e is None else f"{e:17.1e}{mark}" for e in measured)
            lines.append(line)
    return "\n".join(lines)


def cost_table(worlds: list[int], batches: list[int], width: int) -> str:
    """The cost model, and what one of the matrices would take."""
    lines = [f"{'W':>5} {'B':>8}{'B x B, MiB':>12}" + "".join(
        f"{f'{form} {unit}':>14}" for form in ("naive", "rows", "gram") for unit in ("MFLOP", "MB sent"))
        + f"{'auto':>7}"]  # fmt: skip
    for world in worlds:
        for batch in batches:
            line = f"{world:5} {batch:8}{batch**2 / 2**18:12.1f}"
            for form in ("naive", "rows", "gram"):
                flop, sent = cost(form, batch, width, world)
                line += f"{flop / 1e6:14.0f}{sent / 1e6:14.1f}"
            lines.append(line + f"{cheaper(batch, width, world):>7}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worlds", type=int, nargs="+", help="default: 1 2, on CUDA 1")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384, 65536])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all ranks")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to spend on each batch size")
    parser.add_argument("--errors", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--block-numel", type=int, help="instead of relation_forms.BLOCK_NUMEL of the device")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file too")
    parser.add_argument("--cost", action="store_true", help="print the cost model, run nothing")
    args = parser.parse_args()
    args.worlds = args.worlds or ([1] if args.device == "cuda" else [1, 2])
    if args.cost:
        print(cost_table(args.worlds, args.batches, args.width))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for world in args.worlds:
            for batch in args.batches:
                store, out = f"{folder}/store-{world}-{batch}", f"{folder}/{world}-{batch}.json"
                rest = (world, store, batch, args, out)
                if args.device == "cuda" and world == 1:  # the allocator's memory needs no fresh process
                    rank_main(0, *rest)
                else:
                    mp.start_processes(rank_main, rest, world, start_method="spawn")
                forms = json.loads(Path(out).read_text())
                results.append({"world": world, "batch": batch, "width": args.width, "forms": forms})
                lines = table(results[-1:], args.width).splitlines()
                print("\n".join(lines[len(results) > 1 :]), flush=True)  # as they come; the heading once
                if args.out:
                    args.out.write_text(to_json(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
