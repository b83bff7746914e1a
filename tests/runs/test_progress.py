"""Progress: the rates against arithmetic, the output with and without a terminal."""

import io

import pytest
import rich.console

from gkd.runs.progress import Progress, Rates, announce, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rates_leave_out_the_first_step_which_compiles():
    clock = Clock()
    rates = Rates(clock)
    clock.now += 60
    rates.add(1, tokens=10)
    assert rates.per_second() is None
    for step in (2, 3, 4):
        clock.now += 0.5
        rates.add(step, tokens=100)
    assert rates.per_second() == (2.0, 200.0)


def test_rates_follow_a_change_of_speed():
    clock = Clock()
    rates = Rates(clock, window_seconds=10)
    for step in range(1, 1001):
        clock.now += 0.1
        rates.add(step, tokens=1)
    for step in range(1001, 1021):
        clock.now += 1.0
        rates.add(step, tokens=1)
    assert rates.per_second() == pytest.approx((1.0, 1.0))


def test_rates_forget_a_pause():
    clock = Clock()
    rates = Rates(clock)
    for step in (1, 2):
        clock.now += 1
        rates.add(step, tokens=8)
    clock.now += 20  # shorter than the window
    rates.skip()
    for step in (3, 4):
        clock.now += 0.25
        rates.add(step, tokens=8)
    assert rates.per_second() == (4.0, 32.0)


def test_after_a_pause_the_rates_before_it_hold_until_there_are_new_ones():
    clock = Clock()
    rates = Rates(clock)
    for step in (1, 2):
        clock.now += 1
        rates.add(step, tokens=8)
    clock.now += 20
    rates.skip()
    assert rates.per_second() == (1.0, 8.0)
    rates.add(3, tokens=8)
    assert rates.per_second() == (1.0, 8.0)


def test_a_slow_step_hardly_changes_the_time_that_is_left():
    clock = Clock()
    rates = Rates(clock)
    for step in range(1, 101):
        clock.now += 5 if step == 60 else 1
        rates.add(step, tokens=1)
    assert rates.per_second()[0] == pytest.approx(99 / 103)


def test_an_announcement_is_a_line_on_standard_error(capsys):
    announce("loading TEACHER [b]")
    assert capsys.readouterr() == ("", "loading TEACHER [b]\n")


def run(terminal, steps, seconds_a_step, **options):
    clock, out = Clock(), io.StringIO()
    console = rich.console.Console(file=out, force_terminal=terminal, width=120)
    with Progress("train", console=console, clock=clock, **options) as progress:
        for step in steps:
            clock.now += seconds_a_step
            progress.update(step, tokens=1000, loss=1.23456)
    return out.getvalue()


def test_without_a_terminal_a_plain_line_now_and_then():
    text = run(False, range(101, 131), 1.0, total_steps=200, start_step=100, line_seconds=10)
    assert text.splitlines() == [
        "train  110/200  loss 1.235  1 steps/s  1,000 tokens/s  ETA 1m30s",
        "train  120/200  loss 1.235  1 steps/s  1,000 tokens/s  ETA 1m20s",
        "train  130/200  loss 1.235  1 steps/s  1,000 tokens/s  ETA 1m10s",
    ]
    assert "\x1b" not in text


def test_the_last_step_is_always_shown_once():
    text = run(False, range(1, 4), 0.5, total_steps=3)
    assert text == "train  3/3  loss 1.235  2 steps/s  2,000 tokens/s\n"


def test_on_a_terminal_a_live_bar():
    text = run(True, range(1, 4), 0.5, total_steps=3)
    assert "3/3  loss 1.235  2 steps/s  2,000 tokens/s" in text and "━" in text and "\x1b" in text


def test_a_loop_without_steps_prints_nothing():
    assert run(False, [], 1.0, total_steps=3) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (125, "2m05s"), (11220, "3h07m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_what_a_model_wrote_is_printed_to_the_letter():
    file = io.StringIO()
    progress = Progress("train", 1, console=rich.console.Console(file=file, width=20))
    progress.print("[/b] [amd64] and a line longer than the console")
    assert file.getvalue() == "[/b] [amd64] and a line longer than the console\n"
