"""Qwen3, Qwen2.5, Llama 3, SmolLM2 and Gemma 3 against transformers: logits, gradients, greedy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.checkpoints.tensors import tensor_names
from gkd.decode.sampling import sample
from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.rotary import Rope
from gkd.errors import InvalidValue
from gkd.hugging_face import decoder_only as names
from gkd.models import teacher_forced_logits
from gkd.models.t5 import stack_layers
from tests.decoders.golden import DECODERS, load, logits_by_place, rows_apart


@pytest.fixture(params=DECODERS)
def folder(shared, request):
    return shared / "golden" / "decoders" / request.param


def test_logits_are_those_of_transformers(folder):
    config, params, arrays = load(folder)
    got, inside, places = logits_by_place(config, params, arrays)
    rows = np.arange(len(got))[:, None]
    wanted = arrays["logits"][rows, np.minimum(places, arrays["logits"].shape[1] - 1)]
    assert inside.sum() > 40
    assert np.abs(np.where(inside[..., None], got - wanted, 0)).max() < 1e-4


def test_long_rows_have_the_log_probabilities_of_transformers(folder):
    """160 tokens: frequencies of Llama 3, and windows of Gemma, act."""
    config, params, arrays = load(folder, stacked_layers=True)
    got, inside, places = logits_by_place(config, stack_layers(params), arrays, "long_")
    _, _, outputs, _ = rows_apart(arrays, "long_")
    log_probs = jax.nn.log_softmax(got.astype(np.float64))
    log_probs = np.take_along_axis(np.asarray(log_probs), outputs[..., None], 2)[..., 0]
    wanted = arrays["long_next_logprob_f64"]
    wanted = wanted[np.arange(len(got))[:, None], np.minimum(places, wanted.shape[1] - 1)]
    assert np.abs(np.where(inside, log_probs - wanted, 0)).max() < 1e-4


def test_prompts_may_be_padded_on_either_side(folder):
    config, params, arrays = load(folder)
    model = config.build()
    ids, mask = arrays["prompt_input_ids"], arrays["prompt_attention_mask"]
    left = jnp.where(mask == 1, ids, -1)
    right = np.full_like(ids, -1)
    for row, count in enumerate(mask.sum(1)):
        right[row, :count] = ids[row, ids.shape[1] - count :]
    outputs = jnp.array(arrays["greedy_new_tokens"])

    def logits(prompts):
        encoded = model.encode(params, prompts)
        inputs = jnp.concatenate([encoded.start_tokens[:, None], outputs[:, :-1]], axis=1)
        return model.decode_hidden(params, encoded, inputs).last

    np.testing.assert_allclose(logits(left), logits(jnp.array(right)), atol=2e-5)


def test_greedy_continuations_are_those_of_transformers(folder):
    config, params, arrays = load(folder)
    model = config.build()
    prompts = jnp.where(
        arrays["prompt_attention_mask"] == 1, arrays["prompt_input_ids"], model.special_ids.padding
    )
    samples = sample(
        model, params, model.encode(params, prompts), jax.random.PRNGKey(0),
        max_length=20, valid=jnp.ones(config.vocab_size, bool), temperature=0.0,
    )  # fmt: skip
    kept = arrays["greedy_mask"] == 1
    assert (arrays["greedy_margin"][kept] > 1e-3).all()
    np.testing.assert_array_equal(
        np.asarray(samples.tokens), np.where(kept, arrays["greedy_new_tokens"], -1)
    )
    logits = jax.nn.log_softmax(jnp.array(arrays["greedy_step_logits"]))
    chosen = np.take_along_axis(
        np.asarray(logits), arrays["greedy_new_tokens"][..., None].astype(int), 2
    )[..., 0]
    np.testing.assert_allclose(samples.log_probs, np.where(kept, chosen, 0), atol=1e-4)


def test_gradients_are_those_of_transformers(folder):
    """Of the mean cross-entropy of the targets, through prefill and continuation."""
    config, params, arrays = load(folder)
    prompts, lengths, outputs, targets = (jnp.array(x) for x in rows_apart(arrays))
    inside = jnp.arange(outputs.shape[1]) < targets[:, None]

    def loss(params):
        logits = teacher_forced_logits(config, params, prompts, outputs, lengths)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), outputs[..., None], 2)[..., 0]
        return -jnp.sum(log_probs * inside) / jnp.sum(inside)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert value == pytest.approx(arrays["ce_mean_f64"], abs=1e-5)
    theirs = {
        theirs: (ours, turned) for ours, (theirs, turned) in names.parameter_names(config).items()
    }
    found = tensor_names(gradient)
    checked = [name.removeprefix("grad/") for name in arrays if name.startswith("grad/")]
    assert len(checked) >= 5
    for name in checked:
        ours, turned = theirs[name]
        got, wanted = found[ours], arrays[f"grad/{name}"]
        got = got.T if turned else got
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max() + 1e-6, name


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_kv_heads": 5}, "16 heads do not divide over num_kv_heads 5"),
        ({"head_dim": 127}, "head_dim is 127"),
        ({"dropout_rate": 0.1}, "no dropout"),
        ({"end_ids": ()}, "end_ids"),
        ({"layer_windows": (-1,)}, "layer_windows"),
        ({"mlp_activation": "relu"}, "mlp_activation"),
    ],
)
def test_a_wrong_architecture_is_refused(changes, words):
    with pytest.raises((InvalidValue, ValueError), match=words):
        DecoderConfig(**changes)


def test_the_description_makes_an_equal_architecture():
    config = dataclasses.replace(
        DecoderConfig(), layer_windows=(8, 0), local_rope=Rope(1e4), end_ids=(3, 4)
    )
    saved = json.loads(json.dumps(config.describe()))
    assert saved.pop("architecture") == "decoder_only"
    assert DecoderConfig.from_description(saved, "a") == config
