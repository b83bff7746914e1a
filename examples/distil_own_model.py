"""Distils a Flax encoder-decoder of our own, without gin: three pure functions, one step.

    python examples/distil_own_model.py [--updates=300] [--seed=0]

The task is to repeat a pattern of three symbols. The teacher is trained on all 512 patterns; the
student, a twentieth of its size, on 60 of them. It is distilled twice from one SFT initialisation:
on the data set's sequences (λ=0) and on its own (λ=1). Prints the exact match on the 452 patterns
that the student has not seen. Takes less than a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, optimizers, step_functions, train_step
from gkd.distill.types import Batch
from gkd.models.interface import Seq2SeqModel
from gkd.models.uncached import encoder_decoder

SYMBOLS, LENGTH = 8, 9  # symbols are the ids 2 … 9; 0 is padding, 1 the end of sequence
VOCABULARY = SYMBOLS + 2
VALID = jnp.arange(VOCABULARY) > 0


class Recurrent(nn.Module):
    """An encoder-decoder as one writes it in Flax: it knows nothing of GKD, sampling or caches."""

    width: int

    def setup(self):
        """Name the parts."""
        self.embedding = nn.Embed(VOCABULARY, self.width)
        self.place = self.param("place", nn.initializers.lecun_normal(), (3, self.width))
        self.context = nn.Dense(self.width)
        self.recurrence = nn.RNN(nn.SimpleCell(self.width))
        self.output = nn.Dense(VOCABULARY, use_bias=False)

    def encode(self, tokens):
        """Encode prompts [B, S] into states [B, S, E]."""
        return self.embedding(tokens) * self.place

    def decode(self, states, mask, tokens):
        """Read states [N, S, E] with their mask and tokens [N, T]; return [N, T, E]."""
        context = self.context(jnp.sum(jnp.where(mask[..., None], states, 0), axis=1))
        return self.recurrence(self.embedding(tokens) + context[:, None])

    def __call__(self, inputs, targets):
        """Run all parts, so that Flax creates their parameters."""
        return self.output(self.decode(self.encode(inputs), inputs > 0, targets))


def own_model(width: int) -> Seq2SeqModel:
    """Put the Flax module behind the interface of all models; every function is pure.

    Args:
      width: E, features of the embeddings and of the state.
    """
    module, tokens = Recurrent(width), jnp.ones((1, 3), int)

    def method(name):
        return lambda params, *arrays: module.apply({"params": params}, *arrays, method=name)

    return encoder_decoder(
        init=lambda rng: module.init(rng, tokens, tokens)["params"],
        encode=method("encode"),
        decode=method("decode"),
        head=lambda params: params["output"]["kernel"],
        vocab_size=VOCABULARY,
    )


def patterns() -> tuple[np.ndarray, np.ndarray]:
    """All inputs [512, 3] and targets [512, 9]: the input repeated, and the end of sequence."""
    inputs = np.stack(np.unravel_index(np.arange(SYMBOLS**3), (SYMBOLS,) * 3), axis=1) + 2
    return inputs, np.c_[np.tile(inputs, 3)[:, : LENGTH - 1], np.ones(len(inputs), int)]


def train(
    model: Seq2SeqModel,
    params: Any,
    rows: np.ndarray,
    updates: int,
    seed: int,
    teacher: tuple[Seq2SeqModel, Any] | None = None,
    on_policy_fraction: float = 0.0,
) -> Any:
    """Train with cross-entropy, or with forward KL where there is a teacher.

    Args:
      model, params: the student and its parameters.
      rows: indices of the patterns to train on.
      updates: number of updates, of 32 rows each.
      seed: PRNG seed of batches, λ-coin and samples.
      teacher: its model and parameters.
      on_policy_fraction: λ.

    Returns:
      The new parameters.
    """
    loss, teacher_logits_fn = losses.make_cross_entropy_loss(), None
    if teacher is not None:
        loss = losses.make_divergence_loss(divergences.forward_kl, valid=VALID)
        teacher_logits_fn = step_functions.make_teacher_logits_fn(teacher[0])
    optimizer = optimizers.adamw(
        optimizers.warmup_constant_cooldown(3e-3, updates // 15, updates, updates // 3),
        max_norm=1.0,
    )
    step = train_step.make_train_step(
        model, optimizer, divergence_loss_fn=loss, teacher_logits_fn=teacher_logits_fn,
        sample_fn=step_functions.make_sample_fn(model, sample, VALID),
        on_policy_fraction=on_policy_fraction,
    )  # fmt: skip
    update = jax.jit(step.step)
    state = train_step.init_state(params, optimizer, seed)
    inputs, targets = patterns()
    draws = np.random.default_rng(seed)
    for _ in range(updates):
        chosen = draws.choice(rows, 32)
        batch = Batch(inputs[chosen], targets[chosen], np.ones(32, np.float32))
        state, _ = update(state, teacher and teacher[1], batch)
    return state.params


def exact_match(model: Seq2SeqModel, params: Any, rows: np.ndarray) -> float:
    """Compute the percentage of patterns that greedy decoding repeats without a mistake."""
    inputs, targets = patterns()

    @jax.jit
    def generate(params, inputs, key):
        encoded = model.encode(params, inputs)
        return sample(model, params, encoded, key, max_length=LENGTH, valid=VALID, temperature=0.0)

    tokens = np.asarray(generate(params, inputs[rows], jax.random.PRNGKey(0)).tokens)
    return 100 * float(np.mean(np.all(tokens == targets[rows], axis=1)))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, distil and print; return the exact match of each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    order = np.random.default_rng(given.seed).permutation(SYMBOLS**3)
    seen, unseen = order[:60], order[60:]
    large, small = own_model(128), own_model(24)
    keys = jax.random.split(jax.random.PRNGKey(given.seed))
    teacher_params = train(large, large.init(keys[0]), order, 2 * given.updates, given.seed)
    start = train(small, small.init(keys[1]), seen, given.updates, given.seed)
    options = {"updates": given.updates, "seed": given.seed, "teacher": (large, teacher_params)}
    models = {
        "teacher": (large, teacher_params),
        "SFT initialisation": (small, start),
        "supervised KD (λ=0)": (small, train(small, start, seen, **options)),
        "on-policy GKD (λ=1)": (
            small, train(small, start, seen, on_policy_fraction=1.0, **options)
        ),
    }  # fmt: skip
    scores = {name: exact_match(*model, unseen) for name, model in models.items()}
    for name, score in scores.items():
        print(f"{name:<22}{score:5.1f} %")
    return scores


if __name__ == "__main__":
    main()
