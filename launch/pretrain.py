"""Relation modelling: pretraining by SimSiam or SimCLR, with no label.

The same as `rmd pretrain`.

accelerate launch launch/pretrain.py [--config FILE.yaml] [--dataset cifar10] [--objective simclr] ...
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.train import pretrain

if __name__ == "__main__":
    run(pretrain)
