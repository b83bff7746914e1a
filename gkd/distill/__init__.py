"""Distillation methods as pure functions: divergences, losses, mixing, optimizers, the train step.

In: functions of a student and a teacher, parameters, a batch, a PRNG key. Out: losses, gradients
and the next `TrainState`. No files, no configuration, no global state.
"""
