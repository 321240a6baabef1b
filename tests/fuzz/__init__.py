"""Hostile and broken input: every reader of the package against spoilt files; `python -m tests.fuzz`."""
