"""The cost of a compiled program: FLOPs, bytes, memory, collectives and a roofline lower bound.

In: the text of a compiled program (XLA's HLO) and the data of a chip. Out: counts for one
execution on one chip, with every loop body counted as often as it runs. `topologies` provides
devices of TPU slices to compile for.
"""
