"""Results of several runs side by side, each figure labelled for what it is; with --plot also their curves.

rmd compare runs/distill/A runs/distill/B ... [--plot curves.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rmd_dist.commands import path
from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import check_output

COLUMNS = {"last": "last", "selected": "selected (noisy val.)", "best_on_test": "best on test (oracle)"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=path, help="run folders")
    parser.add_argument("--plot", type=path, help="write the runs' curves to this PNG or SVG file")
    args = parser.parse_args(argv)

    from rmd_dist.runs.console import print_table
    from rmd_dist.runs.curves import plot_runs

    if args.plot:
        check_output(args.plot)
    table = rows(args.runs)
    print_table("results", ["run", "status", "measure", *COLUMNS.values()], table)
    if args.plot:
        with writing(args.plot):
            plot_runs(args.runs, [folder.name for folder in args.runs], args.plot)


def rows(runs: Sequence[Path]) -> list[list[str]]:
    """One row of the table for each run folder. Raises ConfigError for what is none."""
    from rmd_dist.runs.folder import read_manifest, results_of

    found = []
    for folder in runs:
        manifest = read_manifest(folder)
        if not manifest:
            raise ConfigError(f"{folder} is not a run folder: it has no manifest.json")
        results = results_of(folder, manifest)
        cells = [f"{100 * results[k].value:.2f} %" if k in results else "-" for k in COLUMNS]
        measure = results["last"].tag if "last" in results else "-"
        found.append([folder.name, manifest.get("status", "?"), measure, *cells])
    return found
