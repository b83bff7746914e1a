"""Losses of a self-distillation method that stand beside its policy gradient, as pure functions.

In: the settings of one, as a method's `auxiliary`; logits and a rollout with rewards. Out: the sum,
weight and metrics of a loss, as `gkd.distill.losses` gives them. No files, no configuration.
"""
