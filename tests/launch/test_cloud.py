"""launch/tpu_vm.sh, gke_xpk.sh, local_multiprocess.sh beside stand-ins for gcloud, xpk and git."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from gkd.jobs.gin_files import REPOSITORY

# Notes its arguments; answers a slice's state and a run's exit code from files, the next of each.
STAND_IN = f"""\
#!{sys.executable}
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["STAND_IN"])
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
def answer(what):
    path = folder / what
    first, *rest = path.read_text().split() if path.exists() else ["none"]
    path.write_text(" ".join(rest or [first]))
    return first
if "describe" in arguments:
    print(answer("states"))
if arguments[-1] == "--command=cat gkd/run.code":
    code = answer("codes")
    if code == "unreachable":
        sys.exit(255)
    print(code)
"""
TRAIN = ["train", "--gin_file=a b.gin", "--gin.MODEL_DIR='bucket/a'", '--gin.NOTE="$HOME & more"']


class Cloud:
    def __init__(self, folder):
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("gcloud", "xpk", "kubectl", "docker", "git"):
            path = self.programs / name
            path.write_text(STAND_IN)
            path.chmod(0o755)
        self.environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}", "STAND_IN": str(folder),
            "HOME": str(folder), "GKD_RETRY_SECONDS": "0", "TPU_NAME": "slice", "TPU_ZONE": "zone",
            "TPU_TYPE": "v5litepod-16", "TPU_VERSION": "v2", "GKE_CLUSTER": "cluster",
            "GKE_ZONE": "zone", "GKD_IMAGE": "place/gkd:1",
        }  # fmt: skip

    def __call__(self, script, *arguments, code=0, **environment):
        done = subprocess.run(
            ["bash", REPOSITORY / "launch" / script, *arguments], capture_output=True, text=True,
            env={**self.environment, **environment}, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done

    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def actions(self):
        return [
            call[4] for call in self.calls() if call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        ]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def without_numbers(call):
    return [
        word for word in call if "tar.gz" not in word
    ]  # the archive's name has a process number


def test_a_dry_run_prints_what_would_be_called(cloud):
    printed = cloud("tpu_vm.sh", "--dry-run", "all", *TRAIN, BUCKET="gs://bucket").stdout
    assert cloud.calls() == []
    (cloud.folder / "codes").write_text("0")
    (cloud.folder / "states").write_text("READY")
    cloud("tpu_vm.sh", "all", *TRAIN, BUCKET="gs://bucket")
    called = [call for call in cloud.calls() if "describe" not in call]
    wanted = [shlex.split(line) for line in printed.splitlines()]
    wanted = [call for call in wanted if call[0] != "rm"]
    assert [without_numbers(c) for c in called] == [without_numbers(c) for c in wanted]
    assert [call[4] for call in called if call[0] == "gcloud"] == [
        "create", "scp", "ssh", "ssh", "ssh", "ssh", "ssh", "delete",
    ]  # fmt: skip


def test_every_host_gets_the_command_word_by_word(cloud):
    cloud("tpu_vm.sh", "--dry-run", "run", *TRAIN)
    (cloud.folder / "codes").write_text("0")
    cloud("tpu_vm.sh", "run", *TRAIN, GKD_ENVIRONMENT="GKD_DATA=/data")
    run, logs, _ = (call[-1].removeprefix("--command=") for call in cloud.calls())
    assert "--worker=all" in cloud.calls()[0]
    # The hosts' own shell, with a Python that notes its arguments.
    python = cloud.folder / "gkd/.venv/bin/python"
    python.parent.mkdir(parents=True)
    program = "import os, sys\nprint(sys.argv[1:], os.environ['GKD_DATA'])\nsys.exit(7)\n"
    python.write_text(f"#!{sys.executable}\n{program}")
    python.chmod(0o755)
    for command in (run, logs):
        done = subprocess.run(
            ["bash", "-c", command], cwd=cloud.folder, capture_output=True, text=True, timeout=60
        )
    assert done.stdout == f"{['-m', 'gkd', *TRAIN]} /data\n"
    assert (cloud.folder / "gkd/run.code").read_text() == "7\n"


def test_a_preempted_slice_is_made_again(cloud):
    (cloud.folder / "codes").write_text("75 unreachable 0")
    (cloud.folder / "states").write_text("PREEMPTED READY")
    cloud("tpu_vm.sh", "all", *TRAIN, TPU_SPOT="1")
    assert cloud.actions().count("create") == 3
    assert cloud.actions().count("delete") == 3
    assert cloud.actions()[-1] == "delete"
    assert all("--spot" in call for call in cloud.calls() if "create" in call)


@pytest.mark.parametrize("failed", [1, 2])
def test_a_run_that_failed_is_not_tried_again(cloud, failed):
    (cloud.folder / "codes").write_text(str(failed))
    (cloud.folder / "states").write_text("READY")
    cloud("tpu_vm.sh", "all", *TRAIN, code=failed)
    assert cloud.actions().count("create") == 1
    assert cloud.actions()[-1] == "delete"


def test_an_xpk_workload_runs_the_command_in_the_image(cloud):
    cloud("gke_xpk.sh", "run", "gkd-large", *TRAIN, SLICES="2")
    (call,) = cloud.calls()
    assert call[:4] == ["xpk", "workload", "create", "--cluster=cluster"]
    assert {"--workload=gkd-large", "--tpu-type=v5litepod-16", "--num-slices=2"} <= set(call)
    assert "--docker-image=place/gkd:1" in call
    command = shlex.split(call[-1].removeprefix("--command="))
    assert command == ["python", "-m", "gkd", *TRAIN]
    printed = cloud("gke_xpk.sh", "--dry-run", "run", "gkd-large", *TRAIN, SLICES="2").stdout
    assert shlex.split(printed) == call


def test_an_image_is_built_from_the_repository(cloud):
    cloud("gke_xpk.sh", "image")
    assert cloud.calls() == [
        ["docker", "build", "--tag=place/gkd:1", str(REPOSITORY)],
        ["docker", "push", "place/gkd:1"],
    ]


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "message"),
    [
        ("tpu_vm.sh", ["start"], {}, "action start: use create"),
        ("tpu_vm.sh", ["create"], {"TPU_TYPE": ""}, "set TPU_TYPE"),
        ("tpu_vm.sh", ["run"], {}, "run what?"),
        ("gke_xpk.sh", ["run"], {}, "run which workload?"),
        ("gke_xpk.sh", ["run", "a", "train"], {"GKD_IMAGE": ""}, "set GKD_IMAGE"),
        ("local_multiprocess.sh", ["4"], {}, "usage: "),
    ],
)
def test_mistakes_get_one_line(cloud, script, arguments, environment, message):
    done = cloud(script, *arguments, code=2, **environment)
    assert message in done.stderr
    assert cloud.calls() == []


def test_local_processes_differ_by_their_number(cloud):
    printed = cloud("local_multiprocess.sh", "--dry-run", "2", "4", "train", GKD_PORT="5000").stdout
    for number, line in enumerate(printed.splitlines()):
        assert f"GKD_PROCESSES=2 GKD_PROCESS_ID={number} " in line
        assert "GKD_COORDINATOR=127.0.0.1:5000" in line
        assert "device_count=4" in line
