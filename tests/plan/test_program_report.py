"""The notes and figures of a plan."""

import json

from gkd.plan import program_report, programs
from gkd.train.model_flops import step_flops
from tests.plan.planning import DISTIL, plan, traced


def test_what_the_model_axis_does_not_divide_is_said():
    sizes = ("t5.T5Config.num_heads=4", "t5.T5Config.mlp_dim=30", "t5.T5Config.vocab_size=66")
    notes = program_report.undivided(traced(*DISTIL, *sizes, "MODEL_PARALLELISM=4"))
    assert notes == [
        f"the {role}'s {part} is not split over model=4"
        for role in ("student", "teacher")
        for part in ("feed-forward layers (width 30)", "vocabulary (66 ids)")
    ]
    assert program_report.undivided(traced(*DISTIL, *sizes)) == []


def test_a_count_that_is_not_the_closed_form_gives_no_figure(capsys, monkeypatch, tmp_path):
    def four_percent_more(*arguments, **how):
        return {name: 1.04 * cost for name, cost in step_flops(*arguments, **how).items()}

    monkeypatch.setattr(programs, "step_flops", four_percent_more)
    output = tmp_path / "plan.json"
    options = ("--topology=cpu:8", "--programs=step", f"--output={output}")
    message = plan(capsys, *options, code=1)
    assert "no estimate of step" in message
    step = json.loads(output.read_text())["programs"]["step"]
    assert step["fits"] and "they differ by more than" in step["refused"]
    assert not {"flops", "bytes", "collectives", "seconds_without_overlap", "run"} & set(step)
