"""The kernel decorator: its cache follows edits of called kernels, and it works without a cache."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import pytest

from rmd_dist.data.render import jit

INNER = "from rmd_dist.data.render.jit import kernel\n@kernel\ndef inner(x):\n    return x + {value}\n"
OUTER = (
    "from rmd_dist.data.render.jit import kernel\nfrom {name} import inner\n"
    "@kernel\ndef outer(x):\n    return inner(x)\n"
)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_an_edited_callee_in_another_file_is_not_served_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python's own cache sees whole seconds only
    inner, outer = tmp_path / "kernel_inner.py", tmp_path / "kernel_outer.py"
    outer.write_text(OUTER.format(name=inner.stem))
    for value in (1, 2):
        inner.write_text(INNER.format(value=value))
        load(inner)
        assert load(outer).outer(10) == 10 + value
    again = load(outer).outer
    assert again(10) == 12
    assert sum(again.stats.cache_hits.values()) == 1  # and unchanged code is served from it
    del sys.modules[inner.stem], sys.modules[outer.stem]


def test_kernels_work_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def without_cache(function: Any, *, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba, "njit", without_cache)

    @jit.kernel
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8
