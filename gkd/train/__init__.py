"""The verb `train`: fine-tuning, supervised and on-policy distillation.

In: a task, a student, a teacher, a method and their settings. Out: a run directory with
checkpoints, metrics, samples and a summary, which continues bit for bit after an interruption.
"""
