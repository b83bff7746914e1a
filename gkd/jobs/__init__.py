"""The verbs of `python -m gkd`: files, logs and loops around the pure functions."""
