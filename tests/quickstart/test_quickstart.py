"""The quickstart: a few steps of all it does and, marked slow, whether it shows the effect."""

import json
import runpy
import sys

import pytest

from gkd.quickstart import quickstart
from tests.paths import REPOSITORY


def test_a_quickstart_of_a_few_steps_ends_with_table_figure_and_samples(
    tmp_path, capfd, monkeypatch, one_device
):
    small = (
        "--gin.TRAIN_STEPS=3", "--gin.WARMUP_STEPS=0", "--gin.COOLDOWN_STEPS=0",
        "--gin.teacher/t5.T5Config.num_encoder_layers=1",
        "--gin.teacher/t5.T5Config.num_decoder_layers=1", "--gin.EVALUATION_EXAMPLES=16",
        "--gin.EVALUATION_BATCH_SIZE=16", "--gin.SOLUTION='totals'", "--gin.TIME_PARTS=False",
    )  # fmt: skip
    arguments = [f"--directory={tmp_path}", "--seed=7", *small]
    monkeypatch.chdir(REPOSITORY)
    assert quickstart.main(arguments) == 0
    out = capfd.readouterr().out
    results = json.loads((tmp_path / "seed_7/quickstart.json").read_text())
    assert set(results) == {"teacher", "start", "supervised_kd", "gkd"}
    for arm in ("supervised_kd", "gkd"):
        want = results[arm]["exact_match"] - results["start"]["exact_match"]
        assert results[arm]["gain"] == pytest.approx(want)
    page = (tmp_path / "seed_7/report/report.html").read_text(encoding="utf-8")
    assert "exact match by step" in page and "KL(P‖Q) of each token" in page
    assert f"report: {tmp_path}/seed_7/report/report.html" in out
    for text in ("on-policy GKD (λ=1)", "exact match", "reference", "#### "):
        assert text in out
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert quickstart.main(arguments) == 0  # only prints, and opens the page on a desktop
    assert opened == [f"file://{tmp_path}/seed_7/report/report.html"]
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setattr(sys, "argv", ["quickstart", *arguments])
    with pytest.raises(SystemExit) as ended:  # a finished quickstart only prints
        runpy.run_module("gkd.quickstart.quickstart", run_name="__main__")
    assert ended.value.code == 0
    assert "on-policy GKD (λ=1)" in capfd.readouterr().out


@pytest.mark.slow
def test_on_policy_gains_more_than_supervised_distillation(tmp_path):
    assert quickstart.main([f"--directory={tmp_path}"]) == 0
    results = json.loads((tmp_path / "seed_0/quickstart.json").read_text())
    assert results["teacher"]["exact_match"] > 95
    assert results["gkd"]["gain"] > results["supervised_kd"]["gain"] > 0
