"""Relation-guided representation learning: train a student on noisy labels with a pretrained teacher's graph.

accelerate launch launch/distill.py --loss gce --K 0.001 [--config FILE.yaml] [--noise symmetric] ...
"""

from rmd_dist.cli import parse, run
from rmd_dist.config import DistillConfig


def main() -> None:
    config = parse(DistillConfig)
    from rmd_dist.start import train  # after parsing: --help and mistakes need no torch

    train(config)


if __name__ == "__main__":
    run(main)
