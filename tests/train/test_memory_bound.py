"""The lower bound of a step's memory, beside counts by hand, and what it refuses."""

import jax
import pytest

from gkd.cli import command_line
from gkd.train import memory_bound
from tests.paths import TINY
from tests.step_programs import program_of
from tests.teacher_prompts import OVERRIDES


def program(*overrides):
    return program_of(*overrides, devices=jax.devices()[:1])


PARAMETERS = 8432  # of tiny.gin, as its dry run prints


def test_the_bound_is_the_states_and_the_largest_attention():
    held = 4 * PARAMETERS * 4  # parameters, gradients and AdamW's two moments, float32
    attention = 4 * 2 * 16 * 24**2  # float32 · heads · rows · inputs²
    assert memory_bound.needed(program()) == pytest.approx(held + attention, rel=1e-3)
    four = memory_bound.needed(program("MICROBATCHES=4"))
    assert four == pytest.approx(held + attention / 4, rel=1e-3)
    long = memory_bound.needed(program("TARGET_LENGTH=500"))
    assert long == pytest.approx(held + 4 * 2 * 16 * 500**2, rel=1e-3)
    blocks = memory_bound.needed(program("TARGET_LENGTH=1000"))  # of 125 queries
    assert blocks == pytest.approx(held + 4 * 2 * 16 * 125 * 1000, rel=1e-3)


def test_a_longer_prompt_of_the_teacher_counts():
    distil = ("DIVERGENCE=@divergences.forward_kl", "TEACHER_MODEL=%STUDENT_MODEL")
    plain = memory_bound.needed(program(*distil))
    long = (*OVERRIDES, "teacher_inputs.with_teacher_inputs.length=500")
    for buckets, rows in ((None, 16), ("parts", 4)):  # that are certainly encoded at a time
        settings = (*distil, *long, f"LENGTH_BUCKETS={buckets!r}", "BATCH_SIZE=16")
        more = memory_bound.needed(program(*settings)) - plain
        assert more == pytest.approx(4 * 2 * (rows * 500**2 - 16 * 24**2), rel=1e-9)
    assert memory_bound.needed(program(*long)) == memory_bound.needed(program()), "no teacher"


def test_a_step_that_does_not_fit_is_refused_before_it_takes_memory(capsys):
    long = program("TARGET_LENGTH=65536", "BATCH_SIZE=4096")
    with pytest.raises(ValueError, match=r"needs at least 275 GB.*TARGET_LENGTH 65536"):
        memory_bound.check_fits(long)  # 4 · 2 · 4096 · 128 · 65536 bytes
    assert memory_bound.remark(long).count("\n") == 1
    assert memory_bound.remark(program()) == ""
    options = [f"--gin_file={TINY}", "--gin.MODEL_DIR='x'", "--gin.TARGET_LENGTH=65536"]
    options += ["--gin.BATCH_SIZE=4096"]
    assert command_line.main(["train", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gkd: error: the step needs at least 275 GB") and error.count("\n") == 1
