"""Measures the bias of a loss with only the teacher's top-k ids: a table over K.

    python benchmarks/top_k_bias.py STUDENT TEACHER --task=RUN.gin [--split=validation]

Forward and reverse KL of a student on the data set's outputs, averaged over tokens, with what is
left of the teacher as one outcome ("bucket") or shared out ("renormalise"); and the angle between
the gradients for the student's logits, whose cosine is 1 where nothing is lost.
"""

from __future__ import annotations

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from gkd.configuration.task_files import read_task
from gkd.data import pipeline
from gkd.distill import divergences
from gkd.distill.logits import dense
from gkd.distill.truncated_teacher import truncation_bias
from gkd.models.scoring import score_tokens
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.vocabularies import vocabularies

KS = (1, 2, 4, 8, 16, 32, 64)
CASES = (("forward_kl", "bucket"), ("forward_kl", "renormalise"), ("reverse_kl", "bucket"))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def compare(student, teacher, k, tail, name, mask, valid):
    """Sums over tokens: truncated loss, whole loss, cosine of their gradients."""
    divergence = getattr(divergences, name)

    def losses(logits):
        return truncation_bias(logits, teacher, k, tail, divergence, valid)

    (cut, whole), pull_back = jax.vjp(losses, student)
    one, none = jnp.ones_like(cut), jnp.zeros_like(cut)
    first, second = pull_back((one, none))[0], pull_back((none, one))[0]
    norms = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    cosine = jnp.sum(first * second, axis=-1) / jnp.maximum(norms, 1e-30)
    return tuple(jnp.sum(values * mask) for values in (cut, whole, cosine))


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("--task", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--lengths", type=int, nargs=2, default=(64, 32))
    given = parser.parse_args(arguments)
    task = read_task(given.task)
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    loaded = [
        model_loading.load_model(role, mesh, rules, task, None, path, "best")
        for role, path in (("STUDENT", given.student), ("TEACHER", given.teacher))
    ]
    valid = jnp.asarray(vocabularies.valid_ids(task.vocabulary, loaded[0].config.vocab_size))
    rows = pipeline.evaluation_batches(task, given.split, 32, *given.lengths, given.rows)

    @jax.jit
    def logits(params, inputs, targets):
        return [
            dense(score_tokens(one.model, p, one.model.encode(p, inputs), targets))
            for one, p in zip(loaded, params, strict=True)
        ]

    sums: dict[tuple, np.ndarray] = {}
    tokens = 0
    params = [one.params for one in loaded]
    ks = [k for k in KS if k < int(valid.sum())]
    for batch in rows.batches:
        targets = jnp.asarray(batch["decoder_target_tokens"])
        student, teacher = logits(params, jnp.asarray(batch["encoder_input_tokens"]), targets)
        mask = (targets > 0) * jnp.asarray(batch["example_weights"])[:, None]
        tokens += float(mask.sum())
        for name, tail in CASES:
            for k in ks:
                found = np.array(compare(student, teacher, k, tail, name, mask, valid))
                sums[name, tail, k] = sums.get((name, tail, k), 0) + found
    print(f"{len(rows.inputs)} rows of {task.name}, {tokens:.0f} tokens")
    print("| divergence | tail | K | truncated | whole | bias | gradients' cosine |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for (name, tail, k), (cut, whole, cosine) in sums.items():
        bias = 100 * (cut - whole) / whole
        print(
            f"| {name} | {tail} | {k} | {cut / tokens:.4f} | {whole / tokens:.4f} | {bias:+.1f}% "
            f"| {cosine / tokens:.4f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
