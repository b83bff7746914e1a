"""The programs of a distillation step with abstract arguments, to compile for chips not here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.workloads import USABLE, VOCABULARY
from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, mixing, optimizers, train_step
from gkd.distill.logits import ProjectedLogits
from gkd.distill.types import Batch, Rollout
from gkd.models.interface import Head
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.parallel import mesh as meshes

SMALL = T5Config(stacked_layers=True)
XL = T5Config(
    emb_dim=2048, num_heads=32, head_dim=64, mlp_dim=5120, num_encoder_layers=24,
    num_decoder_layers=24, dtype="bfloat16", stacked_layers=True,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compiled: the two models, the batch [rows, source] -> [rows, target], the mesh."""

    student: T5Config
    teacher: T5Config
    rows: int
    source: int
    target: int
    mesh: Mesh
    rules: Any
    optimizer: str = "adafactor"


def programs(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Functions that lower each program of a step, by name.

    sampling is `rollout`: the encoder and the sampling loop. teacher is a forward pass with the
    head's products as the loss forms them. update is the student's forward and backward pass, the
    loss and the optimizer, the teacher's states given. step is all of it, the program of `train`.
    """
    mesh, rules = setting.mesh, setting.rules
    student, teacher = as_seq2seq(setting.student), as_seq2seq(setting.teacher)
    optimizer = getattr(optimizers, setting.optimizer)(1e-4)
    make = functools.partial(_train_step, setting, student, optimizer)
    step = make(train_step.make_teacher_logits_fn(teacher))
    rows = meshes.batch_sharding(mesh)
    expert = _parameters(teacher, setting, setting.teacher.dtype)
    state = _state(student, optimizer, setting)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch, written = _batch(setting, rows), _rollout(setting, rows)
    states = _array((setting.rows, setting.target, setting.teacher.emb_dim), expert.dtype, rows)
    given = (states, teacher.head(expert.params).kernel)
    given_shardings = jax.tree.map(lambda leaf: leaf.sharding, given)

    def roll_out(state, batch):
        return step.rollout(state, batch, mixing.step_key(state.seed, state.step))

    def score(params, batch, rollout):
        logits = step.teacher_logits_fn(params, batch, rollout)
        loss = losses.make_cross_entropy_loss(data_shards=mesh.shape["data"])
        return loss(logits, None, rollout)

    def lower(function, arguments):
        with meshes.on_mesh(mesh, rules):
            return jax.jit(function).lower(*arguments)

    update = meshes.compile_step(
        make(_given_teacher).update, mesh, state_shardings, given_shardings, rules, (rows,)
    )
    whole = meshes.compile_step(step.step, mesh, state_shardings, expert.shardings, rules)
    return {
        "sampling": lambda: lower(roll_out, (state, batch)),
        "teacher": lambda: lower(score, (expert.params, batch, written)),
        "update": lambda: update.lower(state, given, batch, written),
        "step": lambda: whole.lower(state, expert.params, batch),
    }


def _train_step(setting, student, optimizer, teacher_logits_fn):
    """The on-policy step with the Jensen-Shannon divergence, as a run file makes it."""
    usable = np.zeros(VOCABULARY, bool)
    usable[1:USABLE] = True
    valid = jnp.asarray(usable)
    divergence = functools.partial(divergences.generalized_jsd, beta=0.5)
    loss = losses.make_divergence_loss(
        divergence, valid=valid, data_shards=setting.mesh.shape["data"]
    )
    return train_step.make_train_step(
        student, optimizer, divergence_loss_fn=loss, teacher_logits_fn=teacher_logits_fn,
        sample_fn=train_step.make_sample_fn(student, sample, valid), on_policy_fraction=1.0,
    )  # fmt: skip


def _given_teacher(params, batch, rollout):
    """A teacher whose states were computed elsewhere."""
    states, kernel = params
    return ProjectedLogits(states, Head(kernel))


@dataclasses.dataclass(frozen=True)
class _Parameters:
    params: Any
    shardings: Any
    dtype: Any


def _parameters(model, setting, dtype):
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    shardings = meshes.parameter_shardings(setting.mesh, boxed, setting.rules)
    params = jax.tree.map(
        lambda leaf, sharding: _array(leaf.shape, dtype, sharding),
        nn.meta.unbox(boxed),
        shardings,
    )
    return _Parameters(params, shardings, dtype)


def _state(student, optimizer, setting):
    learner = _parameters(student, setting, "float32")
    shapes = jax.eval_shape(
        lambda params: train_step.init_state(params, optimizer, 0), learner.params
    )
    placed = meshes.shardings_like(setting.mesh, shapes, shapes.params, learner.shardings)
    return jax.tree.map(lambda leaf, to: _array(leaf.shape, leaf.dtype, to), shapes, placed)


def _batch(setting, rows):
    return Batch(
        encoder_input_tokens=_array((setting.rows, setting.source), "int32", rows),
        decoder_target_tokens=_array((setting.rows, setting.target), "int32", rows),
        example_weights=_array((setting.rows,), "float32", rows),
    )


def _rollout(setting, rows):
    shape = (setting.rows, setting.target)
    return Rollout(
        target_tokens=_array(shape, "int32", rows),
        weights=_array(shape, "float32", rows),
        log_probs=_array(shape, "float32", rows),
        on_policy=_array((setting.rows,), "bool", rows),
    )


def _array(shape, dtype, sharding):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
