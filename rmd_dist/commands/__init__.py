"""What people type: each command parses, builds, runs and closes."""

from __future__ import annotations

import argparse
from pathlib import Path

from rmd_dist.errors import ConfigError
from rmd_dist.files import expanded


def path(text: str) -> Path:
    """An argument that is a path, for argparse."""
    try:
        return Path(expanded(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
