"""Outputs of transformers for tiny decoder-only models, and ours in the same layout."""

import jax
import jax.numpy as jnp
import numpy as np

from gkd.checkpoints import load_hf
from gkd.models import teacher_forced_logits

DECODERS = ("qwen3_tiny", "qwen3_untied", "qwen2_tiny", "llama_tiny", "smollm2_tiny", "gemma3_tiny")


def load(folder, **execution):
    """The architecture, its parameters as arrays, and transformers' outputs."""
    config, params = load_hf(folder)
    return (
        config.with_execution(**execution),
        jax.tree.map(jnp.asarray, params),
        dict(np.load(folder / "golden.npz")),
    )


def rows_apart(arrays, prefix=""):
    """Prompts and targets of right-padded rows: tokens, lengths of prompts, tokens, lengths."""
    ids, mask = arrays[f"{prefix}input_ids"], arrays[f"{prefix}attention_mask"]
    labels = arrays[f"{prefix}labels"]
    lengths = np.argmax(labels != -100, axis=1)
    targets = np.sum(mask, axis=1) - lengths
    prompts = np.zeros((len(ids), lengths.max()), np.int32)
    outputs = np.zeros((len(ids), targets.max()), np.int32)
    for row, (first, count) in enumerate(zip(lengths, targets, strict=True)):
        prompts[row, :first] = ids[row, :first]
        outputs[row, :count] = ids[row, first : first + count]
    return prompts, lengths, outputs, targets


def logits_by_place(config, params, arrays, prefix=""):
    """(logits [B, T, V] that predict each target, mask [B, T], places of the predicting tokens)."""
    prompts, lengths, outputs, targets = rows_apart(arrays, prefix)
    run = jax.jit(lambda *tokens: teacher_forced_logits(config, params, *tokens))
    got = np.asarray(run(jnp.array(prompts), jnp.array(outputs), jnp.array(lengths)))
    inside = np.arange(outputs.shape[1]) < targets[:, None]
    return got, inside, lengths[:, None] - 1 + np.arange(outputs.shape[1])
