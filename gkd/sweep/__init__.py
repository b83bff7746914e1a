"""The verb `sweep`: runs grids of configurations, and averages their metrics over seeds.

In: a directory, gin files and axes of options. Out: one run directory per cell, logs, and a table
as Markdown and JSON. It starts the other verbs as processes and reads the files that they write.
"""
