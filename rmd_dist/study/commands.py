"""What rmd study does, given its parsed arguments."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from rmd_dist.config import DistillConfig
from rmd_dist.config.text import read_yaml
from rmd_dist.data.dataset import dataset_info
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import EXIT_FAULT, ConfigError
from rmd_dist.models.export import WEIGHTS, create, export
from rmd_dist.parallel.processes import share_of_cores
from rmd_dist.runs.console import print_table
from rmd_dist.study import tune
from rmd_dist.study.cells import Cell, plan
from rmd_dist.study.folder import Study, keep_teacher, study_of, write_specs
from rmd_dist.study.outlook import Kind, StepTimes, kind_of, outlook_rows, step_seconds
from rmd_dist.study.runner import Data, Topology, start
from rmd_dist.study.sharing import shared_gpus
from rmd_dist.study.spec import StudySpec, load_spec
from rmd_dist.study.status import read_status, retry
from rmd_dist.study.worker import Pruner, Tally, Worker, work

MEASURED_STEPS = 40


def study(args: argparse.Namespace) -> int:
    """Run a study, or with --dry-run say what it would take; returns the exit code."""
    given = [load_spec(path) for path in args.specs]
    if args.fresh_teachers:
        given = [replace(spec, teachers={}) for spec in given]
    specs = [tune.prepared(spec) for spec in given]
    if any(spec.tune for spec in specs) and len(specs) > 1:
        raise ConfigError("a search goes by itself; give its YAML file alone")
    if args.storage:
        say("--storage is not needed any more: the study's folder holds all there is to know of its cells")
    cells, tables = plan(specs)
    folder = args.out or Path("studies") / specs[0].name
    topologies = _topologies(args)
    root, source = (path and str(path) for path in (args.data_root, args.source))
    data = Data(root, source, args.loader, args.cpu)
    if args.dry_run:
        return _dry_run(args, study_of(folder, cells, tables), topologies[0], data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {folder} ({error.strerror}); give another --out") from error
    sharing: contextlib.AbstractContextManager[dict[str, str]] = contextlib.nullcontext({})
    if args.mps:
        sharing = shared_gpus(folder / "logs" / "mps", say)
    with sharing as environment:
        topologies = [replace(topology, environment=environment) for topology in topologies]
        if specs[0].tune:
            return _search(args, folder, specs[0], topologies, data)
        tally = _run(args, folder, specs, cells, topologies, data)
    return _told(tally, study_of(folder, cells, tables))


def _run(
    args: argparse.Namespace,
    folder: Path,
    specs: Sequence[StudySpec],
    cells: Sequence[Cell],
    topologies: Sequence[Topology],
    data: Data,
    *,
    pruner: Pruner | None = None,
    together: bool = False,
) -> Tally:
    """Work through the cells."""
    write_specs(folder, specs)
    if args.retry_failed:
        for key in retry(folder, cells):
            say(f"{key}: failed before, waits again")
    left = sum(not status.done for status in read_status(folder, cells).values())
    say(f"{folder}: {len(cells)} cells, {left} of them to be run; {len(topologies)} at a time")
    workers = [
        Worker(folder, cells, topology, data, say, pruner=pruner, together=together)
        for topology in topologies
    ]
    return work(workers)


def _told(tally: Tally, study: Study) -> int:
    """Print where the study stands; 1 if cells have failed."""
    by_state: dict[str, list[str]] = {}
    for key, status in study.status.items():
        by_state.setdefault(status.state, []).append(key)
    counts = ", ".join(f"{len(keys)} {state}" for state, keys in sorted(by_state.items()))
    say(f"{study.folder}: {counts}; {len(tally.finished)} finished by this command")
    for key in by_state.get("running", []):
        say(f"running elsewhere: {key} ({study.status[key].worker})")
    for key in by_state.get("failed", []):
        say(f"failed: {key}: {study.status[key].why} (log: {study.folder / 'logs' / f'{key}.log'})")
    if by_state.get("failed"):
        say("run failed cells again with --retry-failed")
    if by_state.get("waiting"):
        say("cells that wait need a teacher whose pretraining has not finished")
    say(f"report: rmd report {study.folder}")
    return EXIT_FAULT if by_state.get("failed") else 0


def _search(
    args: argparse.Namespace, folder: Path, spec: StudySpec, topologies: Sequence[Topology], data: Data
) -> int:
    """What is tried, of K then a finer grid around the best, and the choice."""
    tally = Tally()
    cells, tables = plan([spec])
    found = study_of(folder, cells, tables)
    finer = tune.refined(found, tables[0])  # of a search that is continued
    while True:
        spec = finer or spec
        assert spec.tune
        cells, tables = plan([spec])
        pruner = tune.MedianPruner(spec.tune, folder, cells) if spec.tune.prune else None
        tally.add(_run(args, folder, [spec], cells, topologies, data, pruner=pruner, together=True))
        found = study_of(folder, cells, tables)
        if (finer := tune.refined(found, tables[0])) is None:
            break
    code = _told(tally, found)
    for line in tune.verdict(found, tables[0]):
        say(line)
    return code


def _dry_run(args: argparse.Namespace, study: Study, topology: Topology, data: Data) -> int:
    times = StepTimes.parse(args.step_seconds, study)
    if args.measure:
        times.measured |= _measure(study.cells.values(), topology, data)
    if args.list:
        lines = [[key, str(cell.steps), study.status[key].state] for key, cell in study.cells.items()]
        print_table("cells", ["cell", "steps", "state"], lines)
    columns, rows, closing = outlook_rows(study, times)
    print_table(f"{study.folder}: what it takes", columns, rows)
    for line in closing:
        say(line)
    return 0


def _measure(cells: Iterable[Cell], topology: Topology, data: Data) -> dict[Kind, float]:
    """Seconds of a step of each kind of cell, from a short run in a folder that is then removed."""
    found = {}
    for kind, cell in {kind_of(cell): cell for cell in cells}.items():
        config = replace(cell.config, run=replace(cell.config.run, max_steps=MEASURED_STEPS, log_every=5))
        config.eval = replace(config.eval, train_samples=config.data.batch_size)
        config.data = replace(config.data, test_samples=config.data.batch_size)
        with tempfile.TemporaryDirectory(prefix="rmd-measure-") as name:
            if isinstance(config, DistillConfig) and cell.needs:
                config.teacher = _untrained(config, Path(name))
            short = replace(cell, config=config, needs=None)
            with start(Path(name), short, topology, data) as running:
                running.process.wait()
            seconds = step_seconds(running.folder, config.data.batch_size, after=5)
            if running.process.returncode or seconds is None:
                raise ConfigError(f"cannot time {cell.key}: {running.last_words()}")
        found[kind] = seconds
    return found


def _untrained(config: DistillConfig, folder: Path) -> str:
    """A file of an untrained encoder, with which a step takes the time that it does with a pretrained one."""
    info = dataset_info(config.data.dataset, config.data.root)
    input = Preprocess.for_dataset(info, config.data.image_size).to_cfg()
    encoder = create(config.model.name, 0, input)
    (file := folder / "untrained" / WEIGHTS).parent.mkdir()
    export(file.parent, encoder, config.model.name, 0, {"dataset": info.name, "stage": "pretrain"})
    keep_teacher(folder, str(file))
    return str(file)


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
    threads = args.threads or (share_of_cores(ranks) if ranks > 1 else 0)
    base = Topology(args.processes, args.launch_config, threads)
    devices = _gpus() if (args.workers > 1 or args.mps) and not args.cpu else []
    if args.mps and not 0 < len(devices) < args.workers * processes:
        raise ConfigError(
            f"--mps is for more --workers than there are GPUs, and {len(devices)} can be used; leave it out"
        )
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
