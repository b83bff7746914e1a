"""Divergences, losses, λ-mixing and the train step: pure functions of arrays."""
