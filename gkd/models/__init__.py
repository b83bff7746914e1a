"""Architectures: T5 as a Flax Linen module, behind the interface that all other code uses.

In: a configuration and a parameter tree with T5X's names. Out: hidden states, caches, logits, and
closed-form FLOPs. Pure functions of arrays.
"""
