"""What people reported, by the commands they typed: tests/launch/reports.sh."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.launched import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1260)  # 25 launches: three minutes on two idle cores
def test_no_example_is_off():
    done = subprocess.run(
        [str(ROOT / "tests/launch/reports.sh")], env=os.environ | {"PYTHON": sys.executable},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
