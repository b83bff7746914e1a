"""Checkpoints: what is saved, verified and restored."""
