"""A finished run's model in timm: its frozen features of images it has never seen feed a kNN classifier.

python examples/timm_model.py [runs/pretrain/NAME]    (default: one trained on CIFAR-10 without labels)
"""

import sys
from pathlib import Path

import timm
from sklearn.neighbors import KNeighborsClassifier

import rmd_dist.models  # noqa: F401  (tells timm of the small ResNets)
from rmd_dist.config.presets import FOLDER
from rmd_dist.data.prepare import open_dataset
from rmd_dist.evaluation.predict import predict

folder = sys.argv[1] if sys.argv[1:] else FOLDER / "paper" / "reduced" / "teacher"
model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
train, test = (open_dataset("digits", s, root=Path("data"), loader="memory") for s in ("train", "test"))
features, queries = (predict(model, dataset).numpy() for dataset in (train, test))  # at the model's own size
nearest = KNeighborsClassifier(5, metric="cosine").fit(features, train.labels)
accuracy = nearest.score(queries, test.labels)
print(f"{features.shape[1]} features of handwritten digits: kNN accuracy {accuracy:.1%}")
