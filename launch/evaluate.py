"""Figures of a finished model or a checkpoint, each sample counted once on any number of processes.

The same as `rmd evaluate`.

accelerate launch launch/evaluate.py runs/distill/NAME [--dataset cifar10] [--out figures.json]
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.evaluate import main

if __name__ == "__main__":
    run(main)
