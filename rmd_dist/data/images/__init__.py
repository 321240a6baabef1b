"""Data sets of anybody's image files: found, read, and prepared once as betons."""
