"""Run the grid of one or more tables; the same command continues after any interruption.

The same as `rmd study`.

python launch/study.py configs/paper/table1.yaml [--dry-run]
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.study import main

if __name__ == "__main__":
    run(main)
