"""The paper's grid: run files traced at full size, a real step of every method at a reduced width.

The ordinary suite runs one step of each kind; `-m slow` runs every method on every task.
"""

import contextlib
import itertools
import math

import jax
import numpy as np
import pytest

from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.parallel import mesh as meshes
from gkd.train.step_program import StepProgram
from tests.configs import grid, traces

SIZES = {"emb_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 16}
SIZES |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
REDUCED = [f"{s}/t5.T5Config.{k}={v}" for s in ("small", "xl") for k, v in SIZES.items()]
REDUCED += ["INPUT_LENGTH=8", "TARGET_LENGTH=4", "BATCH_SIZE=2", "DRY_RUN=True"]
REDUCED += ["LEARNING_RATE=0.01", "WARMUP_STEPS=0", "COOLDOWN_STEPS=0"]
METHODS = [name.rpartition("/")[2].removesuffix(".gin") for name in grid.names("methods")]
# The programs with most in them run every time: rewards of texts, a memory.
ALWAYS = {("gkd_rl", "gsm8k"), ("distillm", "flan")}
RESIZED = {"STUDENT_MODEL", "TEACHER_MODEL", "INPUT_LENGTH", "TARGET_LENGTH", "BATCH_SIZE"}
SEEN = {"sft": 0, "seqkd": 0, "supervised_kd": 0, "gkd": 1, "gkd_rl": 1, "self_distillation": 1}
SEEN |= {"skew_kl": 1, "sampled_token_reverse_kl": 1}  # share of rows that the student wrote


def step_files(method, task):
    return (f"configs/runs/{task}/small.gin", f"configs/methods/{method}.gin")


def test_a_run_file_of_every_kind_traces_at_full_size(real_vocabulary):
    """Every divergence, teacher and task among the run files; every program with `-m slow`."""
    found = traces.programs(sweeps=False)
    assert len(found) > 20

    def facts(program):
        # The length of its inputs tells one task from another.
        return [(name, program[name]) for name in ("DIVERGENCE", "TEACHER_MODEL", "INPUT_LENGTH")]

    some = traces.of_every_kind(found, facts)
    assert 3 < len(some) < 6
    for command, program in some.values():
        traces.trace(command, program)


@pytest.mark.slow
def test_every_run_file_traces_at_full_size(real_vocabulary):
    for command, program in traces.programs(sweeps=False).values():
        traces.trace(command, program)


@contextlib.contextmanager
def real_step(monkeypatch):
    """Makes a dry run take one real step, from random parameters and tokens; yields its results."""
    results = {}

    def run(program):
        generator = np.random.default_rng(0)

        def random(leaf):
            if leaf.dtype.kind in "iub":
                return np.zeros(leaf.shape, leaf.dtype)
            return (0.1 * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

        def placed(abstract, make):
            values = jax.tree.map(make, abstract)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            return jax.device_put(values, shardings)

        mesh, state, expert = program.mesh, program.state.abstract, program.teacher
        zeros = placed(state, lambda leaf: np.zeros(leaf.shape, leaf.dtype))
        begun = zeros.replace(params=placed(state.params, random))
        before = jax.tree.map(np.asarray, begun.params)
        teacher = expert and jax.tree.map(random, expert.shapes)
        tokens = jax.tree.map(
            lambda leaf: generator.integers(3, 32000, leaf.shape).astype(leaf.dtype), program.batch
        ).replace(example_weights=np.ones(program.batch.example_weights.shape, np.float32))
        after, metrics = program.compile()(begun, teacher, meshes.place_batch(tokens, mesh))
        pairs = jax.device_get(metrics)
        results.update({k: float(v) / max(float(w), 1e-30) for k, (v, w) in pairs.items()})
        moved = jax.tree.map(lambda x, y: bool((x != np.asarray(y)).any()), before, after.params)
        results["moved"] = np.mean(jax.tree.leaves(moved))
        return {}

    monkeypatch.setattr(StepProgram, "describe", run)
    # One device: what eight change is tested elsewhere, and compiling for them takes twice as long.
    one = meshes.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(meshes, "make_mesh", lambda model, devices: one)
    yield results


def take_step(method, task, monkeypatch):
    overrides = [*REDUCED, "MODEL_DIR='none'"]
    overrides += ["TEACHER_OUTPUTS='none.jsonl'"] if method == "seqkd" else []
    with real_step(monkeypatch) as results:
        command_line.configure(Command("train", step_files(method, task), tuple(overrides)))()
    assert all(math.isfinite(value) for value in results.values()), results
    assert results["moved"] > 0.9 and results["skipped"] == 0, results
    if method in SEEN:
        assert results["on_policy"] == SEEN[method]
    if method in ("sft", "seqkd"):
        assert abs(results["loss"] - math.log(32128)) < 0.1  # small parameters: near uniform


@pytest.mark.parametrize(
    ("method", "task"),
    [
        pytest.param(*pair, marks=[] if pair in ALWAYS else pytest.mark.slow)
        for pair in itertools.product(METHODS, grid.PAPER)
        if pair[0] not in grid.PRIVILEGED | grid.REWARDED
    ],
)
def test_a_real_step(method, task, real_vocabulary, monkeypatch):
    take_step(method, task, monkeypatch)
