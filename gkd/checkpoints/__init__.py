"""Checkpoints: a run's own, hashed and atomic; Hugging Face's and T5X's, read and written."""

from gkd.checkpoints.hugging_face import load_hf, save_hf

__all__ = ["load_hf", "save_hf"]
