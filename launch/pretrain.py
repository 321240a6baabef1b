"""Relation modelling: SimSiam pretraining, with no label.

accelerate launch launch/pretrain.py [--config FILE.yaml] [--dataset cifar10] [--epochs N] ...
"""

from rmd_dist.cli import parse, run
from rmd_dist.config import PretrainConfig


def main() -> None:
    config = parse(PretrainConfig)
    from rmd_dist.start import train  # after parsing: --help and mistakes need no torch

    train(config)


if __name__ == "__main__":
    run(main)
