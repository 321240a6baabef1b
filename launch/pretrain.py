"""Relation modelling: SimSiam pretraining, with no label.

The same as `rmd pretrain`.

accelerate launch launch/pretrain.py [--config FILE.yaml] [--dataset cifar10] [--epochs N] ...
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.train import pretrain

if __name__ == "__main__":
    run(pretrain)
