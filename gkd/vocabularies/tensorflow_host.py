"""Imports TensorFlow and seqio for all of gkd, without their start-up messages, on the CPU only."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Suppresses C++ messages on stderr before logging starts, but shows them after a failure."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            os.dup2(original, 2)
            os.close(original)
            if failed:
                held.seek(0)
                os.write(2, held.read())


with _quiet_stderr():
    import seqio
    import tensorflow as tf

    # TensorFlow only reads text here; with accelerators it would reserve the memory JAX needs.
    for _kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], _kind)

__all__ = ["seqio", "tf"]
