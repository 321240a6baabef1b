"""What an encoder knows after minutes of one CPU core: kNN on CIFAR-10, by objective, views, batch size, lr.

    python benchmarks/views.py --data-root data [--seconds 240] [--recipe simclr,2,256,0.12] [--seeds 0 1 2]

A recipe is objective, views of an image (more than 2 with SimSiam: FastSiam), batch size, learning rate. The
network is that of the reduced presets, the cosine goes over the CPU seconds; kNN is that of all test images
among 20 000 others.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import nn

from rmd_dist.config import PretrainConfig, SimCLRConfig, SimSiamConfig, ViewConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.loader import build_loader
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.evaluation.measures import knn_accuracy
from rmd_dist.evaluation.predict import predict
from rmd_dist.models.export import create
from rmd_dist.tasks.parts import OBJECTIVES

BANK = 20_000
NEIGHBOURS = (10, 200)
RECIPES = (
    "simsiam,2,256,0.12",
    "simsiam,2,64,0.03",
    "simsiam,4,128,0.06",
    "simclr,2,256,0.12",
    "simclr,4,128,0.06",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", action="append", help="OBJECTIVE,VIEWS,BATCH,LR")
    parser.add_argument("--seconds", type=float, default=240.0, help="CPU time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--source", type=Path)
    parser.add_argument("--loader", choices=("ffcv", "memory"), default="memory")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (
        open_dataset("cifar10", split, root=args.data_root, source=args.source, loader=args.loader)
        for split in ("train", "test")
    )
    print(
        "| objective | views | batch | lr | seed | steps | images | "
        + " | ".join(f"kNN {k}" for k in NEIGHBOURS)
        + " |"
    )
    print("|---" * (7 + len(NEIGHBOURS)) + "|")
    for recipe in args.recipe or RECIPES:
        objective, views, batch, lr = recipe.split(",")
        for seed in args.seeds:
            encoder, steps = trained(train, objective, int(views), int(batch), float(lr), seed, args.seconds)
            found = [f"{100 * accuracy:.1f}" for accuracy in known(encoder, train, test)]
            row = [objective, views, batch, lr, str(seed), str(steps), str(steps * int(batch)), *found]
            print("| " + " | ".join(row) + " |", flush=True)


def trained(
    train: Dataset, objective: str, views: int, batch_size: int, lr: float, seed: int, seconds: float
) -> tuple[nn.Module, int]:
    """(the encoder, steps made) after `seconds` of CPU time."""
    torch.manual_seed(seed)
    preprocess = Preprocess.for_dataset(train.info)
    config = PretrainConfig(simsiam=SimSiamConfig(512, 128), simclr=SimCLRConfig(hidden_dim=512))
    encoder = create("resnet18_cifar_w16_s2", 0, preprocess.to_cfg())
    model, loss = OBJECTIVES[objective](config, encoder)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    loader = build_loader(train, augment=ViewConfig(count=views), batch_size=batch_size, seed=seed)
    start, steps, epoch = time.process_time(), 0, 0
    with loader:
        while True:
            for batch in loader.epoch(epoch):
                share = (time.process_time() - start) / seconds
                if share >= 1:
                    return model.encoder.eval(), steps
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * share))
                output = model(*(preprocess(view) for view in batch.views))
                optimizer.zero_grad(set_to_none=True)
                loss(output).backward()
                optimizer.step()
                steps += 1
            epoch += 1


def known(encoder: nn.Module, train: Dataset, test: Dataset) -> list[float]:
    """kNN accuracy in [0, 1] by each of NEIGHBOURS."""
    bank, queries = predict(encoder, train, range(BANK)), predict(encoder, test)
    device = torch.device("cpu")
    return [
        knn_accuracy(bank.float(), train.labels[:BANK], queries.float(), test.labels, k, 0.1, device)
        for k in NEIGHBOURS
    ]


if __name__ == "__main__":
    main()
