"""Tables of the documentation that repeat what the code and the gin files hold."""

import argparse
import re

import pytest

from gkd.cli import command_line, plain_arguments
from gkd.configuration.gin_files import GinReader
from gkd.parallel import processes
from gkd.program_cost.roofline import CHIPS
from gkd.runs import lease_owner, signals
from tests.docs import pages
from tests.paths import REPOSITORY


def test_exit_codes():
    table = pages.tables("docs/pods.md", "Interruptions and exit codes")
    rows = {int(code): meaning for code, meaning in table}
    assert set(rows) == {
        command_line.EXIT_OK, command_line.EXIT_FAILED, command_line.EXIT_USAGE,
        signals.EXIT_STOPPED, signals.EXIT_LOST, signals.EXIT_INTERRUPTED, 255,
    }  # fmt: skip
    assert "stopped" in rows[signals.EXIT_STOPPED] and "lost" in rows[signals.EXIT_LOST]
    assert "silent=255" in (REPOSITORY / "launch/tpu_vm.sh").read_text()


def test_timeouts_of_a_job():
    rows = pages.tables("docs/pods.md", "Jobs of several processes")
    defaults = {name.strip("`"): int(value) for name, value, _ in rows}
    assert defaults == {
        processes.START: processes.START_SECONDS,
        processes.HEARTBEAT: processes.HEARTBEAT_SECONDS,
        lease_owner.SECONDS: lease_owner.DEFAULT_SECONDS,
    }


def test_chips_that_plan_knows():
    rows = pages.tables("docs/planning.md", "Slices, chips and capacities")
    shown = {name.strip("`"): numbers for name, *numbers in rows}
    assert set(shown) == set(CHIPS) - {"cpu"}
    for name, (flops, memory, bandwidth, network) in shown.items():
        chip = CHIPS[name]
        assert float(flops) == chip.flops / 1e12
        assert float(memory) == pytest.approx(chip.memory / 2**30, abs=0.005)
        assert float(bandwidth) == chip.bandwidth / 1e9
        if chip.dcn is None:
            assert network.startswith("not published")
        else:
            assert float(network) == 8 * chip.dcn / 1e9  # bits


def test_options_of_plan():
    parser = argparse.ArgumentParser()
    plain_arguments.add_plan_arguments(parser)
    known = set(re.findall(r"--[a-z_]+", parser.format_usage()))
    rows = pages.tables("docs/planning.md", "Options")
    shown = {re.search(r"--[a-z_]+", option)[0] for option, _ in rows}
    assert shown == known


def test_metric_names_of_training_are_those_in_the_code():
    text = "\n".join(path.read_text() for path in (REPOSITORY / "gkd").rglob("*.py"))
    rows = pages.tables("docs/metrics.md", "Metrics during training")
    names = [name for row in rows for name in re.findall(r"(?:train|data)/(\w+)", row[0])]
    assert len(names) > 10
    missing = [name for name in names if f'"{name}"' not in text and f'/{name}"' not in text]
    assert not missing
    task_names = [name for row in pages.tables("docs/metrics.md", "Task metrics")
                  for name in re.findall(r"`(\w+)`", row[0])]  # fmt: skip
    assert not [name for name in task_names if f'"{name}"' not in text]


@pytest.mark.parametrize("column, task", enumerate(["xsum", "wmt14_en_de", "gsm8k", "flan"], 1))
def test_settings_of_the_paper_are_those_of_the_run_files(column, task):
    name = f"configs/runs/{task}/common.gin"
    reader = GinReader()
    reader.read_file(REPOSITORY / name)
    text = (REPOSITORY / name).read_text()
    rows = pages.tables("docs/paper_to_config.md", "Tasks and training settings")
    checked = 0
    for row in rows:
        macro = row[0].strip("`")
        if not re.fullmatch("[A-Z_]+", macro):
            continue
        shown = row[column]
        assert float(shown.split()[0].replace(",", "")) == reader.value_of(macro)
        line = re.search(rf"^{macro} = .*$", text, flags=re.MULTILINE)[0]
        assert ("(ours)" in shown) == ("# ours" in line)
        checked += 1
    assert checked == 3
