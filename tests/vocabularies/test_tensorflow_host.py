"""TensorFlow on the host only, without its greetings."""

import os
import subprocess
import sys

from gkd.vocabularies.tensorflow_host import tf
from tests.paths import REPOSITORY


def test_no_accelerator_is_tensorflows():
    assert tf.config.get_visible_devices("GPU") == tf.config.get_visible_devices("TPU") == []


def test_what_a_failing_import_wrote_is_shown():
    program = "import sys; sys.modules['seqio'] = None\nimport gkd.vocabularies.tensorflow_host"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 1 and "seqio" in done.stderr
