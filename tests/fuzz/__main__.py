"""The long form: `python -m tests.fuzz --inputs 5000 --seed 1`; exit code 1 if a defect is found."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import lines, run
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="random inputs, beside the handmade ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(TARGETS), default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        report = run(Path(base), args.inputs, args.seed, args.target)
    print("\n".join(lines(report)), flush=True)
    return int(bool(report.defects))


if __name__ == "__main__":
    sys.exit(main())
