"""The verb: its files, its metrics, its refusals."""

import pytest

from gkd.cli import command_line
from gkd.report import report as verb
from tests.report.run_folders import write_run


def test_one_command_writes_the_page_and_its_figures(tmp_path, capsys):
    write_run(tmp_path / "gkd", scores={0: 1.0, 9: 2.0})
    assert command_line.main(["report", str(tmp_path)]) == 0
    page = tmp_path / "report" / "report.html"
    assert capsys.readouterr().out.startswith(f"report: {page}")
    assert "bleu by step" in page.read_text(encoding="utf-8")
    figures = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"bleu-by-step.png", "bleu-by-step.pdf"} <= figures
    assert command_line.main(["report", str(tmp_path)]) == 0  # its own folder holds no run


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["{}/none"], "no run in "),
        (["{}", "--metric=rouge2"], "--metric is 'rouge2', which no run has; measured are bleu"),
        (["{}", "--baseline=x"], "--baseline is 'x', which no arm is called"),
    ],
)
def test_what_no_run_has_is_one_line(tmp_path, capsys, arguments, error):
    write_run(tmp_path / "gkd", scores={0: 1.0, 9: 2.0})
    words = [word.format(tmp_path) for word in arguments]
    assert command_line.main(["report", *words]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gkd: error: ") and error in last


def test_runs_of_two_tasks_are_compared_by_both_metrics(tmp_path):
    write_run(tmp_path / "a", scores={0: 1.0, 9: 2.0})
    rows = [{"step": step, "evaluation/rouge2": 1.0 * step} for step in (0, 9)]
    write_run(tmp_path / "b", scores={}, rows=rows, settings={"best_metric": "'rouge2'"})
    text = verb.report([tmp_path]).read_text(encoding="utf-8")
    assert "bleu by step" in text and "rouge2 by step" in text


def test_a_page_that_would_be_too_large_has_fewer_samples(tmp_path, monkeypatch):
    samples = [{"prompt": f"{i} {'p' * 2000}", "student": "s", "reference": "r"} for i in range(16)]
    write_run(tmp_path / "gkd", scores={9: 1.0}, samples=samples)
    whole = verb.report([tmp_path]).stat().st_size
    monkeypatch.setattr(verb, "LARGEST", whole - 10_000)
    page = verb.report([tmp_path])
    assert page.stat().st_size < whole - 10_000
    text = page.read_text(encoding="utf-8")
    assert "0 ppp" in text and "15 ppp" not in text


def test_a_figure_of_many_arms_has_no_legend_and_says_so(tmp_path):
    for i in range(16):
        write_run(tmp_path / f"arm_{i}", scores={0: 1.0, 9: 2.0}, settings={"alpha": str(i)})
    text = verb.report([tmp_path]).read_text(encoding="utf-8")
    assert "16 lines, too many for a legend" in text


def test_the_title_names_the_folders(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, scores={0: 1.0, 9: 2.0})
    both = verb.report([tmp_path / "runs/a", tmp_path / "runs/b"]).read_text(encoding="utf-8")
    assert "<h1>Runs in runs: a, b</h1>" in both
    assert "<h1>Runs in a</h1>" in verb.report([tmp_path / "runs/a"]).read_text(encoding="utf-8")


def test_a_metric_of_a_group_has_figures_too(tmp_path):
    """A name with a slash is no folder."""
    rows = [{"step": step, "evaluation/long/bleu": 1.0 * step} for step in (0, 9)]
    for seed in (0, 1):
        write_run(tmp_path / str(seed), scores={}, rows=rows, seed=seed)
    path = verb.report([tmp_path], metric=["long/bleu"])
    names = {file.name for file in (path.parent / "figures").iterdir()}
    assert "long-bleu-by-step.png" in names and 'id="long-bleu-by-step"' in path.read_text("utf-8")


def test_an_evaluation_that_is_not_finite_is_left_out(tmp_path):
    curves = {"forward_kl": [0.5, float("nan")], "reverse_kl": [0.5, 0.25]}
    evaluation = {"metrics": {}, "by_position": {"free_running": curves}}
    for seed in (0, 1):
        write_run(tmp_path / str(seed), scores={9: 1.0}, seed=seed, evaluation=evaluation)
    page = verb.report([tmp_path]).read_text("utf-8")
    assert "reverse KL by position" in page and "forward KL by position" not in page


def test_a_folder_that_is_mistyped_is_not_made(tmp_path):
    write_run(tmp_path / "runs/gkd", scores={0: 1.0, 9: 2.0})
    path = verb.report([str(tmp_path / "rums"), str(tmp_path / "runs")])
    assert path == tmp_path / "runs/report/report.html" and not (tmp_path / "rums").exists()
