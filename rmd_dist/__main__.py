"""`rmd COMMAND ...`; the same as `python -m rmd_dist COMMAND ...`, also under `accelerate launch -m`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rmd_dist import __version__
from rmd_dist.commands.entry import run
from rmd_dist.errors import ConfigError

COMMANDS = {
    "prepare": (
        "prepare:main",
        "write betons of a data set or own images; show what a noise protocol does",
    ),
    "pretrain": ("train:pretrain", "pretraining that sees no label: SimSiam, SimCLR"),
    "distill": ("train:distill", "train a student on noisy labels, with the pretrained teacher's graph"),
    "evaluate": ("evaluate:main", "figures of a finished model or a checkpoint"),
    "audit": ("audit:main", "which labels are wrong, and a page to review them"),
    "predict": ("predict:main", "classes of image files by a finished student"),
    "export": ("export:main", "a model on disk as ONNX"),
    "compare": ("compare:main", "results of several runs side by side"),
    "study": ("study:main", "a grid of runs: the paper's tables, the search for K"),
    "report": ("report:main", "tables and figures of a study"),
}
"""Name -> where it is (imported when it is called for), and what it does."""

OPTIONS = {
    "--presets [NAME]": "names of presets that stand for their files; with NAME the file of one",
    "--version": "the version",
}


def main() -> NoReturn:
    """Find the command and leave the rest of the line to it."""
    run(_main)


def _main() -> Any:
    name, words = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        return print(_help())
    if name == "--version":
        return print(__version__)
    if name == "--presets":
        return _presets(words)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(COMMANDS)}"
        raise ConfigError(f"rmd has no command {name!r}; {hint}")
    program = "python -m rmd_dist" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name
    sys.argv = [f"{program} {name}", *words]  # what usage lines begin with
    module, function = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(f"rmd_dist.commands.{module}"), function)()


def _presets(words: Sequence[str]) -> None:
    """Print the path of the presets named, or where all are and what they are called."""
    from rmd_dist.config.presets import FOLDER, find, names

    print("\n".join([str(find(word)) for word in words] or [f"{FOLDER}:", *names()]))


def _help() -> str:
    """What `rmd --help` prints."""
    about = {name: what for name, (_, what) in COMMANDS.items()} | OPTIONS
    width = max(map(len, about))
    lines = [f"  {name:{width}}  {what}" for name, what in about.items()]
    return "\n".join(
        [
            "usage: rmd COMMAND ...",
            "",
            "Train image classifiers that withstand wrong labels.",
            "",
            *lines,
            "",
            "rmd COMMAND --help tells more. On several GPUs: accelerate launch -m rmd_dist COMMAND ...",
        ]
    )


if __name__ == "__main__":
    main()
