"""GKD: on-policy distillation of sequence-to-sequence language models in JAX."""

__version__ = "0.1.0"
