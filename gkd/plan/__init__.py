"""The verb `plan`: compiles a run's programs for a TPU slice that need not exist.

In: a run's configuration and the name of a topology. Out: resident and peak HBM per chip, FLOPs,
collectives and roofline lower bounds of every program, as text and JSON, with advice where a
program does not fit.
"""
