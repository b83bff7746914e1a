"""The quickstart: a few steps of all it does and, marked slow, whether it shows the effect."""

import json
import os
import subprocess
import sys

import pytest

from gkd.quickstart import quickstart
from tests.compilation import FLAGS
from tests.paths import REPOSITORY


def test_a_quickstart_of_a_few_steps_ends_with_table_figure_and_samples(tmp_path, capfd):
    small = (
        "--gin.TRAIN_STEPS=3", "--gin.WARMUP_STEPS=0", "--gin.COOLDOWN_STEPS=0",
        "--gin.EVALUATION_EXAMPLES=16", "--gin.EVALUATION_BATCH_SIZE=16", "--gin.SOLUTION='totals'",
    )  # fmt: skip
    arguments = [f"--directory={tmp_path}", "--seed=7", *small]
    done = subprocess.run(  # on one device, as a user's
        [sys.executable, "-m", "gkd.quickstart.quickstart", *arguments],
        capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "XLA_FLAGS": FLAGS},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = done.stdout
    results = json.loads((tmp_path / "seed_7/quickstart.json").read_text())
    assert set(results) == {"teacher", "start", "supervised_kd", "gkd"}
    for arm in ("supervised_kd", "gkd"):
        want = results[arm]["exact_match"] - results["start"]["exact_match"]
        assert results[arm]["gain"] == pytest.approx(want)
    assert (tmp_path / "seed_7/quickstart.png").read_bytes()[1:4] == b"PNG"
    for text in ("on-policy GKD (λ=1)", "exact match", "reference", "#### "):
        assert text in out
    assert quickstart.main(arguments) == 0, "a finished quickstart only prints"
    assert "on-policy GKD (λ=1)" in capfd.readouterr().out


@pytest.mark.slow
def test_on_policy_gains_more_than_supervised_distillation(tmp_path):
    assert quickstart.main([f"--directory={tmp_path}"]) == 0
    results = json.loads((tmp_path / "seed_0/quickstart.json").read_text())
    assert results["teacher"]["exact_match"] > 95
    assert results["gkd"]["gain"] > results["supervised_kd"]["gain"] > 0
