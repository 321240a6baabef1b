"""Results of several runs side by side; with --plot also their curves.

The same as `rmd compare`.

python launch/compare.py runs/distill/A runs/distill/B ... [--plot curves.png]
"""

from rmd_dist.commands.compare import main
from rmd_dist.commands.entry import run

if __name__ == "__main__":
    run(main)
