"""The verb `evaluate`: measures a student, and a teacher beside it, on a split of a task.

In: checkpoints and a task. Out: a JSON file with metrics, divergences and provenance, and a JSONL
file with every completion. Training evaluates through the same code.
"""
