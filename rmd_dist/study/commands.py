"""What launch/study.py does, given its parsed arguments."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rmd_dist.config import ConfigError, DistillConfig
from rmd_dist.config_text import read_yaml
from rmd_dist.faults import EXIT_FAULT
from rmd_dist.printing import print_table
from rmd_dist.study import tune
from rmd_dist.study.cells import Cell, plan
from rmd_dist.study.folder import write_specs
from rmd_dist.study.ledger import Ledger, Status, read_status
from rmd_dist.study.outlook import StepTimes, kind_of, outlook_rows
from rmd_dist.study.runner import Data, Topology, start
from rmd_dist.study.spec import StudySpec, load_spec
from rmd_dist.study.worker import Crew, Tally, Worker

MEASURED_STEPS = 40


def study(args: argparse.Namespace) -> int:
    """Run a study, or with --dry-run say what it would take; returns the exit code."""
    given = [load_spec(path) for path in args.specs]
    if args.fresh_teachers:
        given = [replace(spec, teachers={}) for spec in given]
    specs = [tune.prepared(spec) for spec in given]
    if any(spec.tune for spec in specs) and len(specs) > 1:
        raise ConfigError("a search for K goes by itself; give its YAML file alone")
    cells, _ = plan(specs)
    folder = args.out or Path("studies") / specs[0].name
    crew = _topologies(args)
    data = Data(args.data_root, args.source, args.loader, args.cpu)
    if args.dry_run:
        return _dry_run(args, folder, cells, crew[0], data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {folder} ({error.strerror}); give another --out") from error
    if specs[0].tune:
        return _search(args, folder, specs[0], crew, data)
    return _told(_run(args, folder, specs, cells, crew, data), folder, cells, args.storage)


def _run(
    args: argparse.Namespace,
    folder: Path,
    specs: Sequence[StudySpec],
    cells: Sequence[Cell],
    crew: Sequence[Topology],
    data: Data,
    **watch: Any,
) -> Tally:
    """Enter the cells and work through them."""
    ledgers = [Ledger(folder, args.storage) for _ in crew]
    try:
        entered = ledgers[0].enter(cells)
        write_specs(folder, specs)
        if args.retry_failed:
            for key in ledgers[0].retry(cell.key for cell in cells):
                say(f"{key}: failed before, waits again")
        say(f"{folder}: {len(cells)} cells, {entered} of them new; {len(crew)} at a time")
        workers = [
            Worker(folder, cells, ledger, topology, data, say, **watch)
            for ledger, topology in zip(ledgers, crew, strict=True)
        ]
        return Crew(workers).run()
    finally:
        for ledger in ledgers:
            ledger.close()


def _told(tally: Tally, folder: Path, cells: Sequence[Cell], storage: str | None) -> int:
    """Print where the study stands; 1 if cells have failed."""
    status = read_status(folder, storage)
    by_state: dict[str, list[str]] = {}
    for cell in cells:
        by_state.setdefault(status[cell.key].state, []).append(cell.key)
    counts = ", ".join(f"{len(keys)} {state}" for state, keys in sorted(by_state.items()))
    say(f"{folder}: {counts}; {len(tally.finished)} finished by this command")
    for key in by_state.get("running", []):
        say(f"running elsewhere: {key} ({status[key].worker})")
    for key in by_state.get("failed", []):
        say(f"failed: {key}: {status[key].why} (log: {folder / 'logs' / f'{key}.log'})")
    if by_state.get("failed"):
        say("run failed cells again with --retry-failed")
    if by_state.get("waiting"):
        say("cells that wait need a teacher whose pretraining has not finished")
    say(f"report: python launch/report.py {folder}")
    return EXIT_FAULT if by_state.get("failed") else 0


def _search(
    args: argparse.Namespace, folder: Path, spec: StudySpec, crew: Sequence[Topology], data: Data
) -> int:
    """The coarse grid of K, then the fine one around its best, then the choice."""
    whole = Tally()
    ledger = Ledger(folder, args.storage)
    _, (table,) = plan([spec])
    finer = tune.refined(spec, table, ledger.status())
    while True:
        spec = finer or spec
        assert spec.tune
        cells, (table,) = plan([spec])
        pruner = tune.Pruner(spec.tune, cells, ledger.status)
        watch = {"hopeless": pruner, "tag": spec.tune.select, "together": True}
        whole.add(_run(args, folder, [spec], cells, crew, data, **watch))
        status = ledger.status()
        finer = tune.refined(spec, table, status)
        if finer is None:
            break
    code = _told(whole, folder, cells, args.storage)
    for line in tune.verdict(spec, table, status):
        say(line)
    return code


def _dry_run(
    args: argparse.Namespace, folder: Path, cells: Sequence[Cell], topology: Topology, data: Data
) -> int:
    status = read_status(folder, args.storage)
    times = StepTimes.parse(args.step_seconds, cells, status)
    if args.measure:
        times.measured |= _measure(cells, topology, data)
    if args.list:
        print_table("cells", ["cell", "steps", "state"], [_line(cell, status) for cell in cells])
    columns, rows, closing = outlook_rows(cells, status, times)
    print_table(f"{folder}: what it takes", columns, rows)
    for line in closing:
        say(line)
    return 0


def _line(cell: Cell, status: dict[str, Status]) -> list[str]:
    return [cell.key, str(cell.steps), status[cell.key].state if cell.key in status else "new"]


def _measure(cells: Sequence[Cell], topology: Topology, data: Data) -> dict[Any, float]:
    """Seconds of a step of each kind of cell, from a short run in a folder that is then removed."""
    found = {}
    for kind, cell in {kind_of(cell): cell for cell in cells}.items():
        config = replace(cell.config, run=replace(cell.config.run, max_steps=MEASURED_STEPS, log_every=5))
        config.eval = replace(config.eval, train_samples=config.data.batch_size)
        config.data = replace(config.data, test_samples=config.data.batch_size)
        if isinstance(config, DistillConfig) and cell.needs:
            config.teacher = "random"  # an untrained encoder takes the same time
        with tempfile.TemporaryDirectory(prefix="rmd-measure-") as name:
            running = start(Path(name), replace(cell, config=config, needs=None), topology, data)
            try:
                running.process.wait()
            finally:
                if not running.ended():
                    running.kill()
                running.close()
            seconds = running.step_seconds(config.data.batch_size, after=5)
            if running.process.returncode or seconds is None:
                raise ConfigError(f"cannot time {cell.key}: {running.last_words()}")
        found[kind] = seconds
    return found


def _topologies(args: argparse.Namespace) -> list[Topology]:
    """How each worker of this command starts its cells."""
    if min(args.workers, args.processes) < 1 or args.threads < 0:
        raise ConfigError("--workers and --processes must be 1 or more, --threads 0 or more")
    if args.launch_config and args.processes > 1:
        raise ConfigError("--launch-config says how many processes there are; leave out --processes")
    if args.launch_config and not args.launch_config.is_file():
        raise ConfigError(f"--launch-config {args.launch_config} is not a file; see configs/accelerate/")
    processes = _processes_in(args.launch_config) if args.launch_config else args.processes
    ranks = args.workers * processes
    threads = args.threads or (max(1, len(os.sched_getaffinity(0)) // ranks) if ranks > 1 else 0)
    base = Topology(args.processes, args.launch_config, threads)
    devices = _gpus() if args.workers > 1 and not args.cpu else []
    if not devices:
        return [base] * args.workers
    if processes > len(devices):
        raise ConfigError(
            f"a cell of {processes} processes needs as many GPUs, and {len(devices)} can be seen; "
            "give fewer --processes, or --cpu"
        )
    # Each worker's cells have GPUs of their own; where these run out, workers share them evenly.
    starts = range(0, len(devices) - processes + 1, processes)
    shares = [",".join(devices[first : first + processes]) for first in starts]
    return [replace(base, devices=shares[worker % len(shares)]) for worker in range(args.workers)]


def _processes_in(path: Path) -> int:
    """num_processes of accelerate's configuration file. Raises ConfigError if it cannot be read."""
    try:
        values = read_yaml(path)
        return max(1, int(values.get("num_processes", 1)))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"--launch-config {path} cannot be read: {' '.join(str(error).split())}") from error


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)
