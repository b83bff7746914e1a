"""Trackers: every metric under its name and step, one run over several launches, never fatal."""

import inspect
import json
import sys

import pytest

from gkd.runs import trackers
from gkd.runs.metrics_log import MetricsLog, read_metrics
from gkd.runs.run_directory import open_run
from gkd.runs.signals import Stopped
from tests.compilation import devices
from tests.runs.fake_trackers import FAKES, Store
from tests.train.training import no_evaluations, train
from tests.waiting import wait_until

KINDS = tuple(FAKES)


SETTINGS = {"LEARNING_RATE": 0.003, "STUDENT": None, "LAMBDA": "@mixing.linear_schedule()"}
MADE_WITH = {"git_commit": "0123abcd", "command_line": "gkd train"}


@pytest.fixture
def store(monkeypatch, kind):
    made = Store()
    for name, module in FAKES[kind](made).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_PROJECT", "WANDB_DIR", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.hang.set()


@pytest.fixture
def launch(tmp_path):
    """One launch of a run: what it writes from a step on, and the error that ends it."""

    def launch(kind, restored_step, steps, error=None, settings=None, kill=False):
        about = trackers.About("my run", tmp_path, SETTINGS | (settings or {}), MADE_WITH)
        log = MetricsLog(tmp_path, tensorboard=False, tracker=trackers.Tracker(kind, about))
        log.__enter__()
        log.truncate_after(-1 if restored_step is None else restored_step)
        for step in steps:
            log.write(step, {"train/loss": step / 7})
            log.write_events(step, {"speed/goodput": step / 9})
            if step % 4 == 0:
                log.write(step, {"evaluation/bleu": step + 0.5, "evaluation/nan": float("inf")})
        if not kill:
            log.__exit__(None, error, None)
        return log

    return launch


def known(tmp_path):
    return json.loads((tmp_path / "tracker.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_tracker_has_every_metric_of_the_log_with_its_step(kind, store, launch, tmp_path, capfd):
    launch(kind, None, range(1, 9))
    ((key, run),) = store.runs.items()
    assert run["name"] == "my run" and run["outcome"] == "finished"
    config = {name: str(value) for name, value in run["config"].items()}
    assert config == {name: str(value) for name, value in (SETTINGS | MADE_WITH).items()}
    assert run.get("commit", "0123abcd") == "0123abcd"
    rows = read_metrics(tmp_path)
    want = {(name, row["step"]): [row[name]] for row in rows for name in row if name != "step"}
    want |= {("speed/goodput", step): [step / 9] for step in range(1, 9)}
    assert store.values(key) == want and len(want) == 8 + 8 + 2 * 2
    assert known(tmp_path)["id"] == key
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_run_and_sends_no_step_twice(kind, store, launch, capfd):
    launch(kind, None, range(1, 7), Stopped("SIGTERM"))
    ((key, run),) = store.runs.items()
    assert run["outcome"] == ("finished" if kind == "trackio" else "stopped")  # it has no other
    launch(kind, 3, range(4, 9), ValueError("a mistake"))
    assert list(store.runs) == [key]
    assert run["outcome"] == ("finished" if kind == "trackio" else "failed")
    came = store.values(key)
    assert {len(values) for values in came.values()} == {1}
    assert [step for name, step in came if name == "train/loss"] == list(range(1, 9))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_launch_did_not_send_comes_with_the_next(kind, store, launch, tmp_path):
    """A tracker that did not answer, or was not chosen: the rows are in metrics.jsonl."""
    store.faults = ["start"]
    launch(kind, None, range(1, 6), kill=True)._tracker.close(trackers.FAILED)
    assert not store.runs
    launch(kind, 4, range(5, 7))
    (key,) = store.runs
    came = store.values(key)
    assert {step for name, step in came if name == "train/loss"} == set(range(1, 7))
    assert came["evaluation/bleu", 4] == [4.5]
    assert set(known(tmp_path)["sent"].values()) == {6, 4}


@pytest.mark.parametrize("kind", ["trackio"])
def test_only_what_is_surely_kept_counts_as_sent(kind, store, launch, tmp_path, monkeypatch):
    """Trackio has its rows on disk a moment after `log` returns: a kill may lose them."""
    monkeypatch.setattr(trackers, "_SAVE_SECONDS", 0.0)
    store.faults = ["hang in log 6"]  # of two rows a step: what was written before is settled
    log = launch(kind, None, [1, 2, 3], kill=True)
    wait_until(lambda: store.calls["log"] == 6)
    assert known(tmp_path)["sent"] == {"train/loss": 2, "speed/goodput": 2}
    store.hang.set()
    log._tracker.close(trackers.FINISHED)
    assert known(tmp_path)["sent"] == {"train/loss": 3, "speed/goodput": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_from_the_start_are_another_run(kind, store, launch):
    launch(kind, None, range(1, 4))
    launch(kind, None, range(1, 4))  # as a launch that was killed before its first checkpoint
    assert len(store.runs) == 1
    launch(kind, None, range(1, 4), settings={"LEARNING_RATE": 1.0})
    assert len(store.runs) == 2
    launch(kind, 1, range(2, 4), settings={"LEARNING_RATE": 2.0})  # with ALLOW_CHANGES
    assert len(store.runs) == 2
    counts = {
        name_step: len(values) for name_step, values in store.values([*store.runs][1]).items()
    }
    assert [counts["train/loss", step] for step in (1, 2, 3)] == [1, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["start", "log", "close"])
def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(
    fault, kind, store, launch, tmp_path, capfd
):
    store.faults = [fault, fault]
    launch(kind, None, range(1, 4))
    assert len(read_metrics(tmp_path)) == 3
    error = capfd.readouterr().err
    assert error.startswith(f"gkd: warning: TRACKER is {kind!r}: ") and error.count("\n") == 1
    assert "no network" in error and error.endswith(
        "the run goes on, its metrics are in metrics.jsonl\n"
    )
    if fault == "log":  # it is tried again
        (key,) = store.runs
        assert len(store.values(key)) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_a_tracker_refuses_does_not_hold_up_the_others(kind, store, launch, capfd):
    store.faults = ["log"] * 3
    launch(kind, None, range(1, 4))
    (key,) = store.runs
    assert [step for name, step in store.values(key) if name == "train/loss"] == [2, 3]
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["wandb"])
@pytest.mark.parametrize("call", ["start", "log", "close"])
def test_a_tracker_that_hangs_does_not_hold_the_run(call, kind, store, launch, monkeypatch, capfd):
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(trackers, "_MOST_ROWS", 3)
    store.faults = [f"hang in {call}"]
    launch(kind, None, range(1, 100))
    error = capfd.readouterr().err
    assert error.startswith("gkd: warning: TRACKER is 'wandb': it ") and error.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_that_is_not_installed_is_one_line(kind, launch, monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(sys.modules, kind, None)
    launch(kind, None, [1, 2])
    assert capfd.readouterr().err == (
        f"gkd: warning: TRACKER is {kind!r}: the package is not installed: python -m pip install "
        f"{kind}; the run goes on, its metrics are in metrics.jsonl\n"
    )
    assert len(read_metrics(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["mlflow"])
@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"tracker": "mlflow"}', '{"tracker": "mlflow", "id": "run0", "settings": "",'
     ' "sent": {"train/loss": "x"}}'],
)  # fmt: skip
def test_a_damaged_file_begins_another_run(content, kind, store, launch, tmp_path, capfd):
    (tmp_path / "tracker.json").write_text(content)
    launch(kind, None, [1])
    assert known(tmp_path)["id"] in store.runs and len(store.runs) == 1
    error = capfd.readouterr().err
    assert "its file is damaged" in error and error.count("\n") == 1


@pytest.mark.parametrize("kind", ["trackio"])
def test_the_file_of_another_tracker_is_replaced(kind, store, launch, tmp_path, capfd):
    other = {"tracker": "wandb", "id": "theirs", "settings": "", "sent": {"train/loss": 9}}
    (tmp_path / "tracker.json").write_text(json.dumps(other))
    launch(kind, 0, [1])
    (key,) = store.runs
    assert key != "theirs" and store.values(key)["train/loss", 1] == [1 / 7]
    assert known(tmp_path)["tracker"] == "trackio" and capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["wandb"])
def test_a_run_of_train_reaches_the_tracker(kind, store, tmp_path):
    """The settings as the run's own configuration has them, its name and its commit."""
    folder = tmp_path / "first run"
    settings = ("DIVERGENCE=None", "BETA=None", "LAMBDA=0.0", "LEARNING_RATE=0.0123")
    settings += ("experiment.Execution.tensorboard=False", "EVALUATE_EVERY=0", "TRAIN_STEPS=2")
    with devices(1), no_evaluations():
        assert train(folder, *settings, f"TRACKER={kind!r}") == 0
    (run,) = store.runs.values()
    assert run["name"] == "first run" and run["outcome"] == "finished"
    assert run["config"]["LEARNING_RATE"] == 0.0123 and run["config"]["TEACHER"] is None
    assert run["config"]["t5.T5Config.emb_dim"] == 16
    launches = json.loads((folder / "launches.jsonl").read_text())
    assert run["config"]["git_commit"] == launches["git_commit"]
    losses = [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row]
    came = [row["train/loss"] for _, row in run["rows"] if "train/loss" in row]
    assert came == losses and len(losses) == 2


def test_without_a_name_there_is_no_tracker(tmp_path):
    assert trackers.tracker_of(None, open_run(tmp_path, ["gkd"])) is None


# The packages themselves, where they are installed


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Everything stays on this machine, in a folder of the test; Trackio reads it when imported."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_the_fakes_take_no_argument_that_the_packages_refuse(kind, local):
    module = pytest.importorskip(kind)
    real, fake = {
        "trackio": lambda: (module.init, FAKES[kind](Store())["trackio"].init),
        "wandb": lambda: (module.init, FAKES[kind](Store())["wandb"].init),
        "mlflow": lambda: (
            module.MlflowClient.log_batch,
            FAKES[kind](Store())["mlflow"].MlflowClient.log_batch,
        ),
    }[kind]()
    assert set(inspect.signature(fake).parameters) <= set(inspect.signature(real).parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_the_packages_continue_a_run(kind, launch, tmp_path, local, capfd):
    pytest.importorskip(kind)
    launch(kind, None, range(1, 7))
    first = known(tmp_path)
    launch(kind, 3, range(4, 9))
    assert known(tmp_path)["id"] == first["id"]
    assert known(tmp_path)["sent"]["train/loss"] == 8
    assert "gkd: warning" not in capfd.readouterr().err
    if kind == "mlflow":
        import mlflow

        history = mlflow.MlflowClient().get_metric_history(first["id"], "train/loss")
        assert [(at.step, at.value) for at in history] == [(i, i / 7) for i in range(1, 9)]
