"""Human labels of CIFAR-10N and CIFAR-100N (Wei et al. 2022), read without executing pickles.

The published files are zip archives as torch.save writes them: `*/data.pkl` is a pickled dict of
integer arrays, one for each annotation, and `clean_label`, by which a file is matched to the data set.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.data.sources.archive import load_pickled_dict
from rmd_dist.errors import ConfigError
from rmd_dist.files import regular_size

FILES = {"cifar10": "CIFAR-10_human.pt", "cifar100": "CIFAR-100_human.pt"}
NAMES = {
    "cifar10": ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label"),
    "cifar100": ("noisy_label",),
}
HOME = "http://noisylabels.com"
MAX_BYTES = 64 << 20  # of the unpacked pickle; the published one of CIFAR-10 has 2.4 MB


def load_human_labels(
    dataset: str, name: str, clean: npt.NDArray[np.int64], num_classes: int, root: Path
) -> npt.NDArray[np.int64]:
    """Annotation `name` of the training images whose clean labels are `clean` (N,).

    `root` is the label file or the folder it lies in. A data set that is shorter than the file takes
    its first N labels. Raises ConfigError when there is no such annotation or file, or when the file's
    own clean labels are not `clean`: then it belongs to another data set or to another order.
    """
    if dataset not in FILES:
        raise ConfigError(
            f"there are no human labels of {dataset}; noise human:NAME needs {' or '.join(FILES)}"
        )
    if name not in NAMES[dataset]:
        allowed = ", ".join(f"human:{n}" for n in NAMES[dataset])
        raise ConfigError(f"noise protocol human:{name} is unknown for {dataset}; choose one of {allowed}")
    try:
        path = root if root.is_file() else root / FILES[dataset]
    except OSError as error:  # a folder that may not be looked into
        raise ConfigError(f"{root} cannot be read: {error}") from error
    content = _read(path)
    own, labels = (_labels(content, key, num_classes, path) for key in ("clean_label", name))
    count = len(clean)
    if len(own) != len(labels) or count > len(own) or not np.array_equal(own[:count], clean):
        raise ConfigError(
            f"{path} is for other images or another order: its clean labels are not those of {dataset}; "
            f"take {FILES[dataset]} from {HOME}, and images in the official order"
        )
    return labels[:count]


def _read(path: Path) -> dict[str, Any]:
    try:
        regular_size(path)
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.rpartition("/")[2] == "data.pkl"]
            if len(members) != 1 or members[0].file_size > MAX_BYTES:
                raise zipfile.BadZipFile("no single data.pkl of a sensible size in it")
            payload = archive.read(members[0])
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; get {path.name} from {HOME} and put it there") from None
    except Exception as error:  # a damaged zip can raise nearly anything
        raise ConfigError(
            f"{path} is damaged or no label file ({error}); get it afresh from {HOME}"
        ) from error
    return load_pickled_dict(payload, str(path))


def _labels(content: dict[str, Any], key: str, num_classes: int, path: Path) -> npt.NDArray[np.int64]:
    labels = content.get(key)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not labels.size:
        raise ConfigError(f"{path} has no array {key}: not a label file of this data set; see {HOME}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ConfigError(f"{path}: {key} has labels outside 0 to {num_classes - 1}; see {HOME}")
    return labels.astype(np.int64)
