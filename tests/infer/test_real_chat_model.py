"""A real SmolLM2-135M-Instruct on real chats against transformers, through infer.

Slow: set GKD_SMOLLM2_135M to the Hugging Face directory that the fixtures' tool writes.
"""

import json
import os
import pathlib

import pytest

from gkd.cli import command_line
from tests.infer.inference import read

pytestmark = pytest.mark.slow
SAFE_MARGIN = 1e-3  # below it two implementations may choose different tokens


@pytest.fixture
def model():
    """The Hugging Face directory."""
    folder = os.environ.get("GKD_SMOLLM2_135M", "")
    if not pathlib.Path(folder, "config.json").is_file():
        pytest.skip(
            "needs a SmolLM2-135M-Instruct: python SHARED/tools/smollm2_135m.py DIR, then set "
            "GKD_SMOLLM2_135M=DIR"
        )
    return folder


def test_chats_are_answered_as_by_transformers(model, shared, tmp_path, optimized):
    text = (shared / "golden" / "smollm2_135m" / "greedy.jsonl").read_text()
    golden = [json.loads(line) for line in text.splitlines()]
    chats = [json.dumps({"messages": row["messages"]}) for row in golden]
    (tmp_path / "chats.jsonl").write_text("\n".join(chats) + "\n")
    arguments = [
        "infer", f"--model={model}", f"--input={tmp_path}/chats.jsonl", "--dtype=float32",
        f"--output={tmp_path}/out.jsonl", "--max_length=40", "--batch_size=8",
    ]  # fmt: skip
    assert command_line.main(arguments) == 0
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == len(golden) == 24
    for row, want in zip(rows, golden, strict=True):
        assert row["input"] == want["text"]
        margins = want["greedy_margins"]
        certain = next((i for i, margin in enumerate(margins) if margin < SAFE_MARGIN), None)
        assert row["tokens"][:certain] == want["greedy_ids"][:certain]
        if certain is None:
            assert row["log_prob"] == pytest.approx(sum(want["greedy_log_probs"]), abs=1e-3)
