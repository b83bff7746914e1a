"""The paper's grid: traced at full size, and a real step of every method at a reduced width.

The ordinary suite traces a few programs that hold every value of every macro between them, and runs
one of each kind; `-m slow` traces every distinct program and runs every method on every task.
"""

import contextlib
import dataclasses
import itertools
import math

import gin
import jax
import numpy as np
import pytest

from gkd.data import vocabularies
from gkd.jobs import command_line, step_program
from gkd.jobs import train as train_job
from gkd.jobs.command_line import Command
from gkd.parallel import mesh as meshes
from tests.configs import grid

# Of the published checkpoints.
PARAMETERS = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}
# One layer's trace for all of them.
STACKED = ("STUDENT_STACKED=True", "TEACHER_STACKED=True", "DRY_RUN=True", "MODEL_DIR='none'")
SIZES = {"emb_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 16}
SIZES |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
REDUCED = [f"{s}/t5.T5Config.{k}={v}" for s in ("small", "xl") for k, v in SIZES.items()]
REDUCED += ["INPUT_LENGTH=8", "TARGET_LENGTH=4", "BATCH_SIZE=2", "DRY_RUN=True"]
REDUCED += ["LEARNING_RATE=0.01", "WARMUP_STEPS=0", "COOLDOWN_STEPS=0"]
METHODS = [name.rpartition("/")[2].removesuffix(".gin") for name in grid.names("methods")]
# One of each kind of program runs every time: a coin, rewards of texts, a memory.
ALWAYS = {("imitkd", "wmt14_en_de"), ("gkd_rl", "gsm8k"), ("distillm", "flan")}
RESIZED = {"STUDENT_MODEL", "TEACHER_MODEL", "INPUT_LENGTH", "TARGET_LENGTH", "BATCH_SIZE"}
SEEN = {"sft": 0, "seqkd": 0, "supervised_kd": 0, "gkd": 1, "gkd_rl": 1, "self_distillation": 1}
SEEN |= {"skew_kl": 1, "sampled_token_reverse_kl": 1}  # share of rows that the student wrote


@pytest.fixture
def real_vocabulary(shared, monkeypatch):
    monkeypatch.setenv("GKD_VOCABULARY", str(shared / "data/t5_vocab/spiece.model"))
    yield
    gin.clear_config()


def distinct_programs():
    """Commands by name, one for each program of the paper's runs and sweeps, and what it is."""
    commands = {name: Command("train", (name,), ()) for name in grid.paper_runs()}
    for name in grid.names("sweeps", "common"):
        for cell in grid.cells(name):
            if cell.run is None:
                commands[f"{name}:{cell.name}"] = grid.command_of(cell)
    found = {}
    for name, command in commands.items():
        program = grid.program(command_line.read_configuration(command))
        if program["STUDENT_MODEL"] != "None":  # the small sweeps need their runs' checkpoints
            found.setdefault(tuple(program.items()), name)
    return {name: (commands[name], dict(program)) for program, name in found.items()}


def trace(command, program):
    """Traces a program's whole step; checks its models' sizes."""
    overrides = [*command.overrides, *STACKED]
    if "xxl" in program["REWARD_ARCHITECTURE"]:
        overrides.append("xxl/t5.T5Config.stacked_layers=True")
    made = command_line.configure(dataclasses.replace(command, overrides=tuple(overrides)))()
    assert "loss" in made["metrics"]
    student, teacher = program["STUDENT_MODEL"], program["TEACHER_MODEL"]
    want = {"student": PARAMETERS[size_of(student)]}
    if program["DIVERGENCE"] != "None" and program["ALPHA"] != "0.0":
        own = teacher == "%STUDENT_MODEL"
        want["teacher"] = PARAMETERS[size_of(student if own else teacher)]
    if "entailment" in program["REWARD"]:
        want["reward model"] = PARAMETERS[size_of(program["REWARD_ARCHITECTURE"])]
    assert made["parameters"] == want


def size_of(reference):
    return reference.removeprefix("@").partition("/")[0]


def step_files(method, task):
    return (f"configs/runs/{task}/small.gin", f"configs/methods/{method}.gin")


def test_programs_that_hold_every_value_trace_at_full_size(real_vocabulary):
    programs = distinct_programs()
    assert len(programs) > 60
    stepped = [Command("train", step_files(*pair), ()) for pair in sorted(ALWAYS)]
    held = {
        item
        for command in stepped
        for item in grid.program(command_line.read_configuration(command)).items()
        if item[0] not in RESIZED
    }
    few = grid.covering({name: program for name, (_, program) in programs.items()}, held)
    assert 5 < len(few) < 12
    for name in few:
        trace(*programs[name])


@pytest.mark.slow
def test_every_distinct_program_traces_at_full_size(real_vocabulary):
    for command, program in distinct_programs().values():
        trace(command, program)


@contextlib.contextmanager
def real_step(monkeypatch):
    """Makes a dry run take one real step, from random parameters and tokens; yields its results."""
    results = {}

    def run(step, method, state, expert, judge, batch):
        generator = np.random.default_rng(0)

        def random(leaf):
            if leaf.dtype.kind in "iub":
                return np.zeros(leaf.shape, leaf.dtype)
            return (0.1 * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

        def placed(abstract, make):
            values = jax.tree.map(make, abstract)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            return jax.device_put(values, shardings)

        mesh = jax.tree.leaves(state)[0].sharding.mesh
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        zeros = placed(state, lambda leaf: np.zeros(leaf.shape, leaf.dtype))
        begun = zeros.replace(params=placed(state.params, random))
        before = jax.tree.map(np.asarray, begun.params)
        teacher = expert and jax.tree.map(random, step_program.abstract_params(expert))
        tokens = jax.tree.map(
            lambda leaf: generator.integers(3, 32000, leaf.shape).astype(leaf.dtype), batch
        ).replace(example_weights=np.ones(batch.example_weights.shape, np.float32))
        compiled = step_program.compile_program(
            step, method, mesh, meshes.rules_for(), shardings, expert, judge, vocabularies.t5()
        )
        after, metrics = compiled(begun, teacher, meshes.place_batch(tokens, mesh))
        pairs = jax.device_get(metrics)
        results.update({k: float(v) / max(float(w), 1e-30) for k, (v, w) in pairs.items()})
        moved = jax.tree.map(lambda x, y: bool((x != np.asarray(y)).any()), before, after.params)
        results["moved"] = np.mean(jax.tree.leaves(moved))
        return {}

    monkeypatch.setattr(train_job, "describe_dry_run", run)
    # One device: what eight change is tested elsewhere, and compiling for them takes twice as long.
    one = meshes.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(meshes, "make_mesh", lambda model: one)
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
    ],
)
def test_a_real_step(method, task, real_vocabulary, monkeypatch):
    take_step(method, task, monkeypatch)
