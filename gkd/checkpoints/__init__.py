"""Checkpoints: a run's own, hashed and atomic; Hugging Face's and T5X's, read and written."""

from gkd.checkpoints.hugging_face import load_hf, save_hf
from gkd.checkpoints.t5x_format import load_t5x, save_t5x

__all__ = ["load_hf", "load_t5x", "save_hf", "save_t5x"]
