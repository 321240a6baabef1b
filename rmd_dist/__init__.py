"""rmd-dist: classifiers that withstand wrong labels (RMDNet), on one GPU or many."""

__version__ = "0.1.0"
