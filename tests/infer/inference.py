"""A small random model and a runner for the tests of `infer`."""

import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from gkd.checkpoints import save_hf
from gkd.cli import command_line
from gkd.models.t5 import T5, T5Config, as_seq2seq

CONFIG = T5Config(
    vocab_size=300, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
    num_decoder_layers=1,
)  # fmt: skip
USABLE = 259  # ByT5's bytes; the table has more rows
TEXTS = (
    "short",
    "a line of more than sixty-four bytes, so that it skips a bucket",
    "ünïcode € 漢字",
    "x" * 98,
    "",
    "tiny",
    "another line that is a lot longer than sixty-four bytes, this time with a comma",
    "the end",
    "and one more",
    "ten",
    "eleven is the last",
)


def bytes_of(text):
    """ByT5's ids, worked out here: byte b is id b + 3, then EOS."""
    return [byte + 3 for byte in text.encode()] + [1]


def log_softmax(logits):
    """In float64 NumPy."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@jax.jit
def apply(params, inputs, decoder_inputs):
    return T5(CONFIG).apply({"params": params}, inputs, decoder_inputs)


def raw_logits(params, text, tokens):
    """Teacher-forced logits [T, V] of one example, from the plain Linen module."""
    inputs, decoder = np.zeros((1, 256), np.int32), np.zeros((1, 10), np.int32)
    inputs[0, : len(bytes_of(text))] = bytes_of(text)
    decoder[0, 1 : len(tokens)] = tokens[:-1]
    return np.array(apply(params, inputs, decoder)[0, : len(tokens)])


def usable_log_probs(params, text, tokens):
    """log Q [T, V] over `valid_ids`: neither pad nor a row without a byte."""
    logits = raw_logits(params, text, tokens)
    logits[:, 0] = logits[:, USABLE:] = -1e30
    return log_softmax(logits)


@functools.cache
def _initial():
    return nn.meta.unbox(jax.jit(as_seq2seq(CONFIG).init)(jax.random.key(3)))


@pytest.fixture(scope="module")
def model():
    """The parameters of a small random model that sometimes stops by itself."""
    params = jax.tree.map(lambda x: x, _initial())
    kernel = 3 * params["decoder"]["logits_dense"]["kernel"]
    kernel = kernel.at[:, 1].multiply(3)  # EOS is now often the most probable, often the least
    params["decoder"]["logits_dense"]["kernel"] = kernel
    return params


@pytest.fixture(scope="module")
def model_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "hf"
    save_hf(folder, CONFIG, model)
    return folder


@pytest.fixture
def run(model_dir, tmp_path, capfd):
    """Runs `gkd infer` in a folder of its own; returns exit code and stderr."""

    class Run:
        folder = tmp_path

        def write(self, name, rows):
            """An input file; rows are texts, or dictionaries for JSONL."""
            path = tmp_path / name
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            path.write_text("".join(f"{line}\n" for line in lines))
            return path

        def __call__(self, input, output="out.jsonl", **options):
            options = {"vocabulary": "bytes", "max_length": 6, "batch_size": 8} | options
            options |= {"model": options.get("model", model_dir), "output": tmp_path / output}
            options |= {} if input is None else {"input": input}
            arguments = [
                f"--{name}" if value is True else f"--{name}={value}"
                for name, value in options.items()
            ]
            capfd.readouterr()
            code = command_line.main(["infer", *arguments])
            self.stdout, self.stderr = capfd.readouterr()
            return code

        def rows(self, input, output="out.jsonl", **options):
            """Runs it, and reads what it wrote."""
            assert self(input, output, **options) == 0, self.stderr
            return read(tmp_path / output)

        def refused(self, *parts, code=1):
            """The last run ended in one line that holds the parts."""
            line = self.stderr.splitlines()[-1]
            assert "Traceback" not in self.stderr and line.startswith("gkd: error: "), self.stderr
            for part in parts:
                assert part in line

    return Run()


def read(path):
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
