"""One decorator for all numba kernels of this package.

Kernels are serial and release the GIL; callers run them on slices of a batch from a few threads.
numba's own `parallel=True` is not used: under its workqueue layer two loaders at once crash.
Compiled code is kept on disk, so a second process starts in milliseconds instead of seconds.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

_SOURCES: dict[int, frozenset[Path]] = {}  # id of a kernel -> its file and those of the kernels it calls


def kernel(function: F) -> F:
    """Compile `function` at its first call: nogil, division like C's, cached on disk.

    No fastmath: the same bytes come out on every machine. numba's cache notices an edit of the
    function's own file only, and would go on using old code of a kernel called from another file;
    here the files of called kernels count too (those named in the body, and theirs).
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = numba.njit(function, cache=True, **options)
    except RuntimeError:  # numba found no writable folder for its cache; compile in every process then
        compiled = numba.njit(function, **options)
    called = [function.__globals__.get(name) for name in function.__code__.co_names]
    files = frozenset({Path(inspect.getfile(function))}.union(*(_SOURCES.get(id(k), ()) for k in called)))
    _SOURCES[id(compiled)] = files
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None:
        index._source_stamp = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).digest()
    return compiled  # type: ignore[no-any-return]
