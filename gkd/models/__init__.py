"""The interface to models that all other code uses, and T5 behind it as a Flax Linen module.

In: a configuration and a parameter tree with T5X's names. Out: hidden states, caches, logits, and
closed-form FLOPs. Pure functions of arrays.
"""

from gkd.models.scoring import teacher_forced_logits

__all__ = ["teacher_forced_logits"]
