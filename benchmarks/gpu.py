"""One command that proves the CUDA path: tests, times, real runs. What each part gave is written as it ends.

    python benchmarks/gpu.py --out DIR [--data FOLDER]      # one GPU, no network, no ffcv: under nine minutes
    python benchmarks/gpu.py --out DIR --device cpu         # the same in a small form, where there is none
    python benchmarks/gpu.py --summary DIR/gpu.json         # the tables, in Markdown

FOLDER holds CIFAR-10 in its official python layout, for the run on real images. docs/gpu.md says what must be
installed, and what has been measured. This file needs Python alone: all work is done by processes that it
starts, each with a limit, so that what fails or hangs costs itself and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_session import BENCHMARKS, CORES, ROOT, Session, servers

from rmd_dist.errors import ConfigError
from rmd_dist.study.sharing import shared_gpus

TESTS = {
    "losses": ["test_losses.py"],
    "no waiting": ["test_step.py", "-k", "waits or noticed"],
    "numbers, nan": ["test_step.py", "-k", "not (waits or noticed)"],
    "resume, saving": ["test_resume.py"],
    "graphs": ["test_graphs.py"],
    "views": ["test_render.py"],
    "ranks": ["test_ranks.py"],
}
"""Groups that run beside each other -> pytest's arguments below tests/gpu."""

COMPILED = {"cpu": [], "cuda": ["no", "bf16", "fp16"]}
"""Precisions whose compiled runs are groups of their own, one a stage: what is compiled takes long."""


def environment(session: Session) -> dict[str, Any]:
    """Device, driver and versions."""
    file = session.out / "environment.json"
    code = (
        "import torch, accelerate, timm, numpy, numba, json, pathlib;"
        f"name = torch.cuda.get_device_name() if '{session.device}' == 'cuda' else 'CPU';"
        "versions = {m.__name__: m.__version__ for m in (torch, accelerate, timm, numpy, numba)};"
        "found = {'device': name, 'cudnn': torch.backends.cudnn.version(), 'versions': versions};"
        f"pathlib.Path({str(file)!r}).write_text(json.dumps(found))"
    )
    found: dict[str, Any] = {"cores": CORES, "python": platform.python_version()}
    if error := session.run("environment", session.left(90), "-c", code):
        return found | {"error": error}
    found |= json.loads(file.read_text())
    if session.device == "cuda" and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        found["driver"] = told.stdout.strip()
    return found


def tests(session: Session) -> dict[str, Any]:
    """tests/gpu in groups beside each other; meanwhile what later parts time is compiled."""
    groups = {name: TESTS[name] for name in ("losses", "no waiting")} if session.small else dict(TESTS)
    for precision in COMPILED[session.device]:
        for stage in ("pretrain", "distill"):
            groups[f"compiled {stage}, {precision}"] = ["test_compiled.py", "-k", f"{precision}-{stage}"]
    ends = time.monotonic() + session.left(215)

    def one(name: str) -> str | None:
        where, *more = groups[name]
        options = ["-p", "no:cacheprovider", "-o", "addopts=--strict-markers", "-v", "--tb=short"]
        command = ["-m", "pytest", f"tests/gpu/{where}", "--device", session.device, *options, *more]
        limit = max(1.0, ends - time.monotonic())
        return session.run(log_of(name), limit, *command, "--timeout", "200", "--durations", "3", threads=1)

    warm = [] if session.small else [warm_up(session, stage) for stage in ("pretrain", "distill")]
    with ThreadPoolExecutor(min(len(groups), CORES)) as pool:
        problems = dict(zip(groups, pool.map(one, groups), strict=True))
    for process in warm:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(session.left(30))
        session.end(process)
    found = {}
    for name, problem in problems.items():
        text = (session.out / f"{log_of(name)}.log").read_text(errors="replace")
        kinds = ("PASSED", "FAILED", "SKIPPED", "ERROR")
        counts: dict[str, Any] = {
            kind.lower(): len(re.findall(rf"::\S.* {kind}\b.*\[", text)) for kind in kinds
        }
        if problem:
            said = dict.fromkeys(re.findall(r"^(?:FAILED |ERROR |E   \S).{0,300}", text, re.MULTILINE))
            counts |= {"problem": problem, "said": list(said)[-20:]}
        found[name] = counts
    failed = [name for name, problem in problems.items() if problem]
    return {"groups": found} | ({"error": f"failed or unfinished: {'; '.join(failed)}"} if failed else {})


def log_of(group: str) -> str:
    """Name of the log of a group of tests."""
    return f"tests-{re.sub('[^a-z0-9]+', '-', group)}"


def warm_up(session: Session, stage: str) -> subprocess.Popen[str]:
    """Compile what `steps` will time; the compiled code is kept on disk."""
    variants = ["bf16 compiled", "bf16 compiled fastest"]
    command = [str(BENCHMARKS / "step.py"), "--synthetic", "--stage", stage, "--variants", *variants]
    return session.start(f"compile-{stage}", *command, "--device", "cuda", "--steps", "1", "--block", "1")


def steps(session: Session) -> dict[str, Any]:
    """Times of a step of both stages, by precision, compiled or not, with equal bits or not, from a table."""
    words = ["--synthetic", "--steps", "100", "--block", "20"]
    if session.small:
        words = ["--synthetic", "--steps", "4", "--block", "2"]
        words += ["--model", "resnet18_cifar_w16_s2", "--batch_size", "16", "--data.train_samples", "64"]
        words += ["--variants", "fp32", "fp32 table"]
    return session.benchmark("steps", 170, str(BENCHMARKS / "step.py"), *words)


def graph(session: Session) -> dict[str, Any]:
    """The relation graph's forms against whole matrices; on CUDA blocks of other sizes, too."""
    words = [str(BENCHMARKS / "graph.py"), "--no-errors", "--worlds", "1"]
    if session.small:
        return session.benchmark("graph", 60, *words, "--batches", "64", "256", "--seconds", "0.3")
    found = session.benchmark("graph", 60, *words, "--seconds", "1.5")
    for power in (24, 28):
        more = ["--block-numel", str(2**power), "--batches", "16384", "65536", "--seconds", "1"]
        other = session.benchmark(f"graph-{power}", 25, *words, *more)
        found[f"blocks of 2^{power}"] = other["rows"]
        found |= {"error": other["error"]} if "error" in other else {}
    return found


def loader(session: Session) -> dict[str, Any]:
    """Images/s of the loader by threads."""
    words = ["--threads", "1", "2", "--samples", "4000"] if session.small else ["--threads", "1", "4", "16"]
    return session.benchmark("loader", 40, str(BENCHMARKS / "threads.py"), *words)


def sharing(session: Session) -> dict[str, Any]:
    """Steps a second of distillation when 1, 2, 4, 8 processes share the device, also by NVIDIA's MPS."""
    found: dict[str, Any] = {"rows": []}
    said: list[str] = []
    try:
        found["rows"].extend(shared(session, "sharing"))
        if not session.small:
            with shared_gpus(session.out / "mps", said.append) as environment:
                for row in shared(session, "sharing-mps", environment):
                    found["rows"].append(row | {"mps": True})
    except RuntimeError as error:
        found["error"] = str(error)
    except ConfigError as error:  # the machine has no such service
        said.append(str(error))
    return found | ({"said": said} if said else {})


def shared(session: Session, name: str, more: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """A row for each number of processes; `more`: variables of their environment."""
    counts = (1, 2) if session.small else (1, 2, 4, 8)
    command = [str(BENCHMARKS / "step.py"), "--serve", "--synthetic", "--stage", "distill"]
    command += ["--device", session.device, "--variants", "fp32" if session.small else "bf16"]
    command += ["--data.workers", "1" if session.small else "2", "--threads", "1"]
    command += ["--model", "resnet18_cifar_w16_s2", "--batch_size", "16"] if session.small else []
    with servers(session, name, max(counts), *command, more=more) as started:
        for server in started:
            server.answer(session.left(100))  # that it is ready
        for count in counts:
            for server in started[:count]:
                server.ask("2" if session.small else "4")
            each = [float(server.answer(session.left(40))) for server in started[:count]]
            yield {"processes": count, "steps_per_second": sum(each), "each": each}


def digits(session: Session) -> dict[str, Any]:
    """The whole method on the embedded digits: a teacher, then cross-entropy without and with its graph."""
    more = ["--precision", "no" if session.small else "bf16", "--cpu", str(session.small).lower()]
    if session.small:
        more += ["--max-steps", "10", "--model", "resnet18_cifar_w16_s2"]
    plan = {"teacher": ["pretrain", "--config", "configs/digits/pretrain.yaml"]}
    for K in ("0", "2"):
        plan[f"CE, K = {K}"] = ["distill", "--config", "configs/digits/distill.yaml", "--K", K]
    return trained(session, "digits", plan, 100, more)


def cifar10(session: Session) -> dict[str, Any]:
    """The same on real images at full width, as far as two minutes go: not the paper's length."""
    if session.data is None:
        return {"left_out": "no --data"}
    more = ["--source", str(session.data), "--precision", "bf16", "--dataset", "cifar10"]
    if session.small:
        more = ["--source", str(session.data), "--cpu", "true", "--max-steps", "2"]
        more += ["--model", "resnet18_cifar_w16_s2", "--batch-size", "64", "--data.test_samples", "500"]
        more += ["--eval.train_samples", "500"]
    big = [] if session.small else ["--batch-size", "512", "--schedule", "cosine"]
    plan = {"teacher": ["pretrain", *big, "--epochs", "12", "--lr", "0.12", "--eval.every_epochs", "4"]}
    for K in ("0", "1"):
        more_of = ["--loss", "ce", "--K", K, "--epochs", "8", "--lr", "0.1", "--eval.every_epochs", "4"]
        plan[f"CE, K = {K}, 40 % wrong"] = ["distill", *big, *more_of]
    return trained(session, "cifar10", plan, 130, more)


def teacher(session: Session) -> dict[str, Any]:
    """The fast teacher's preset on CIFAR-10, nearly nine minutes: kNN accuracy over time."""
    if session.data is None:
        return {"left_out": "no --data"}
    more = ["--config", "configs/cifar10/pretrain_gpu.yaml", "--source", str(session.data)]
    if session.small:
        more += "--cpu true --precision no --model.compile false --model resnet18_cifar_w16_s2".split()
        more += "--batch-size 64 --max-steps 2 --data.test_samples 500 --eval.train_samples 500".split()
    began = time.time()
    found = trained(session, "teacher", {"teacher": ["pretrain", *more]}, 530, [])
    folder = session.out / "runs" / "pretrain" / "teacher-0"
    found["curve"] = [
        {"step": r["step"], "seconds": r["time"] - began, "knn": r["eval/knn_accuracy"]}
        for r in records_of(folder)
        if "eval/knn_accuracy" in r
    ]
    file = session.out / "teacher-k10.json"
    words = ["--checkpoint", str(folder), "--linear_probe", "false", "--knn_k", "10", "--loader", "memory"]
    words += ["--source", str(session.data), "--out", str(file)]
    if session.small:
        words += ["--cpu", "true", "--train_samples", "500", "--test_samples", "500"]
    if not session.run("teacher-k10", session.left(40), str(ROOT / "launch" / "evaluate.py"), *words):
        found["k = 10"] = json.loads(file.read_text())["figures"]
    return found


def trained(
    session: Session, name: str, plan: dict[str, list[str]], limit: float, more: list[str]
) -> dict[str, Any]:
    """Runs of the launch scripts, one after the other: seconds, steps and what they measured last."""
    rows, error, ends = [], None, time.monotonic() + session.left(limit)
    if session.small:
        plan = dict(list(plan.items())[::2])  # without K = 0
    for number, (title, (stage, *words)) in enumerate(plan.items()):
        folder = session.out / "runs" / stage / f"{name}-{number}"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier call, which it would continue
        where = ["--loader", "memory", "--runs", str(session.out / "runs"), "--name", folder.name]
        started = time.monotonic()
        command = [str(ROOT / "launch" / f"{stage}.py"), *words, *more, *where]
        failed = session.run(f"{name}-{number}", max(1.0, ends - started), *command)
        rows.append({"run": title, "seconds": time.monotonic() - started} | outcome(folder))
        error = error or (f"{title}: {failed}" if failed else None)
    return {"rows": rows} | ({"error": error} if error else {})


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none before it has one."""
    lines = folder / "metrics.jsonl"
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def outcome(folder: Path) -> dict[str, Any]:
    """Steps, the last accuracy, and the median images/s of a run, finished or not."""
    records = records_of(folder)
    rates = sorted(r["train/images_per_second"] for r in records if "train/images_per_second" in r)
    measured = [r for r in records if "test/accuracy" in r or "eval/knn_accuracy" in r]
    found: dict[str, Any] = {"steps": records[-1]["step"] if records else 0}
    if rates:
        found["images_per_second"] = rates[len(rates) // 2]
    if measured:
        last = measured[-1]
        found["accuracy"] = last.get("test/accuracy", last.get("eval/knn_accuracy"))
        found["memorised"] = last.get("memorisation/wrong_memorised")
    return found


PARTS: dict[str, Callable[[Session], dict[str, Any]]] = {
    part.__name__: part for part in (environment, tests, steps, digits, graph, sharing, loader, cifar10)
}
"""In the order of what would be missed most if time ran out."""

LONG: dict[str, Callable[[Session], dict[str, Any]]] = {part.__name__: part for part in (teacher,)}
"""Parts that run only when they are named."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of gpu.json, logs and runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: all in a small form")
    parser.add_argument("--data", type=Path, help="CIFAR-10, the official python archive or its folder")
    parser.add_argument(
        "--parts", nargs="+", choices=[*PARTS, *LONG], help="only these; others stay as they are"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="after which what is left is left out")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the tables of a gpu.json")
    return parser


def main() -> int:
    args = arguments().parse_args()
    if args.summary:
        from gpu_tables import tables

        print(tables(json.loads(args.summary.read_text())))
        return 0
    if args.out is None:
        arguments().error("give --out FOLDER, or --summary FILE")
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.data.resolve() if args.data else None
    session = Session(args.out.resolve(), args.device, data, time.monotonic() + 60 * args.minutes)
    if args.parts and (args.out / "gpu.json").exists():
        session.results = json.loads((args.out / "gpu.json").read_text())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        failed = [name for name in args.parts or PARTS if not run(session, name)]
    finally:
        session.end_all()
    print(f"python benchmarks/gpu.py --summary {args.out / 'gpu.json'}")
    return int(bool(failed))


def run(session: Session, name: str) -> bool:
    """One part, its results written; whether all went well."""
    started = time.monotonic()
    if started > session.deadline:
        found: dict[str, Any] = {"error": "left out: out of time"}
    else:
        try:
            found = (PARTS | LONG)[name](session)
        except Exception as error:  # a part costs itself
            found = {"error": f"{type(error).__name__}: {error}"}
    session.results["parts"][name] = found | {"seconds": time.monotonic() - started}
    session.write()
    said = found.get("error") or found.get("left_out") or "done"
    print(f"{name}: {said} ({time.monotonic() - started:.0f} s)", flush=True)
    return "error" not in found


if __name__ == "__main__":
    sys.exit(main())
