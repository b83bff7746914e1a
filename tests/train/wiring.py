"""Takes one step of what gin bindings configure, on fixed parameters and a fixed batch."""

import functools
import pathlib

import jax
import numpy as np

from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.distill.types import Batch
from gkd.models.t5 import T5Config
from gkd.parallel import mesh as meshes
from tests.step_programs import program_of

GIN = str(pathlib.Path(__file__).with_name("wiring.gin"))
VOCAB, IDS = 56, np.arange(1, 51)  # the arithmetic vocabulary: pad, 50 usable ids, 5 unused
RATE = 0.1
_COMMON = {"vocab_size": VOCAB, "num_heads": 2, "head_dim": 4}
_COMMON |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
STUDENT = T5Config(emb_dim=8, mlp_dim=8, **_COMMON)
TEACHER = T5Config(emb_dim=16, mlp_dim=16, **_COMMON)

# Three numbers, as the reward compares words; a row that was cut before its EOS; one that weighs
# half, and one that only fills the batch.
TARGETS = [
    [33, 35, 37, 1, 0], [40, 1, 0, 0, 0], [25, 34, 27, 32, 1], [31, 31, 36, 36, 35],
    [50, 3, 1, 0, 0], [33, 35, 37, 1, 0],
]  # fmt: skip
WEIGHTS = [1.0, 1.0, 0.5, 1.0, 1.0, 0.0]


def batch():
    """Six prompts of up to six tokens with their targets of up to five."""
    inputs = np.random.default_rng(0).integers(3, 51, (6, 6))
    inputs[:, 5] = 1
    inputs[1, 2:], inputs[4, 4:] = [1, 0, 0, 0], [1, 0]
    return Batch(np.int32(inputs), np.int32(TARGETS), np.float32(WEIGHTS))


def overrides(settings):
    """`NAME=VALUE` of macros and parameters; text that gin should not quote begins with @ or %."""
    plain = {name: str(value)[:1] in ("@", "%") for name, value in settings.items()}
    return tuple(f"{n}={v if plain[n] else repr(v)}" for n, v in settings.items())


def configured(settings):
    """What `python -m gkd train` with these overrides would run."""
    return command_line.configure(Command("train", (GIN,), overrides(settings)))


def step_program(settings, devices=1):
    """The `StepProgram` that `train` would run with these overrides."""
    devices = jax.devices()[:devices]
    return program_of(*overrides(settings), gin_file=GIN, devices=devices)


def parameters(shapes, seed):
    """Random parameters whose distributions are far from uniform, and far from another seed's."""
    generator = np.random.default_rng(seed)

    def random(path, leaf):
        value = 0.7 * generator.standard_normal(leaf.shape)
        name = path[-1].key
        value = 1 + 0.3 * value if name == "scale" else value
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(random, shapes)


@functools.cache
def _shapes(config):
    from gkd.models.t5 import as_seq2seq

    boxed = jax.eval_shape(as_seq2seq(config).init, jax.random.PRNGKey(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), _unbox(boxed))


def _unbox(tree):
    import flax.linen as nn

    return nn.meta.unbox(tree)


def student_params():
    return parameters(_shapes(STUDENT), 1)


def teacher_params():
    return parameters(_shapes(TEACHER), 2)


def state_of(program, seed=0, step=0, params=None):
    """A state before its first update: an optimizer that has seen nothing, these parameters."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), program.state.abstract)
    params = student_params() if params is None else params
    state = empty.replace(
        params=params, seed=np.asarray(jax.random.PRNGKey(seed)), step=np.int32(step)
    )
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, program.state.abstract))


def take_step(program, compiled=None, state=None, data=None, teacher=None):
    """One compiled step.

    Returns:
      The new state on the host, and the metrics as float64.
    """
    state = state_of(program) if state is None else state
    if program.teacher is not None:
        teacher = teacher_params() if teacher is None else teacher
        shapes = program.teacher.shapes
        teacher = jax.tree.map(lambda x, leaf: np.asarray(x, leaf.dtype), teacher, shapes)
    compiled = compiled or program.compile()
    placed = meshes.place_batch(batch() if data is None else data, program.mesh)
    after, metrics = jax.device_get(compiled(state, teacher, placed))
    means = {n: float(v) / max(float(w), 1e-30) for n, (v, w) in metrics.items()}
    return after, means
