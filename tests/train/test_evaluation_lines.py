"""The lines of a training run on the terminal: exact texts, from one evaluation to a whole run."""

import json

from gkd.cli import command_line
from gkd.train.evaluation_lines import Best, evaluation_line
from tests.paths import TINY

# The evaluation after 100 steps of the quickstart's supervised KD.
VALUES = {
    "exact_match": 51.0, "exact_match_calculator": 51.0, "output_length": 11.41,
    "unfinished": 0.0, "on_policy_forward_kl": 0.3506, "on_policy_reverse_kl": 0.9,
    "on_policy_jsd_0.1": 0.02135, "on_policy_total_variation": 0.1286,
    "reference_forward_kl": 0.2334, "reference_reverse_kl": 0.8574, "reference_jsd_0.1": 0.01856,
    "reference_total_variation": 0.1191, "algebra/exact_match": 50.0,
}  # fmt: skip


def test_a_line_has_the_tasks_metrics_one_divergence_and_the_best():
    best = Best("exact_match", "max", 54.4, 0)
    best.add(100, VALUES)
    assert evaluation_line("step 100", VALUES, best) == (
        "step 100: exact_match 51, exact_match_calculator 51, forward KL 0.3506; "
        "best exact_match 54.4 at step 0"
    )
    assert evaluation_line("teacher", {"bleu": 25.5, "reward": 70.0}) == (
        "teacher: bleu 25.5, reward 70"
    )
    assert evaluation_line("step 1", {"bleu": 2.0}, Best(None, "max")) == "step 1: bleu 2"


def test_the_best_is_by_its_mode_and_the_newest_of_equals():
    best = Best("loss", "min")
    best.add_rows([
        {"step": 0, "evaluation/loss": 2.0}, {"step": 5, "train/loss": 0.0},
        {"step": 10, "evaluation/loss": 1.0}, {"step": 20, "evaluation/loss": 1.0},
    ])  # fmt: skip
    best.add(30, {"loss": 1.5})
    assert (best.value, best.step) == (1.0, 20)


def test_what_is_not_finite_is_not_the_best():
    best = Best("loss", "max")
    for step, value in enumerate((float("nan"), 0.5, float("inf"), 0.25)):
        best.add(step, {"loss": value})
    assert (best.value, best.step) == (0.5, 1)


def test_a_run_prints_its_files_and_its_best_also_when_it_continues(tmp_path, capfd, one_device):
    run = tmp_path / "run"
    arguments = [
        "train", f"--gin_file={TINY}", f'--gin.MODEL_DIR="{run}"',
        "--gin.EVALUATE_EVERY=2", "--gin.CHECKPOINT_EVERY=2",
    ]  # fmt: skip

    def lines(steps):
        assert command_line.main([*arguments, f"--gin.TRAIN_STEPS={steps}"]) == 0
        return capfd.readouterr().err.splitlines()

    def rows():
        text = (run / "metrics.jsonl").read_text()
        return [
            row for row in map(json.loads, text.splitlines()) if "evaluation/exact_match" in row
        ]

    files = f"checkpoints, metrics, samples and speed are in {run}"
    first = lines(2)
    assert f"steps 1 to 2; {files}" in first
    second = lines(4)
    assert f"steps 3 to 4; {files}" in second
    scores = {row["step"]: row["evaluation/exact_match"] for row in rows()}
    assert sorted(scores) == [0, 2, 4]
    best = max(scores, key=lambda step: (scores[step], step))
    shown = f"best exact_match {scores[best]:.4g} at step {best}"
    assert first.index("evaluating 24 rows at step 0") < first.index("compiling the step")
    assert second.count("compiling the step") == 1 and "evaluating 24 rows at step 4" in second
    evaluations = [line for line in second if line.startswith("step 4: ")]
    metrics = ("exact_match", "exact_match_calculator")
    last = rows()[-1]
    values = ", ".join(f"{name} {last[f'evaluation/{name}']:.4g}" for name in metrics)
    assert evaluations == [f"step 4: {values}; {shown}"]
    assert f"complete at step 4; {shown}; written: {run / 'summary.json'}" == second[-1]
