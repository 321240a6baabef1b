"""Relation-guided representation learning: a student on noisy labels, with a pretrained teacher's graph.

The same as `rmd distill`.

accelerate launch launch/distill.py --loss gce --K 0.001 [--config FILE.yaml] [--noise symmetric] ...
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.train import distill

if __name__ == "__main__":
    run(distill)
