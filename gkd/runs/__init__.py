"""Services that the verbs share: run directories, leases, logs, progress, signals, models.

In: a MODEL_DIR, checkpoints, events of a running job. Out: records and logs in the run directory,
loaded models, lines on the terminal, and a stop request when a signal arrives.
"""
