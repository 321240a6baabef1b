"""The relation-graph loss in a training loop of your own: a student, and a frozen encoder that saw no labels.

python examples/relation_loss.py
"""

from pathlib import Path

import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from rmd_dist.data.labels import make_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.losses import RelationLoss

train, test = (open_dataset("digits", s, root=Path("data"), loader="memory") for s in ("train", "test"))
x, test_x = (torch.from_numpy(s.images[..., 0]).flatten(1) / 255 for s in (train, test))
y = torch.from_numpy(make_labels(train, "pairflip", rate=0.4, seed=0).given)

# Any images -> features (B, D) will do as the encoder; here it is the distances to 64 clusters.
clusters = torch.from_numpy(KMeans(64, n_init=1, random_state=0).fit(x).cluster_centers_).float()
relation = RelationLoss()

for K in (0.0, 0.1):
    torch.manual_seed(0)
    student, classifier = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)), nn.Linear(64, 10)
    optimizer = torch.optim.SGD([*student.parameters(), *classifier.parameters()], lr=0.1, momentum=0.9)
    for _ in range(25):
        for batch in torch.randperm(len(x)).split(64):
            features, teacher = student(x[batch]), -torch.cdist(x[batch], clusters)
            loss = (
                F.cross_entropy(classifier(features.relu()), y[batch]) + K * relation(features, teacher).loss
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    hits = classifier(student(test_x).relu()).argmax(1).numpy() == test.labels
    print(f"K = {K:g}: test accuracy {hits.mean():.1%}")
