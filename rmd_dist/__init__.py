"""rmd-dist: classifiers that withstand wrong labels (RMDNet), on one GPU or many."""

import os

__version__ = "0.1.0"

SPIN_COUNT = "10000"
"""Rounds that a thread of torch's OpenMP (libgomp) spins before it sleeps, where the user sets nothing."""

# libgomp's own 300 000 rounds outlast a time slice: beside busy processes the threads of one step keep each
# other from the cores. It reads the variable when torch is loaded, so this must come first. A count would
# override a wait policy, which is the user's own choice too.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
