"""Checkpoints of runs (hashed and atomic), of Hugging Face and of T5X: readers and writers.

In: a folder of any of the formats, or parameters. Out: named tensors that are read onto devices
one at a time, or new folders; damage and misfits are one-line errors.
"""

from gkd.checkpoints.hugging_face import load_hf, save_hf
from gkd.checkpoints.t5x_format import load_t5x, save_t5x

__all__ = ["load_hf", "load_t5x", "save_hf", "save_t5x"]
