"""Figures of a finished model or a checkpoint, each sample counted once on any number of processes.

accelerate launch launch/evaluate.py runs/distill/NAME [--dataset cifar10] [--out figures.json]
"""

import sys

from rmd_dist.cli import parse, run
from rmd_dist.config import EvaluateConfig


def main() -> None:
    config = parse(EvaluateConfig, sys.argv[1:], positional="checkpoint")
    from pathlib import Path

    from rmd_dist import dist
    from rmd_dist.accelerator import make_accelerator
    from rmd_dist.assess import assess, open_model
    from rmd_dist.files import write_json
    from rmd_dist.printing import print_assessment
    from rmd_dist.start import prepare_data

    accelerator = make_accelerator("no", config.cpu)
    model = open_model(config)
    prepare_data(config.dataset or model.dataset, config.data_root, config.source, config.loader)
    assessment = assess(config, model, accelerator.device)
    if dist.is_main():
        print_assessment(assessment.to_json())
        if config.out:
            Path(config.out).parent.mkdir(parents=True, exist_ok=True)
            write_json(Path(config.out), assessment.to_json())
    dist.shutdown()


if __name__ == "__main__":
    run(main)
