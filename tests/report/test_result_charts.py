"""Charts of results against numbers by hand."""

import pytest

from gkd.report.arms import group_runs
from gkd.report.result_charts import result_charts
from gkd.report.run_records import find_runs
from tests.report.run_folders import write_run


def charts_of(folder):
    arms = group_runs(find_runs([folder])[0])
    return {chart.name: chart for chart in result_charts(arms, ["bleu"])}


def evaluation(**metrics):
    return {"metrics": metrics, "signatures": {}}


def test_scores_by_the_students_size_have_a_line_for_each_method(tmp_path):
    for size, parameters in (("small", 10**6), ("base", 10**8)):
        for fraction, score in (("0.0", 1.0), ("1.0", 2.0)):
            write_run(
                tmp_path / size / fraction, scores={9: score + parameters / 1e6},
                parameters=parameters,
                settings={"on_policy_fraction": fraction, "student": f"'runs/{size}'"},
            )  # fmt: skip
    chart = charts_of(tmp_path)["bleu-by-parameters-of-the-student"]
    assert chart.log_x
    lines = {line.label: (list(line.x), list(line.y)) for line in chart.lines}
    assert lines == {
        "on_policy_fraction 0.0": ([1e6, 1e8], [2.0, 101.0]),
        "on_policy_fraction 1.0": ([1e6, 1e8], [3.0, 102.0]),
    }


def test_a_numeric_setting_of_three_values_is_an_axis(tmp_path):
    for alpha in ("0.0", "0.5", "1.0"):
        write_run(tmp_path / alpha, scores={9: 10 * float(alpha)}, settings={"alpha": alpha})
    (line,) = charts_of(tmp_path)["bleu-by-alpha"].lines
    assert (list(line.x), list(line.y)) == ([0, 0.5, 1], [0, 5, 10])


def test_the_heat_map_holds_gains_by_fraction_and_divergence(tmp_path):
    scores = {("0.0", "forward_kl"): 12.0, ("1.0", "forward_kl"): 15.0, ("1.0", "jsd"): 11.0}
    for (fraction, divergence), score in scores.items():
        settings = {"on_policy_fraction": fraction, "divergence": f"@divergences.{divergence}"}
        settings |= {"beta": "0.1"} if divergence == "jsd" else {}
        write_run(tmp_path / fraction / divergence, scores={0: 10.0, 9: score}, settings=settings)
    chart = charts_of(tmp_path)["bleu-gain"]
    assert (chart.rows, chart.columns) == (["1.0", "0.0"], ["forward_kl", "jsd\nβ = 0.1"])
    assert chart.values == [[5.0, 1.0], [2.0, None]]


def test_settings_of_any_kind_are_no_axis_and_no_obstacle(tmp_path):
    values = ("{'train': 5}", "{'train': 6}", "None", "@mixing.linear_schedule()", "(1, 2)", "0.5")
    for i, value in enumerate(values):
        settings = {"rows": value, "on_policy_fraction": value, "divergence": "@divergences.jsd"}
        write_run(tmp_path / str(i), scores={0: 1.0, 9: 2.0}, settings=settings)
    assert charts_of(tmp_path) == {}


def test_quality_and_diversity_have_a_line_for_each_temperature(tmp_path):
    for name, quality in (("a", 20.0), ("b", 10.0)):
        student = {
            "greedy": {"bleu": 50.0},
            "temperature_0.5": {"bleu": quality, "self_bleu": quality + 1},
            "temperature_1.0": {"bleu": quality / 2, "self_bleu": quality + 2},
        }
        write_run(
            tmp_path / name, scores={9: 1.0}, evaluation=evaluation(student=student),
            settings={"beta": f"0.{ord(name)}"},
        )  # fmt: skip
    half, one = charts_of(tmp_path)["bleu-diversity"].lines
    assert (half.label, one.label) == ("temperature 0.5", "temperature 1")
    assert (half.x, half.y, half.texts) == ((11.0, 21.0), (10.0, 20.0), ("b", "a"))
    assert (one.x, one.y) == ((12.0, 22.0), (5.0, 10.0))


def test_kl_by_position_is_the_mean_of_the_runs_as_far_as_all_reach(tmp_path):
    for seed, values in enumerate(([1.0, 2.0], [3.0, 4.0, 5.0])):
        curves = {"free_running": {"forward_kl": values}, "teacher_forced": {}}
        record = evaluation(student={}) | {"by_position": curves}
        write_run(tmp_path / f"gkd/{seed}", scores={9: 1.0}, seed=seed, evaluation=record)
    charts = charts_of(tmp_path)
    (line,) = charts["forward-kl-by-position"].lines
    assert (list(line.x), list(line.y)) == ([1, 2], [2.0, 3.0])
    assert not line.dashed and "reverse-kl-by-position" not in charts


def test_several_samples_have_a_chart_for_each_decoding(tmp_path):
    numbers = {"pass@1": 20.0, "pass@2": 30.0, "pass@10": 40.0, "maj@10": 25.0}
    record = evaluation(student={"temperature_1.0": numbers})
    write_run(tmp_path / "gkd", scores={9: 1.0}, evaluation=record)
    passes, votes = charts_of(tmp_path)["samples-temperature_1.0"].lines
    assert (list(passes.x), list(passes.y)) == ([1, 2, 10], [20.0, 30.0, 40.0])
    assert (list(votes.x), votes.y, votes.dashed) == ([10], (25.0,), True)


def test_one_run_without_evaluations_has_no_such_chart(tmp_path):
    write_run(tmp_path / "gkd", scores={0: 1.0, 9: 2.0})
    assert charts_of(tmp_path) == {}


@pytest.mark.parametrize("metrics", [{"student": None}, {"student": {"greedy": 3}}, {}])
def test_evaluations_of_another_form_are_passed_over(tmp_path, metrics):
    write_run(tmp_path / "gkd", scores={9: 2.0}, evaluation=evaluation(**metrics))
    assert charts_of(tmp_path) == {}
