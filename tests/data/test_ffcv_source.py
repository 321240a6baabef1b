"""ffcv leaves the rest of the process alone; what happens without it or with a foreign beton."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rmd_dist.config import ViewConfig
from rmd_dist.data.dataset import Dataset, dataset_info
from rmd_dist.data.loader import Loader, build_loader
from rmd_dist.data.sources import ffcv as ffcv_source
from rmd_dist.errors import ConfigError
from tests.data.batches import GLOBAL, read, skip_without_ffcv


def test_training_threads_stay_what_they_were(build: Callable[..., Loader]) -> None:
    """In this thread and in new ones, such as autograd's, which take the process-wide number."""
    seen: list[int] = []
    before, wanted = torch.get_num_threads(), 3
    torch.set_num_threads(wanted)
    try:
        read(build(kind="ffcv", augment=ViewConfig()))
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert [torch.get_num_threads(), *seen] == [wanted, wanted]
        assert importlib.import_module("ffcv.pipeline.compiler").Compiler.is_enabled
    finally:
        torch.set_num_threads(before)


def test_importing_ffcv_changes_nothing_else() -> None:
    """Its import alone sets torch to one thread; a fresh process, since that happens once."""
    skip_without_ffcv()
    code = (
        "import torch, numba.typed; torch.set_num_threads(3); kept = numba.typed.Dict;"
        "from rmd_dist.data.sources.ffcv import _ffcv; _ffcv();"
        "from ffcv.pipeline.compiler import Compiler;"
        "assert torch.get_num_threads() == 3 and numba.typed.Dict is kept and Compiler.is_enabled"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_missing_ffcv_names_the_remedies(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ffcv_source._ffcv.cache_clear()
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(ConfigError, match=r"scripts/install-system\.sh.*--loader memory"):
        build_loader(dataset, augment=None, batch_size=GLOBAL, seed=0)
    ffcv_source._ffcv.cache_clear()


def test_a_beton_of_other_images_is_refused(dataset: Dataset) -> None:
    skip_without_ffcv()
    other = replace(dataset, info=dataset_info("digits"))
    with pytest.raises(ConfigError, match="no raw 16 x 16 images"):
        build_loader(other, augment=None, batch_size=2, seed=0)
