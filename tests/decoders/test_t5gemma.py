"""T5Gemma and T5Gemma 2 against transformers: logits, states, gradients, greedy decoding."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.checkpoints.tensors import tensor_names
from gkd.decode.sampling import sample
from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.errors import InvalidValue
from gkd.hugging_face import t5gemma as names
from gkd.models import teacher_forced_logits
from gkd.models.t5 import stack_layers
from tests.decoders.golden import load

FOLDERS = ("t5gemma_tiny", "t5gemma2_tiny")


@pytest.fixture(params=FOLDERS)
def folder(shared, request):
    return shared / "golden" / "t5gemma" / request.param


def in_form_4(arrays, name):
    """What transformers 4 computes, whose encoder windows are Google's; it has no T5Gemma 2."""
    return arrays.get(f"{name}_hf4", arrays[name])


def logits_of(config, params, arrays, prefix=""):
    """Logits at every target; the decoder's inputs begin with its start id, which is left out."""
    inputs, mask = arrays[f"{prefix}input_ids"], arrays[f"{prefix}attention_mask"]
    given = arrays[f"{prefix}decoder_input_ids"]
    assert (given[:, 0] == config.start_id).all()
    targets = np.concatenate([given[:, 1:], given[:, :1]], axis=1)
    return teacher_forced_logits(
        config, params, jnp.array(inputs), jnp.array(targets), jnp.array(mask.sum(1))
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_logits_are_those_of_transformers(folder, stacked):
    config, params, arrays = load(folder, stacked_layers=stacked)
    params = stack_layers(params) if stacked else params
    got = np.asarray(logits_of(config, params, arrays))
    inside = arrays["decoder_attention_mask"] == 1
    wanted = in_form_4(arrays, "logits")
    assert np.abs(np.where(inside[..., None], got - wanted, 0)).max() < 1e-4
    if config.version == 1:
        other = arrays["logits"]
        assert np.abs(np.where(inside[..., None], got - other, 0)).max() > 0.1


def test_encoder_states_are_those_of_transformers(folder):
    config, params, arrays = load(folder)
    inputs = jnp.where(arrays["attention_mask"] == 1, arrays["input_ids"], -1)
    states = np.asarray(config.build().encode(params, inputs).hidden)
    inside = arrays["attention_mask"][..., None] == 1
    wanted = in_form_4(arrays, "encoder_last_hidden")
    assert np.abs(np.where(inside, states - wanted, 0)).max() < 1e-4


def with_wide_encoder(config):
    """The same model with encoder windows as in transformers 5, whose outputs most arrays are."""
    if config.version == 2:
        return config
    windows = tuple(w + 1 if w else 0 for w in config.encoder.layer_windows)
    encoder = dataclasses.replace(config.encoder, layer_windows=windows)
    return dataclasses.replace(config, encoder=encoder)


def test_long_rows_have_the_log_probabilities_of_transformers(folder):
    config, params, arrays = load(folder)
    got = np.asarray(logits_of(with_wide_encoder(config), params, arrays, "long_"), np.float64)
    labels = arrays["long_labels"]
    log_probs = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(got)), np.maximum(labels, 0)[..., None], 2
    )[..., 0]
    wanted = arrays["long_label_logprob_f64"]
    assert np.abs(np.where(labels >= 0, log_probs - wanted, 0)).max() < 1e-4


def test_greedy_outputs_are_those_of_transformers(folder):
    config, params, arrays = load(folder)
    config = with_wide_encoder(config)
    model = config.build()
    inputs = jnp.where(arrays["attention_mask"] == 1, arrays["input_ids"], -1)
    samples = sample(
        model, params, model.encode(params, inputs), jax.random.PRNGKey(0), max_length=20,
        valid=jnp.ones(config.vocab_size, bool), temperature=0.0,
    )  # fmt: skip
    kept = arrays["greedy_mask"] == 1
    wanted = np.where(kept, arrays["greedy_sequences"][:, 1:], -1)
    np.testing.assert_array_equal(np.asarray(samples.tokens), wanted)


def test_gradients_are_those_of_transformers(folder):
    config, params, arrays = load(folder)
    config, labels = with_wide_encoder(config), jnp.array(arrays["labels"])
    inside = labels != -100

    def loss(params):
        log_probs = jax.nn.log_softmax(logits_of(config, params, arrays))
        chosen = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[..., None], 2)[..., 0]
        return -jnp.sum(chosen * inside) / jnp.sum(inside)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert value == pytest.approx(arrays["ce_mean_f64"], abs=1e-5)
    theirs = {name: ours for ours, name in names.parameter_names(config).items()}
    theirs = {name: (ours, turned) for (name, turned), ours in theirs.items()}
    found = tensor_names(gradient)
    checked = [name.removeprefix("grad/") for name in arrays if name.startswith("grad/")]
    assert len(checked) >= 5
    for name in checked:
        ours, turned = theirs[name]
        got, wanted = found[ours], arrays[f"grad/{name}"]
        got = got.T if turned else got
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max() + 1e-6, name


def test_a_prompts_padding_and_neighbours_change_nothing(folder):
    """Merged attention sees the encoder's tokens in every window, and none of its padding."""
    config, params, arrays = load(folder)
    together = np.asarray(logits_of(config, params, arrays))
    row = int(np.argmin(arrays["attention_mask"].sum(1)))
    length = int(arrays["attention_mask"][row].sum())
    alone = {
        "input_ids": arrays["input_ids"][[row], :length],
        "attention_mask": arrays["attention_mask"][[row], :length],
        "decoder_input_ids": arrays["decoder_input_ids"][[row]],
    }
    assert length < arrays["input_ids"].shape[1]
    np.testing.assert_allclose(logits_of(config, params, alone)[0], together[row], atol=1e-5)


def test_encoder_and_decoder_must_fit():
    with pytest.raises(InvalidValue, match="differ in dtype"):
        T5GemmaConfig(DecoderConfig(dtype="bfloat16"), DecoderConfig())
    with pytest.raises(InvalidValue, match="one vocabulary"):
        T5GemmaConfig(DecoderConfig(vocab_size=5), DecoderConfig())
    with pytest.raises(InvalidValue, match="width is 8, the decoder's 1024: those of version 2"):
        T5GemmaConfig(DecoderConfig(emb_dim=8), DecoderConfig(), version=2)
    with pytest.raises(InvalidValue, match="version is 3"):
        T5GemmaConfig(version=3)


def test_the_description_makes_an_equal_architecture(folder):
    config, _, _ = load(folder)
    saved = json.loads(json.dumps(config.describe()))
    assert saved.pop("architecture") == "t5gemma"
    assert T5GemmaConfig.from_description(saved, "a") == config
