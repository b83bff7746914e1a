"""Sample outputs of several runs, side by side."""

import pytest

from gkd.report.arms import group_runs
from gkd.report.run_records import find_runs
from gkd.report.sample_browser import LONGEST, Token, collect_examples, fewer
from tests.report.run_folders import write_run

OFF, ON = {"on_policy_fraction": "0.0"}, {"on_policy_fraction": "1.0"}


def examples_of(folder, most=10):
    return collect_examples(group_runs(find_runs([folder])[0]), most)


def row(prompt, student, teacher="T"):
    return {"prompt": prompt, "student": student, "teacher": teacher, "reference": "R"}


def test_the_outputs_of_all_arms_for_a_prompt_stand_together(tmp_path):
    write_run(
        tmp_path / "off", scores={9: 1.0}, settings=OFF, samples=[row("p", "x"), row("q", "y")]
    )
    write_run(tmp_path / "on", scores={9: 1.0}, settings=ON, samples=[row("q", "z")])
    first, second = examples_of(tmp_path)[0]
    assert [(o.source, o.text) for o in second.outputs] == [
        ("teacher", "T"), ("off", "y"), ("on", "z"),
    ]  # fmt: skip
    assert (first.prompt, first.reference) == ("p", "R")
    assert [example.prompt for example in examples_of(tmp_path, 1)[0]] == ["p"]
    assert fewer([first, second]) == [first]


def test_an_evaluation_is_preferred_and_gives_tokens_with_their_kl(tmp_path):
    output = {
        "index": 0, "input": "p", "reference": "R",
        "student": {"greedy": [{"text": "g"}], "temperature_1.0": [{"text": "s"}, {"text": "u"}]},
        "teacher": {"greedy": [{"text": "t"}], "temperature_1.0": [{"text": "v"}]},
        "token_divergences": {"free_running": {"pieces": ["a", " b"], "forward_kl": [0.01, 2.5]}},
    }  # fmt: skip
    write_run(
        tmp_path / "gkd", scores={9: 1.0}, samples=[row("p", "x")],
        evaluation={"metrics": {}}, outputs=[output],
    )  # fmt: skip
    (example,), problems = examples_of(tmp_path)
    assert problems == []
    assert [(o.source, o.text) for o in example.outputs] == [
        ("teacher", "t"), ("gkd", "g"), ("gkd, temperature 1.0", "s"),
        ("gkd, sample at temperature 1, KL(P‖Q) of each token", "a b"),
    ]  # fmt: skip
    assert [token.level for token in example.outputs[-1].tokens] == [0, 5]


@pytest.mark.parametrize("kl, level", [(0.049, 0), (0.05, 1), (0.3, 2), (1.0, 4), (9.0, 5)])
def test_the_level_counts_the_bounds_that_are_reached(kl, level):
    assert Token("a", kl).level == level


def test_a_damaged_file_of_outputs_is_one_line_and_the_table_stands_in(tmp_path):
    folder = write_run(
        tmp_path / "gkd", scores={9: 1.0}, samples=[row("p", "x")], evaluation={"metrics": {}}
    )
    (folder / "evaluation-test.jsonl").write_text("half\n")
    (example,), problems = examples_of(tmp_path)
    assert [output.text for output in example.outputs] == ["T", "x"]
    assert len(problems) == 1 and "evaluation-test.jsonl:1" in problems[0]


@pytest.mark.parametrize(
    "measured", [3, {"free_running": []}, {"free_running": {"pieces": ["a"], "forward_kl": []}}]
)
def test_divergences_of_another_form_are_passed_over(tmp_path, measured):
    output = {"input": "p", "reference": "R", "student": {}, "token_divergences": measured}
    write_run(tmp_path / "a", scores={9: 1.0}, evaluation={"metrics": {}}, outputs=[output])
    assert examples_of(tmp_path)[0][0].outputs == []


def test_long_texts_are_cut(tmp_path):
    write_run(tmp_path / "gkd", scores={9: 1.0}, samples=[row("p" * 10_000, "x")])
    prompt = examples_of(tmp_path)[0][0].prompt
    assert prompt.startswith("p" * LONGEST + "…") and "10000 characters" in prompt
