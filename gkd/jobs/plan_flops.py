"""What a run's step should cost in matrix products, in closed form: the check of `plan`."""

from __future__ import annotations

from collections.abc import Mapping

from gkd.distill.train_step import Part
from gkd.jobs.step_program import StepProgram
from gkd.models.flops import Split, cross_flops, decoder_flops, encoder_flops, head_flops
from gkd.parallel import mesh as meshes

UPDATE = "update"


def step_flops(program: StepProgram, expected_length: float | int, split: bool = True) -> Mapping:
    """Multiplications and additions of a step's matrix products by part, on one chip.

    Every row is as long as the batch, padding too; attention is to all positions, masked or not;
    a backward pass costs twice its forward pass; the loss forms its gradients in three products.

    Args:
      program: of the run.
      expected_length: tokens after which sampling stops, at most the target's length.
      split: with the mesh's division and its replication; else an equal share for every chip, as
        if all divided (the model's FLOPs, of MFU).

    Returns:
      FLOPs of 'gkd_sampling', 'gkd_teacher', 'gkd_reward' and 'update'.
    """
    rows, source = program.batch.encoder_input_tokens.shape
    target = program.batch.decoder_target_tokens.shape[1]
    method = program.method
    samples = method.samples
    written = method.rollout_length or target  # tokens of an output
    student = program.learner.config
    on_policy = callable(method.on_policy_fraction) or method.on_policy_fraction > 0
    again = program.microbatches > 1 or student.dropout_rate > 0 or method.rewards_on_host

    def shared(config):
        return split_of(program, config) if split else Split(rows=program.mesh.size)

    def scored(config, tokens):
        """Encoder, cross-attention's keys and decoder of one forward pass over outputs."""
        ways = shared(config)
        prompts = encoder_flops(config, rows, source, ways)
        prompts += cross_flops(config, rows, source, ways)
        return prompts + decoder_flops(config, rows * samples, tokens, tokens + source, ways)

    ways = shared(student)
    tokens = written if on_policy and method.on_policy_fraction == 1 else target
    costs = dict.fromkeys((*Part, UPDATE), 0.0)
    if on_policy:
        outputs = rows * samples
        costs[Part.SAMPLING] = (
            cross_flops(student, rows, source, ways)
            + decoder_flops(student, outputs, expected_length, written + source, ways)
            + head_flops(student, outputs, expected_length, ways)
        )
        if again:
            costs[Part.SAMPLING] += encoder_flops(student, rows, source, ways)
    heads = 3 * head_flops(student, rows * samples, tokens, ways)
    passes = 4 if student.remat else 3
    costs[UPDATE] = passes * scored(student, tokens) + heads
    if program.expert is not None:
        teacher = program.expert.config
        costs[Part.TEACHER] = scored(teacher, tokens)
        costs[UPDATE] += head_flops(teacher, rows * samples, tokens, shared(teacher))
    return costs


def useful_flops(program: StepProgram, sampled_length: float | int) -> float:
    """FLOPs of a step on one chip, each product once: what MFU counts.

    Args:
      program: of the run.
      sampled_length: mean tokens of a row that the student wrote, 0 where it wrote none.
    """
    costs = dict(step_flops(program, sampled_length, split=False))
    if not sampled_length:
        costs.pop(Part.SAMPLING)
    return sum(costs.values())


def split_of(program: StepProgram, config) -> Split:
    """How the mesh divides a model's work; what its axis does not divide is done by every chip."""
    mesh, rules = program.mesh, meshes.rules_of_model(program.rules, config.num_heads, program.mesh)

    def ways(axis, size):
        name = rules.get(axis)
        return mesh.shape[name] if name and size % mesh.shape[name] == 0 else 1

    return Split(
        mesh.shape["data"],
        ways("heads", config.num_heads),
        ways("mlp", config.mlp_dim),
        ways("vocab", config.vocab_size),
    )
