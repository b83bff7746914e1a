"""Checkpoints of adapters as whole models, against NumPy in float64 and with faulty bases."""

import dataclasses

import numpy as np
import pytest

from gkd.checkpoints import formats, save_hf
from gkd.checkpoints.saved_adapters import SavedAdapters
from gkd.checkpoints.tensors import read_numpy, tensor_names
from gkd.decoders.rotary import Rope
from gkd.errors import InvalidFile, MissingFile
from gkd.models.lora import LoRA
from gkd.models.t5 import T5Config
from tests.adapter_runs import CONFIG, SETTINGS, base_params, save_run
from tests.decoders.models import TINY


def by_hand(adapters, kernel, layer=None):
    """W + (12 / 3) · A · B of a kernel, in float64."""
    names = tensor_names(base_params())
    pair = adapters
    for name in kernel.split("/"):
        pair = pair["layers" if layer is not None and name.startswith("layers_") else name]
    pair = {half: np.asarray(value, np.float64) for half, value in pair.items()}
    if layer is not None:
        pair = {half: value[layer] for half, value in pair.items()}
    return np.asarray(names[kernel], np.float64) + 4.0 * pair["a"] @ pair["b"]


def test_a_run_of_adapters_is_opened_as_the_whole_model(tmp_path):
    run, adapters = save_run(tmp_path)
    opened = formats.open_checkpoint(run)
    assert (opened.format, opened.config, opened.adapters.lora) == ("gkd", CONFIG, SETTINGS)
    found, base = tensor_names(read_numpy(opened.tensors)), tensor_names(base_params())
    assert found.keys() == base.keys()
    adapted = {name for name in base if "query" in name} | {"decoder/layers_0/mlp/wo/kernel"}
    for name in adapted:
        np.testing.assert_allclose(found[name], by_hand(adapters, name), atol=2e-6)
        assert np.abs(found[name] - base[name]).max() > 0.1, name
    for name in base.keys() - adapted:
        np.testing.assert_array_equal(found[name], base[name])


@pytest.mark.parametrize("ends", [(5, 1), (7,)])
def test_a_vocabulary_with_other_ends_leaves_the_base_what_it_is(tmp_path, ends):
    """A task's vocabulary chooses the ends; Gemma's and Llama's chats end in another order."""
    config = dataclasses.replace(TINY, family="llama")
    lora = LoRA(rank=3, alpha=12, targets=("query",))
    run, _ = save_run(tmp_path, lora, config=config, ends=ends)
    opened = formats.open_checkpoint(run)
    assert opened.config.end_ids == ends and read_numpy(opened.tensors)
    other = dataclasses.replace(config, rope=Rope(50.0))
    save_hf(tmp_path / "other", other, base_params(config=other))
    (tmp_path / "base").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "base")
    with pytest.raises(InvalidFile, match="adapters of another architecture"):
        formats.open_checkpoint(run)


def test_adapters_of_stacked_layers_too(tmp_path):
    run, adapters = save_run(tmp_path, LoRA(rank=3, alpha=12, targets=("wo",)), stacked=True)
    found = tensor_names(read_numpy(formats.open_checkpoint(run).tensors))
    for side in ("encoder", "decoder"):
        for layer in range(2):
            kernel = f"{side}/layers_{layer}/mlp/wo/kernel"
            np.testing.assert_allclose(found[kernel], by_hand(adapters, kernel, layer), atol=2e-6)


def test_a_tree_that_was_moved_still_has_its_base(tmp_path):
    save_run(tmp_path / "here")
    before = formats.open_checkpoint(tmp_path / "here" / "runs" / "adapted")
    (tmp_path / "here").rename(tmp_path / "there")
    after = formats.open_checkpoint(tmp_path / "there" / "runs" / "adapted")
    assert after.tensors.keys() == before.tensors.keys()
    with pytest.raises(MissingFile, match="adapters of .*here/base, which does not exist: put"):
        (tmp_path / "there" / "base").rename(tmp_path / "away")
        formats.open_checkpoint(tmp_path / "there" / "runs" / "adapted")


def test_another_base_at_its_place_is_refused(tmp_path):
    run, _ = save_run(tmp_path)
    (tmp_path / "base").rename(tmp_path / "first")
    save_hf(tmp_path / "base", CONFIG, base_params(seed=2))
    opened = formats.open_checkpoint(run)
    for name in ("decoder/decoder_norm/scale", "encoder/layers_0/attention/query/kernel"):
        if name.endswith("kernel"):  # norms start at 1 whatever the seed
            with pytest.raises(InvalidFile, match="other weights than the base.*put that base"):
                opened.tensors[name].read()
        else:
            opened.tensors[name].read()
    (tmp_path / "base").rename(tmp_path / "second")
    wide = T5Config(**{**CONFIG.describe(), "mlp_dim": 25})
    save_hf(tmp_path / "base", wide, base_params(config=wide))
    with pytest.raises(InvalidFile, match="another architecture than"):
        formats.open_checkpoint(run)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank", 4, "adapters of encoder/layers_0/attention/query/kernel do not fit"),
        ("rank", 0, "rank"),
        ("targets", [3], "targets is .3.: names are needed"),
        ("surprise", 1, "surprise"),
    ],
)
def test_a_damaged_description_is_one_line(tmp_path, field, value, message):
    lora = {**SETTINGS.describe(), field: value}
    saved = {"lora": lora, "base": str(tmp_path / "base"), "base_from_run": None, "checksums": {}}
    run, _ = save_run(tmp_path)
    with pytest.raises(InvalidFile, match=message):
        fitted = SavedAdapters.from_description(saved, "here")
        opened = formats.open_run_checkpoint(run)
        formats.saved_adapters.whole(
            formats.dataclasses.replace(opened, adapters=fitted), formats.open_checkpoint
        )
