"""An audit of a data set from its name to probabilities: encoder, features, detection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.audit.detect import Audit, features, judge
from rmd_dist.audit.encoder import open_encoder
from rmd_dist.audit.join import joined
from rmd_dist.audit.subject import Subject, check_classes, open_subject
from rmd_dist.config import AuditConfig
from rmd_dist.config.checks import validate
from rmd_dist.data.sources.beton import Progress
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.features import cached_features
from rmd_dist.parallel.compute import Compute
from rmd_dist.parallel.processes import workers_per_rank
from rmd_dist.runs.folder import read_manifest
from rmd_dist.tasks.teacher import FrozenEncoder


@dataclass(frozen=True)
class ImageAudit:
    """What an audit of a data set found, and of what."""

    subject: Subject
    audit: Audit
    """Of all images that have a label, `subject.rows`; on every rank."""
    encoder: FrozenEncoder
    features: Tensor
    """(n, D) of those images, on the CPU."""
    margins: npt.NDArray[np.float32] | None = None
    """(n,), from training; nan where an image was not trained on."""

    @property
    def id(self) -> str:
        """What decisions refer to: these images with these labels."""
        return self.subject.fingerprint()


def images(dataset: str, **settings: Any) -> ImageAudit:
    """Audit the labels of a data set's images: of a folder, a table or a known name.

    `settings` are those of `rmd audit`, such as model, weights, teacher, image_size, quick (see AuditConfig).
    The images are prepared and their features cached below `root` ("data"). Raises ConfigError for what
    cannot be audited.
    """
    config = validate(AuditConfig(dataset=dataset, **settings))
    device = torch.device("cuda" if torch.cuda.is_available() and not config.cpu else "cpu")
    return audit_images(config, device)


def audit_images(
    config: AuditConfig,
    device: torch.device,
    progress: Progress | None = None,
    check: Callable[[Subject, FrozenEncoder], None] | None = None,
) -> ImageAudit:
    """The audit that `config`, which is validated, asks for. Collective.

    `check` is called before the work begins, and may refuse it.
    """
    root = Path(config.root)
    source = Path(config.source) if config.source else None
    subject = open_subject(config.dataset, root, source, config.loader, config.noise)
    check_classes(subject)
    margins = read_margins(Path(config.run), subject) if config.run else None
    encoder = open_encoder(config, subject.datasets[0].info)
    if check:
        check(subject, encoder)
    found = encode(config, subject, encoder, device, progress)
    if len(subject.rows) < len(subject):
        found = found[torch.from_numpy(subject.rows)]
    if progress:
        progress(f"comparing {len(found)} labels with features by {config.folds} regressions", 0, 0)
    rules: dict[str, Any] = {"precision": config.precision, "budget": config.budget}
    own = parallel.share(len(found), parallel.rank(), parallel.world_size())
    audit = features(
        found[own].to(device),
        subject.given[subject.rows][own],
        num_classes=len(subject.classes),
        folds=config.folds,
        quick=config.quick,
        **rules,
    )
    if margins is not None:
        audit = with_margins(audit, margins[subject.rows], **rules)
    return ImageAudit(subject, audit, encoder, found, None if margins is None else margins[subject.rows])


def encode(
    config: AuditConfig,
    subject: Subject,
    encoder: FrozenEncoder,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """Features (N, D) of all images of a subject, on the CPU. Collective."""
    compute = Compute(device, workers=workers_per_rank(config.workers))
    compute.placed(encoder.module)
    return cached_features(
        encoder.module,
        encoder.sha256,
        subject.datasets,
        Path(config.root),
        compute,
        batch_size=config.batch_size,
        progress=progress,
    )


def with_margins(
    audit: Audit, margins: npt.NDArray[np.float32], precision: float | None = None, budget: int | None = None
) -> Audit:
    """The audit with the margins (n,) of training joined to the features' probabilities."""
    p_given = np.where(audit.judged, joined(audit.p_given, margins), 1.0)
    own = np.arange(len(p_given)), audit.given
    # The other classes share what is left as before; where nothing was left, as the image alone says.
    others = (audit.posterior + 1e-9 * audit.clean) * audit.known[:, audit.fold].T
    others[own] = 0
    posterior = others * ((1 - p_given) / np.maximum(others.sum(1), 1e-30))[:, None]
    posterior[own] = p_given
    return judge(
        given=audit.given,
        posterior=posterior.astype(np.float32),
        p_given=p_given,
        noise_matrix=audit.noise_matrix,
        clean=audit.clean,
        fold=audit.fold,
        known=audit.known,
        settings=audit.settings,
        precision=precision,
        budget=budget,
    )


def read_margins(run: Path, subject: Subject) -> npt.NDArray[np.float32]:
    """(N,) of the subject: the mean margins of a finished distillation; nan where it did not train.

    Raises ConfigError if the run has none, or was trained on other images or labels.
    """
    manifest, file = read_manifest(run), run / "margins.npy"
    if not file.exists():
        raise ConfigError(f"{run} has no margins.npy; give the folder of a distillation that has finished")
    for key, now in (("data_sha256", subject.datasets[0].sha256), ("labels_sha256", subject.labels_sha256())):
        if manifest.get(key) != now:
            what = "images" if key == "data_sha256" else "labels"
            raise ConfigError(
                f"{run} was trained on other {what} than are audited here; give the --dataset and --noise or "
                "--labels that it had"
            )
    try:
        margins = np.load(file, allow_pickle=False)
        if margins.shape != (len(subject.datasets[0]),) or margins.dtype != np.float32:
            raise ValueError(f"it holds {margins.dtype} {margins.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{file} is damaged ({error!s:.100}); train anew, or leave --run out") from error
    rest = np.full(len(subject) - len(margins), np.nan, np.float32)
    return np.concatenate([margins, rest])
