"""A sweep through the launch scripts: each cell has a slice or workload of its own."""

import json

import pytest

from gkd.cli import command_line
from gkd.configuration.gin_files import REPOSITORY
from tests.sweep import sweeping

TPU = ["env", "TPU_NAME=a-{name}", "bash", f"{REPOSITORY}/launch/tpu_vm.sh", "all"]
GKE = ["bash", f"{REPOSITORY}/launch/gke_xpk.sh", "all", "a-{name}"]
NAMES = ["a-sft-0", "a-sft-1", "a-jsd-0-1-0", "a-jsd-0-1-1"]


@pytest.fixture
def sweep(cloud, monkeypatch):
    """Function of a launcher to the exit code of a sweep, whose cells a stand-in trains."""
    monkeypatch.chdir(cloud.folder)
    monkeypatch.setenv("KEEP_NOTHING", "1")  # the stand-ins write to this machine's disk
    for name, value in {**cloud.environment, "EXECUTE": "1"}.items():
        monkeypatch.setenv(name, value)
    places = [cloud.folder / f"hosts/{name}/gkd/.venv/bin" for name in NAMES]
    for place in (cloud.programs, *places):
        place.mkdir(parents=True, exist_ok=True)
        (place / "python").write_text(sweeping.STAND_IN)
        (place / "python").chmod(0o755)
    text = sweeping.SWEEP.replace("'out'", repr(str(cloud.folder / "out")))
    (cloud.folder / "sweep.gin").write_text(text)

    def run(launcher, *overrides):
        options = [f"--gin.LAUNCHER={launcher!r}", *(f"--gin.{text}" for text in overrides)]
        return command_line.main(["sweep", "--gin_file=sweep.gin", *options])

    return run


@pytest.mark.parametrize("launcher", [TPU, GKE])
def test_a_sweep_runs_on_slices_of_its_own(cloud, sweep, launcher):
    assert sweep(launcher, "MAX_PARALLEL=4") == 0
    summaries = sorted(cloud.folder.glob("out/*/*/summary.json"))
    assert [json.loads(path.read_text())["steps"] for path in summaries] == [40, 30, 40, 30]
    made = [call for call in cloud.calls() if "create" in call]
    named = [call[5] if launcher is TPU else call[5].partition("=")[2] for call in made]
    assert sorted(named) == sorted(NAMES)
    assert sum("delete" in call for call in cloud.calls()) == 4
    calls = len(cloud.calls())
    assert (
        sweep(launcher, "MAX_PARALLEL=4") == 0 and len(cloud.calls()) == calls
    )  # all are complete


def test_a_launcher_that_does_not_wait_is_found_out(cloud, sweep, capfd):
    launcher = ["bash", f"{REPOSITORY}/launch/gke_xpk.sh", "--dry-run", "run", "{name}"]
    assert sweep(launcher) == 1
    assert "4 of 4 cells failed: sft/0 (ended, but" in capfd.readouterr().err.splitlines()[-1]
