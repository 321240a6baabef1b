"""Wrong labels on purpose, and a loss that withstands them: GCE beside cross-entropy, on digits.

python examples/noisy_labels.py --protocol pairflip --rate 0.4
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from rmd_dist.data.labels import make_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.losses import build_loss

parser = argparse.ArgumentParser()
parser.add_argument("--protocol", default="symmetric")
parser.add_argument("--rate", type=float, default=0.4)
arguments = parser.parse_args()

train, test = (open_dataset("digits", s, root=Path("data"), loader="memory") for s in ("train", "test"))
labels = make_labels(train, arguments.protocol, arguments.rate, seed=0)
print(f"{labels.manifest['realised_rate']:.1%} of {len(labels.given)} labels are wrong")
x, test_x = (torch.from_numpy(s.images[..., 0]).flatten(1) / 255 for s in (train, test))
y, test_y = torch.from_numpy(labels.given), torch.from_numpy(test.labels)

for name in ("ce", "gce"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = build_loss(name, num_classes=10)
    for _ in range(30):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
    print(f"{name}: test accuracy {(model(test_x).argmax(1) == test_y).float().mean():.1%}")
