"""The architecture in a T5X config.gin: as gin itself reads it, without running anything."""

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gkd.checkpoints import t5x_format
from tests.checkpoints.t5x_checkpoints import TINY, random_params, write_inline

LINES = "network.T5Config.mlp_activations = (\n    'silu',\n    'linear',\n)\n"
MACRO = "network.T5Config.mlp_activations = %ACTIVATIONS\nACTIVATIONS = ('silu', 'linear')\n"
CHAIN = "A = %B\nB = ['silu', %C]\nC = 'linear'\nx/network.T5Config.mlp_activations = %A\n"
FORMS = {
    "one line": "network.T5Config.mlp_activations = ('silu', 'linear')  # as published\n",
    "several lines": LINES,
    "continued": "network.T5Config.mlp_activations = \\\n    ('silu', 'linear')\n",
    "a macro": MACRO,
    "a macro of a macro": CHAIN,
    "gin.macro": "network.T5Config.mlp_activations = %A\nA/gin.macro.value = ('silu', 'linear')\n",
    "a block": "network.T5Config:\n  mlp_activations = ('silu', 'linear')\n  emb_dim = 8\n",
    "the last of two": "network.T5Config.mlp_activations = ('relu', 'linear')\n" + LINES,
    "full name": "t5x.examples.t5.network.T5Config.mlp_activations = ('silu', 'linear')\n",
    "in the midst": "from __gin__ import dynamic_registration\nfrom t5x import models\n"
    "include 't5x/configs/runs/pretrain.gin'\nMODEL = @models.EncoderDecoderModel()\n"
    "models.EncoderDecoderModel.module = @network.Transformer()\n" + MACRO,
}


@pytest.mark.parametrize("form", list(FORMS))
def test_activations_in_every_form_that_gin_has(form, tmp_path):
    write_inline(tmp_path, random_params(TINY))
    (tmp_path / "config.gin").write_text(FORMS[form])
    assert t5x_format.open_t5x(tmp_path).config.mlp_activations == ("silu", "linear")


@pytest.mark.parametrize(
    "gin, rate",
    [
        ("network.T5Config.dropout_rate = 0.07\n", 0.07),
        ("DROPOUT_RATE = 0.25\nnetwork.T5Config:\n    dropout_rate = %DROPOUT_RATE\n", 0.25),
        ("network.T5Config.dropout_rate = 0\n", 0.0),
        ("network.T5Config.emb_dim = 8\n", 0.1),  # T5X's default
        ("trainer.Trainer.dropout_rate = 0.3\n", 0.0),
        ("network.T5Config.dropout_rate = %gin.REQUIRED\n", 0.1),
    ],
)
def test_the_dropout_rate_is_t5xs(gin, rate, tmp_path):
    write_inline(tmp_path / "checkpoint_5", random_params(TINY))
    assert t5x_format.open_t5x(tmp_path).config.dropout_rate == 0
    (tmp_path / "config.gin").write_text(gin)
    assert t5x_format.open_t5x(tmp_path).config.dropout_rate == rate


@pytest.mark.parametrize(
    "gin, message",
    [
        ("network.T5Config.dropout_rate = 'x'\n", "dropout_rate is 'x': a number is needed"),
        ("network.T5Config.dropout_rate = True\n", "dropout_rate is True: a number is needed"),
        ("network.T5Config.dropout_rate = 1.5\n", "dropout_rate is 1.5: use 1 or less"),
        ("network.T5Config.mlp_activations = 3\n", "mlp_activations = 3, wanted two names"),
        ("network.T5Config.mlp_activations = (%A, 'linear')\n", r"\(%A, 'linear'\), wanted two"),
        ("A = %A\nnetwork.T5Config.mlp_activations = %A\n", "mlp_activations = %A, wanted two"),
        ("network.T5Config.emb_dim = (\n", "is no gin that can be read"),
        ("!" * 50, "is no gin that can be read"),
        ("network.T5Config.emb_dim = " + "[" * 100_000, "is no gin that can be read"),
        ("x.y = " + "(" * 5000 + ")" * 5000, "is no gin that can be read"),
        ("a.b = 'x'\n" * 1_000_000, "characters: no config.gin is that long"),
    ],
)
def test_a_gin_file_that_says_nothing_of_use(gin, message, tmp_path):
    write_inline(tmp_path, random_params(TINY))
    (tmp_path / "config.gin").write_text(gin)
    with pytest.raises(ValueError, match=message) as caught:
        t5x_format.open_t5x(tmp_path)
    assert "\n" not in str(caught.value) and "config.gin" in str(caught.value)


def test_a_gin_file_that_is_no_text(tmp_path):
    write_inline(tmp_path, random_params(TINY))
    (tmp_path / "config.gin").write_bytes(b"network.T5Config.emb_dim = 8  # \xff\n")
    with pytest.raises(ValueError, match=r"config.gin is not UTF-8"):
        t5x_format.open_t5x(tmp_path)


def test_nothing_is_imported_or_called(tmp_path):
    """A module of the working directory that a gin file imports stays unread."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')\n")
    gin = "import evil\nfrom evil import x\nA = @evil.f()\nnetwork.T5Config.dropout_rate = %A\n"
    program = f"from gkd.checkpoints.t5x_gin import read_t5_config as r; print(r({gin!r}, 'x'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "{'dropout_rate': @evil.f()}"
    assert not pathlib.Path(tmp_path / "hacked").exists()


def test_what_is_written_comes_back(tmp_path):
    config = dataclasses.replace(TINY, dropout_rate=0.15)
    t5x_format.save_t5x(tmp_path / "out", config, random_params(config))
    assert t5x_format.open_t5x(tmp_path / "out").config == config
    table = t5x_format.load_t5x(tmp_path / "out")["token_embedder"]["embedding"]
    np.testing.assert_array_equal(table, random_params(config)["token_embedder"]["embedding"])
