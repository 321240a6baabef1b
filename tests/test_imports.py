"""Imports point one way: commands -> study, report, engine -> tasks -> evaluation -> data, models, losses...

Read from the source with `ast`, so an import inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "rmd_dist").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])

# Rooms (the modules and packages directly under rmd_dist) from the ground up: each imports from those before
# it alone. A new room is put in its place here.
ROOMS = (
    *("errors", "files", "templates", "config", "parallel"),
    *("losses", "models", "data"),
    *("evaluation", "relations", "tasks"),
    *("runs", "engine"),
    *("study", "report", "audit"),
    *("commands", "__main__", "launch"),
)
LEVEL = {room: level for level, room in enumerate(ROOMS)}

# Rooms that are narrower than their place allows.
ONLY = {
    "losses": {"errors", "parallel"},
    "models": {"errors", "files"},
    "runs": {"config", "errors", "files"},
    # It serves audits and training targets alike, and knows neither.
    "relations": {"errors", "parallel"},
    # It spawns commands.
    "study": {"config", "data", "errors", "files", "losses", "models", "parallel", "runs"},
}


def room_of(path: Path) -> str:
    """`rmd_dist/data/noise.py` -> data, `rmd_dist/errors.py` -> errors, `launch/...` -> launch."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "launch" else parts[1]


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that `node` and what is below it import; `package` resolves relative imports."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parent = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in child.names)


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The imports that run when the module is imported: all but those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import_time(child)


def rooms_used(source: str, package: str = "rmd_dist") -> set[str]:
    """Rooms of rmd_dist that a module uses; `__version__` is the package's own."""
    names = [name.split(".") for name in imported(ast.parse(source), package)]
    return {name[1] for name in names if name[0] == "rmd_dist" and len(name) > 1 and name[1] != "__version__"}


def complaint(room: str, target: str) -> str | None:
    """Why `room` must not import `target`, or None."""
    if room == target:
        return None
    for name in (room, target):
        if name not in LEVEL:
            return f"{name} has no place yet: add it to ROOMS"
    if target not in ONLY.get(room, {target}):
        return f"{room} may import only {sorted(ONLY[room])}, not {target}"
    return f"{room} imports {target}, which stands above it" if LEVEL[target] > LEVEL[room] else None


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def uses_torch_distributed(source: str) -> bool:
    tree = ast.parse(source)
    names = any(f"{name}.".startswith("torch.distributed.") for name in imported(tree, ""))
    return names or any(
        isinstance(node, ast.Attribute)
        and node.attr == "distributed"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        for node in ast.walk(tree)
    )


def uses_accelerator(source: str) -> bool:
    tree = ast.parse(source)
    names = any(
        name.startswith("accelerate.") and name.endswith(".Accelerator") for name in imported(tree, "")
    )
    return names or any(
        isinstance(node, ast.Attribute) and node.attr == "Accelerator" for node in ast.walk(tree)
    )


def imports_ffcv_at_once(source: str, package: str = "") -> bool:
    return any(
        name.split(".")[0] == "ffcv"
        for node in at_import_time(ast.parse(source))
        for name in imported(node, package)
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """No module imports from a room above its own: so there are no circles of rooms either."""
    found = [complaint(room_of(path), room) for room in rooms_used(path.read_text(), package_of(path))]
    assert not [text for text in found if text], path


def test_torch_distributed_is_used_in_one_file() -> None:
    """Collectives and their gradients are in one place."""
    users = {str(path.relative_to(ROOT)) for path in SOURCES if uses_torch_distributed(path.read_text())}
    assert users == {"rmd_dist/parallel/collectives.py"}


def test_accelerator_is_made_in_one_file_and_used_by_the_loop_alone() -> None:
    """Tasks, losses and evaluation know nothing of Accelerate."""
    users = {path.name for path in SOURCES if uses_accelerator(path.read_text())}
    assert users == {"accelerator.py", "trainer.py", "step.py", "graphs.py"}


def test_ffcv_is_imported_only_where_it_is_used() -> None:
    """A machine without ffcv can import every module; `--loader memory` works there."""
    assert not [path for path in SOURCES if imports_ffcv_at_once(path.read_text(), package_of(path))]


def test_the_checks_can_fail() -> None:
    """What the tests above look for is found where it is."""
    assert rooms_used("from rmd_dist import engine, parallel") == {"engine", "parallel"}
    assert rooms_used("from ..models.resnet import x", "rmd_dist.losses") == {"models"}
    assert rooms_used("def f():\n    import rmd_dist.data.noise as n") == {"data"}
    assert complaint("losses", "engine")
    assert complaint("losses", "models")
    assert complaint("study", "engine")
    assert complaint("tasks", "engine")
    assert complaint("utils", "config")
    assert not complaint("engine", "tasks")
    assert uses_torch_distributed("from torch import distributed as d")
    assert uses_torch_distributed("import torch\nx = torch.distributed.get_rank()")
    assert not uses_torch_distributed("import torch\nx = torch.distributions")
    assert uses_accelerator("from accelerate import Accelerator")
    assert uses_accelerator("import accelerate\na = accelerate.Accelerator()")
    assert imports_ffcv_at_once("try:\n    from ffcv.loader import Loader\nexcept ImportError:\n    pass")
    assert not imports_ffcv_at_once("def f():\n    import ffcv")


def test_importing_the_package_loads_nothing_else() -> None:
    """`import rmd_dist` is quick and touches no network: only the standard library is loaded with it."""
    code = (
        "import sys; before = set(sys.modules); import rmd_dist; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(new - sys.stdlib_module_names - {'rmd_dist'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
