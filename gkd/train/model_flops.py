"""Matrix-product FLOPs of a run's programs in closed form, which `plan` compares with HLO."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gkd.auxiliary_losses.inner_layer import InnerLayerLoss
from gkd.auxiliary_losses.witness import WitnessLoss
from gkd.distill.train_step import Part
from gkd.distill.types import Batch
from gkd.models.attention_sharding import row_sharding
from gkd.models.flops import (
    ShardCounts,
    cross_flops,
    decoder_flops,
    encoder_flops,
    head_flops,
    repeated_scores,
)
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from gkd.train import adapter_flops
from gkd.train.method import (
    rewards_on_host,
    rollout_length,
    student_generates,
    teacher_is_student,
)
from gkd.train.step_program import StepProgram

UPDATE = "update"


def step_flops(
    program: StepProgram, expected_length: float | int, split: bool = True, repeats: bool = True
) -> Mapping:
    """Counts the FLOPs of a step's matrix products by part, on one chip.

    Every row is as long as the batch, padding too; attention is to all positions, masked or not;
    a backward pass costs twice its forward pass; the loss forms its gradients in three products.

    Args:
      program: the run's step program.
      expected_length: tokens after which sampling stops, at most the target's length.
      split: with the mesh's division and its replication; else an equal share for every chip, as
        if all divided (the model's FLOPs, of MFU).
      repeats: count the products that rematerialisation repeats, too.

    Returns:
      FLOPs of 'gkd_sampling', 'gkd_teacher', 'gkd_reward' and 'update'.
    """
    rows, source = program.batch.encoder_input_tokens.shape
    target = program.batch.decoder_target_tokens.shape[1]
    method = program.method
    samples = method.samples
    written = rollout_length(method, target)
    student = program.student.config
    on_policy = student_generates(method)

    def shared(config):
        if not split:
            return ShardCounts(rows=program.mesh.size)
        return shard_counts_of(program, config, rows // program.experiment.batches.microbatches)

    def scored(config, tokens, encoded, source=source, outputs=rows * samples):
        """Encoder, cross-attention's keys and decoder of one forward pass over outputs."""
        shards = shared(config)
        prompts = _encoding(config, encoded, shards)
        prompts += cross_flops(config.sizes, rows, source, shards)
        return prompts + decoder_flops(config.sizes, outputs, tokens, tokens + source, shards)

    shards, encoded = shared(student), encoded_shapes(program, program.student)
    tokens = written if on_policy and method.on_policy_fraction == 1 else target
    costs = dict.fromkeys((*Part, UPDATE), 0.0)
    if on_policy:
        outputs = rows * samples
        costs[Part.SAMPLING] = (
            cross_flops(student.sizes, rows, source, shards)
            + decoder_flops(student.sizes, outputs, expected_length, written + source, shards)
            + head_flops(student.sizes, outputs, expected_length, shards)
        )
        if _encodes_again(program):
            costs[Part.SAMPLING] += _encoding(student, encoded, shards)
    heads = 3 * head_flops(student.sizes, rows * samples, tokens, shards)
    costs[UPDATE] = 3 * scored(student, tokens, encoded) + heads
    if program.base is not None:
        _train_adapters_only(program, costs, tokens, shards, split, repeats)
    else:
        if split:
            costs[UPDATE] -= _reduce_scattered_gradients(
                program, shards, _tokens(encoded), rows * source, rows * samples * tokens
            )
        if repeats:
            costs[UPDATE] += _repeated_scores(program, encoded, tokens, shards)
    costs[UPDATE] += _auxiliary_flops(program, tokens, shards)
    if student.remat and repeats:
        # A layer's last product is not repeated: nothing in its backward pass needs the result.
        sizes, of_encoder = student.sizes, student.sizes.encoder or student.sizes
        last = _tokens(encoded) * sizes.encoder_layers * of_encoder.emb_dim * of_encoder.mlp_dim
        last += rows * samples * tokens * sizes.decoder_layers * sizes.emb_dim * sizes.mlp_dim
        last *= 2 / shards.rows / shards.mlp
        costs[UPDATE] += scored(student, tokens, encoded) - last
    if program.teacher is not None:
        teacher = program.teacher.config
        outputs, tokens, prompt = taught_shape(program)
        prompts = encoded_shapes(program, program.teacher)
        costs[Part.TEACHER] += scored(teacher, tokens, prompts, prompt, outputs)
        costs[UPDATE] += head_flops(teacher.sizes, outputs, tokens, shared(teacher))
    for part in (UPDATE, Part.TEACHER):
        costs[part] *= method.updates_per_rollout
    return costs


def _encodes_again(program) -> bool:
    """Returns whether the update encodes the prompts once more."""
    method = program.method
    return (
        program.experiment.batches.microbatches > 1
        or program.student.config.dropout_rate > 0
        or rewards_on_host(method)
        or method.replay is not None  # rows of a memory
        or method.updates_per_rollout > 1
    )


def encoded_shapes(program: StepProgram, loaded: LoadedModel) -> tuple[tuple[int, int], ...]:
    """Lists rows and tokens of the parts of a batch that a step encodes with a model.

    Args:
      program: the run's step program.
      loaded: its student or teacher.
    """
    batch, is_teacher = program.batch, loaded is program.teacher
    rows, length = (batch.teacher_prompts if is_teacher else batch.encoder_input_tokens).shape
    parts = batch.teacher_parts if is_teacher else batch.input_parts
    if is_teacher and isinstance(program.method.auxiliary, WitnessLoss):  # prompts of its own
        return ((rows, taught_shape(program)[2]),)
    if parts is None or loaded.model.encode_parts is None:
        return ((rows, length),)
    return parts.shapes(rows)


def _encoding(config, shapes, shards) -> float:
    """The FLOPs of encoding all parts of a batch."""
    return sum(encoder_flops(config.sizes, *shape, shards) for shape in shapes)


def _tokens(shapes) -> int:
    return sum(rows * length for rows, length in shapes)


def _repeated_scores(program, encoded, tokens, shards) -> float:
    """Counts the FLOPs of attention scores that the update's backward pass forms once more."""
    config, samples = program.student.config, program.method.samples
    rows, source = program.batch.encoder_input_tokens.shape
    sizes, stacked = config.sizes, config.stacked_layers and not config.remat
    of_encoder = sizes.encoder or sizes
    encoder = sum(
        repeated_scores(of_encoder, count, length, length, stacked) for count, length in encoded
    )
    own = tokens if sizes.has_cross_block else tokens + source  # a continuation's prompt too
    decoder = repeated_scores(sizes, rows * samples, tokens, own, stacked)
    if sizes.has_cross_block:
        decoder += repeated_scores(sizes, rows, samples * tokens, source, stacked)
    layers = encoder * (sizes.encoder_layers - sizes.keys_only) + decoder * sizes.decoder_layers
    return 2 * layers / shards.rows / shards.heads


def _train_adapters_only(program, costs, tokens, shards, split, repeats) -> None:
    """Replaces the costs of an update of all parameters, and adds those of adding adapters."""
    adapters, student = program.state.abstract.params, program.student.config
    sizes = student.sizes
    if not repeats:
        sizes = dataclasses.replace(sizes, attends_in_blocks=False)
    rows, source = program.batch.encoder_input_tokens.shape
    outputs, parts = rows * program.method.samples, program.experiment.batches.microbatches
    heads = 2 + _trains_head(program)
    encoded = encoded_shapes(program, program.student)
    costs[UPDATE] = adapter_flops.update_flops(
        adapters, sizes, (rows, source), encoded, outputs, tokens, shards, student.remat
    ) + heads * head_flops(sizes, outputs, tokens, shards)
    chips = program.mesh.shape["model"] if split else program.mesh.size
    adding = adapter_flops.adding_flops(adapters) / chips
    costs[UPDATE] += (1 + 2 * parts) * adding  # sampling and every microbatch read one sum
    if teacher_is_student(program.experiment) and program.method.teacher_weights == "average":
        costs[Part.TEACHER] += adding


def _auxiliary_flops(program, tokens, shards) -> float:
    """Counts the products with the student's head of a loss beside the policy gradient."""
    auxiliary, sizes = program.method.auxiliary, program.student.config.sizes
    outputs = program.batch.encoder_input_tokens.shape[0] * program.method.samples
    if isinstance(auxiliary, InnerLayerLoss) and auxiliary.weight:
        # The inner layer's logits and their gradients, and the last layer's logits once more.
        return (3 + _trains_head(program)) * head_flops(sizes, outputs, tokens, shards)
    if isinstance(auxiliary, WitnessLoss):
        outputs, tokens, _ = taught_shape(program)
        return (2 + _trains_head(program)) * head_flops(sizes, outputs, tokens, shards)
    return 0.0


def _trains_head(program) -> bool:
    """Returns whether an update needs the gradient of the student's head."""
    if program.base is None:
        return True
    return any(
        "logits_dense" in path for path, _ in adapter_flops.kernels(program.state.abstract.params)
    )


def taught_shape(program: StepProgram) -> tuple[int, int, int]:
    """Returns the shape of the sequences that the teacher scores in a step.

    Returns:
      Sequences, tokens of each, and tokens of a prompt.
    """
    method = program.method
    rows, source = program.batch.encoder_input_tokens.shape
    target = program.batch.decoder_target_tokens.shape[1]
    sampled = student_generates(method) and method.on_policy_fraction == 1
    tokens = rollout_length(method, target) if sampled else target
    if isinstance(method.auxiliary, WitnessLoss):
        settings = method.auxiliary
        return rows, min(settings.tokens, tokens), settings.prompt_length(source, target)
    return rows * method.samples, tokens, prompt_length(program, program.teacher)


def _reduce_scattered_gradients(program, shards, encoded, prompts, outputs) -> float:
    """Counts the FLOPs that fully sharded gradients save on chips that repeat a layer.

    Chips along a model axis that does not divide a layer have all of its activations. A gradient is
    split over the data axis: where that divides the model axis, XLA has each of those chips form a
    part of it, and collectives combine the parts.

    Args:
      program: the run's step program.
      shards: the division of the student by the mesh.
      encoded, prompts, outputs: tokens of all rows, through the encoder and to the decoder.
    """
    data, model = program.mesh.shape["data"], program.mesh.shape["model"]
    sizes = program.student.config.sizes
    if program.rules["embed"] is None or model % data or sizes.emb_dim % data:
        return 0.0
    of_encoder, layers = sizes.encoder or sizes, sizes.decoder_layers
    numbers = 0.0  # of kernels that every chip has whole, times the tokens that pass them
    for side, passes in ((of_encoder, encoded * sizes.encoder_layers), (sizes, outputs * layers)):
        if shards.heads == 1:
            numbers += 2 * side.emb_dim * (side.query_width + side.key_width) * passes
        if shards.mlp == 1:
            numbers += side.emb_dim * side.mlp_dim * side.mlp_kernels * passes
    if shards.heads == 1 and sizes.has_cross_block:
        numbers += 2 * sizes.emb_dim * sizes.query_width * outputs * layers
    if shards.heads == 1 and sizes.cross_attention:
        numbers += 2 * of_encoder.emb_dim * sizes.key_width * prompts * layers
    return 2 * numbers / shards.rows * (1 - 1 / data)


def generation_flops(
    program: StepProgram, loaded: LoadedModel, expected_length: float | int, scored: bool
) -> float:
    """Counts the FLOPs of generating one completion for each of `evaluation_rows` prompts.

    Args:
      program: the run's step program.
      loaded: the model that writes.
      expected_length: tokens after which writing stops, at most the target's length.
      scored: True where the references' log-probabilities are computed too.
    """
    rows, source = program.evaluation_rows, prompt_length(program, loaded)
    target = program.batch.decoder_target_tokens.shape[1]
    config, shards = loaded.config, shard_counts_of(program, loaded.config, rows)
    prompts = encoder_flops(config.sizes, rows, source, shards)
    cross = cross_flops(config.sizes, rows, source, shards)
    return (
        prompts
        + (2 if scored else 1) * cross
        + _decoding(config, rows, expected_length, target + source, shards)
        + scored * _decoding(config, rows, target, target + source, shards)
    )


def meter_flops(program: StepProgram, expected_length: float | int) -> float:
    """Counts the FLOPs of `DivergenceMeter`: two rows per prompt, scored by both models."""
    student, rows = program.student, program.evaluation_rows
    target = program.batch.decoder_target_tokens.shape[1]
    total = generation_flops(program, student, expected_length, scored=False)
    for loaded in (student, program.teacher):
        config, shards = loaded.config, shard_counts_of(program, loaded.config, rows)
        source = prompt_length(program, loaded)
        total += cross_flops(config.sizes, rows, source, shards)
        total += _decoding(config, 2 * rows, target, target + source, shards)
        if loaded is not student:
            total += encoder_flops(config.sizes, rows, source, shards)
    return total


def prompt_length(program: StepProgram, loaded: LoadedModel) -> int:
    """Returns the tokens of the prompts that a model reads; the teacher may have its own."""
    batch = program.batch
    prompts = batch.teacher_prompts if loaded is program.teacher else batch.encoder_input_tokens
    return prompts.shape[1]


def _decoding(config, rows, tokens, attended, shards):
    """The decoder's layers and its head."""
    layers = decoder_flops(config.sizes, rows, tokens, attended, shards)
    return layers + head_flops(config.sizes, rows, tokens, shards)


def useful_flops(
    program: StepProgram, sampled_length: float | int, batch: Batch | None = None
) -> float:
    """Counts the FLOPs of a step on one chip, each product once, as MFU does.

    Args:
      program: the run's step program.
      sampled_length: mean tokens of a row that the student wrote, 0 where it wrote none.
      batch: shapes of the step's batch; None is the program's, of the greatest lengths.
    """
    if batch is not None:
        program = dataclasses.replace(program, batch=batch)
    costs = dict(step_flops(program, sampled_length, split=False, repeats=False))
    if not sampled_length:
        costs.pop(Part.SAMPLING)
    return sum(costs.values())


def sampled_steps(program: StepProgram) -> float:
    """Computes the expected share of sequences that the student samples: λ, a schedule's mean.

    Args:
      program: the run's step program; the share of a replay is the one it starts with.
    """
    method, steps = program.method, program.experiment.schedule.train_steps
    if method.replay is not None:
        return method.replay.share * (steps + 1) / (2 * steps)  # falls from all of it to 1 / T
    fraction = method.on_policy_fraction
    return (
        float(jnp.mean(jax.vmap(fraction)(jnp.arange(steps)))) if callable(fraction) else fraction
    )


def shard_counts_of(program: StepProgram, config, prompts: int) -> ShardCounts:
    """Determines the division of a model's work; every chip does what its axis does not divide.

    Attention is divided by heads, or where they do not divide, by rows (`attention_sharding`).

    Args:
      program: the run's step program.
      config: the model's architecture.
      prompts: that it is run on at the same time.
    """
    mesh, sizes = program.mesh, config.sizes
    rules = meshes.rules_of_model(program.rules, sizes.divided_heads, mesh)

    def parts(axis, size):
        name = rules.get(axis)
        return mesh.shape[name] if name and size % mesh.shape[name] == 0 else 1

    attention = parts("heads", sizes.divided_heads)
    if rows_are_spread(program, config, prompts):
        attention = mesh.shape["model"]
    return ShardCounts(
        mesh.shape["data"],
        attention,
        parts("mlp", sizes.mlp_dim),
        parts("vocab", sizes.vocab_size),
    )


def rows_are_spread(program: StepProgram, config, prompts: int) -> bool:
    """Checks if a model's layers have their rows over both axes, for heads that do not divide."""
    sharding = meshes.model_sharding(program.mesh, program.rules)
    return bool(row_sharding(sharding, config.sizes.divided_heads, prompts).spread_over)
