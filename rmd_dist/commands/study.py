"""Run the grid of one or more tables: rmd study paper/table1 [--dry-run]

The same command continues after any interruption; several at once, also on several machines, share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rmd_dist.commands import path, screen
from rmd_dist.config.presets import find


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("specs", nargs="+", type=path, help="YAML files of tables, or presets such as paper/table1")
    add("--out", type=path, help="folder of the study (default: studies/NAME of the first table)")
    add("--storage", help=argparse.SUPPRESS)  # of versions that kept a database
    add("--dry-run", action="store_true", help="only list cells, steps and hours")
    add("--list", action="store_true", help="with --dry-run: every cell by name, and where it stands")
    add("--step-seconds", metavar="S", help="time of a step, as 0.02 or pretrain=0.05,distill=0.02")
    add("--measure", action="store_true", help="with --dry-run: time a few steps of each kind of cell here")
    add("--retry-failed", action="store_true", help="run failed cells again")
    add("--fresh-teachers", action="store_true", help="pretrain even where a table names an encoder file")
    add("--workers", type=int, default=1, help="cells at a time, each with its share of the cores or GPUs")
    add("--mps", action="store_true", help="workers that share a GPU compute side by side (NVIDIA's MPS)")
    add("--processes", type=int, default=1, help="processes of each cell (DDP)")
    add("--launch-config", type=path, help="accelerate's configuration file for each cell, or a preset")
    add("--threads", type=int, default=0, help="CPU threads of each process (default: a fair share)")
    add("--data-root", type=path, help="folder of betons and archives")
    add("--source", type=path, help="official python archive or its folder")
    add("--loader", choices=("ffcv", "memory"), help="how images are read")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    args.specs = [find(str(spec)) for spec in args.specs]
    args.launch_config = args.launch_config and find(str(args.launch_config))

    from rmd_dist.study import commands

    if not args.dry_run:
        screen.spare()
    return commands.study(args)
