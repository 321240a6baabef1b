"""Tables and figures of a study, finished or not.

The same as `rmd report`.

python launch/report.py STUDY [--references] [--out DIR]
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.report import main

if __name__ == "__main__":
    run(main)
