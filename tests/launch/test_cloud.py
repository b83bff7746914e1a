"""launch/tpu_vm.sh, gke_xpk.sh, local_multiprocess.sh beside stand-ins for gcloud, xpk and git."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from gkd.configuration.gin_files import REPOSITORY
from tests.waiting import wait_until

TRAIN = ["train", "--gin_file=a b.gin", "--gin.MODEL_DIR='gs://b-1/a'", '--gin.NOTE="$HOME & more"']


def without_numbers(call):
    return [
        word for word in call if "tar.gz" not in word
    ]  # the archive's name has a process number


def test_a_dry_run_prints_what_would_be_called(cloud):
    printed = cloud("tpu_vm.sh", "--dry-run", "all", *TRAIN).stdout
    assert cloud.calls() == []
    cloud("tpu_vm.sh", "all", *TRAIN)
    called = [call for call in cloud.calls() if not {"describe", "status"} & set(call)]
    wanted = [shlex.split(line) for line in printed.splitlines()]
    wanted = [call for call in wanted if call[0] != "rm"]
    assert [without_numbers(c) for c in called] == [without_numbers(c) for c in wanted]
    assert cloud.actions("describe") == ["create", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert all("--quiet" in call for call in called if call[0] == "gcloud")


def test_every_host_gets_the_command_word_by_word(cloud):
    cloud.write(slice="READY", codes="7")
    cloud("tpu_vm.sh", "run", *TRAIN, code=7, GKD_ENVIRONMENT="GKD_DATA=gs://c/data")
    assert "--worker=all" in cloud.calls()[0]
    # The hosts' own shell: bucket c is mounted already; sudo, gcsfuse and a Python note what comes.
    names = ("python", "mountpoint", "sudo", "gcsfuse")
    python, mountpoint, sudo, gcsfuse = (cloud.folder / "gkd/.venv/bin" / name for name in names)
    python.parent.mkdir(parents=True)
    program = "import os, sys\nprint(sys.argv[1:], os.environ['GKD_DATA'], "
    program += "os.environ['GKD_BUCKETS'])\nsys.exit(7)\n"
    python.write_text(f"#!{sys.executable}\n{program}")
    mountpoint.write_text('#!/bin/sh\n[ "$2" = /buckets/c ]\n')
    for path in (sudo, gcsfuse):
        path.write_text('#!/bin/sh\necho "$(basename "$0") $@" >>mounted\n')
    for path in (python, mountpoint, sudo, gcsfuse):
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    for part in ("nohup", "tail -n"):
        done = subprocess.run(
            ["bash", "-c", cloud.command(part)], cwd=cloud.folder, capture_output=True, text=True,
            timeout=60, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout == f"{['-m', 'gkd', *TRAIN]} gs://c/data /buckets\n"
    assert (cloud.folder / "gkd/run.code").read_text() == "7\n"
    mounted = (cloud.folder / "gkd/mounted").read_text().splitlines()
    assert mounted[0] == "sudo mkdir -p /buckets/b-1" and len(mounted) == 3
    assert mounted[2].startswith("gcsfuse --implicit-dirs --rename-dir-limit=100000 ")
    assert mounted[2].endswith(" b-1 /buckets/b-1")


def test_stop_lets_the_run_save_and_another_waits_for_it(cloud):
    """The hosts' own shell again, with a run that needs a while to save."""
    cloud.write(slice="READY")
    cloud("tpu_vm.sh", "run", "train")
    python = cloud.folder / "gkd/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\ndef stop(*_):\n    time.sleep(1)\n"
        "    open('saved', 'a').write('x')\n    sys.exit(75)\nsignal.signal(15, stop)\n"
        "open('started', 'a').write('x')\ntime.sleep(60)\n"
    )
    python.chmod(0o755)

    def host(command):
        return subprocess.run(["bash", "-c", command], cwd=cloud.folder, timeout=60).returncode

    def wait_for(name, text):
        path = cloud.folder / "gkd" / name
        wait_until(lambda: path.exists() and path.read_text() == text)

    run = cloud.command("nohup")
    assert host(run) == 0
    wait_for("started", "x")
    assert host(run) == 0  # the first one saves and ends, then the second begins
    assert (cloud.folder / "gkd/saved").read_text() == "x"
    wait_for("started", "xx")
    cloud("tpu_vm.sh", "stop")
    assert host(cloud.command("|| true")) == 0
    wait_for("run.code", "75\n")
    assert (cloud.folder / "gkd/saved").read_text() == "xx"


def test_a_preempted_slice_is_made_again(cloud):
    cloud.write(codes="P75 P 0")
    cloud("tpu_vm.sh", "all", *TRAIN, TPU_SPOT="1")
    assert cloud.actions("describe", "ssh", "scp") == ["create", "delete"] * 3
    assert all("--spot" in call for call in cloud.calls() if "create" in call)


def test_without_capacity_the_slice_is_asked_for_again(cloud):
    cloud.write(refusals="There_is_no_more_capacity_in_the_zone no", codes="P 0")
    cloud("tpu_vm.sh", "all", *TRAIN)
    assert cloud.actions("describe", "ssh", "scp") == ["create"] * 2 + [
        "delete",
        "create",
        "delete",
    ]
    cloud.write(refusals="Invalid_value_for_accelerator-type", slice="")
    failed = cloud("tpu_vm.sh", "all", *TRAIN, code=1)
    assert "Invalid value" in failed.stderr


def test_a_slice_from_the_queue(cloud):
    cloud.write(queue="WAITING_FOR_RESOURCES PROVISIONING FAILED WAITING_FOR_RESOURCES ACTIVE")
    cloud("tpu_vm.sh", "all", *TRAIN, TPU_QUEUED="1", TPU_SPOT="1")
    calls = [call for call in cloud.calls() if "queued-resources" in call]
    kinds = [call[4] for call in calls if call[4] != "delete"]
    assert kinds == ["create", *["describe"] * 3, "create", *["describe"] * 2]
    create = next(call for call in calls if call[4] == "create")
    assert {"slice", "--node-id=slice", "--runtime-version=v2", "--spot"} <= set(create)
    assert calls[-1][4] == "delete" and "--force" in calls[-1]


def test_a_lost_connection_does_not_end_the_run(cloud):
    cloud.write(codes="runs drop drop 0")
    cloud("tpu_vm.sh", "all", *TRAIN)
    assert cloud.actions().count("create") == 1
    starts = [call for call in cloud.calls() if "nohup" in call[-1]]
    logs = [call[-1].split()[4:6] for call in cloud.calls() if "tail -n" in call[-1]]
    assert len(starts) == 1 and logs == [["-n", "+1"], *[["-n", "0"]] * 3]


def test_an_interrupted_run_goes_on_and_a_crash_loop_ends(cloud):
    cloud.write(codes="76 75 0")
    cloud("tpu_vm.sh", "all", *TRAIN)
    assert sum("nohup" in call[-1] for call in cloud.calls()) == 3
    assert cloud.actions().count("create") == 1
    cloud.write(codes=" ".join(["76"] * 9))
    cloud("tpu_vm.sh", "all", *TRAIN, code=76, RESTARTS="2")
    assert sum("nohup" in call[-1] for call in cloud.calls()) == 6


@pytest.mark.parametrize("failed", [1, 2])
def test_a_run_that_failed_is_not_tried_again(cloud, failed):
    cloud.write(codes=str(failed))
    cloud("tpu_vm.sh", "all", *TRAIN, code=failed)
    assert cloud.actions().count("create") == 1
    assert cloud.actions()[-1] == "delete"


def test_sigterm_saves_and_deletes_the_slice(cloud):
    """The signal that a stopped sweep sends; a slice that stays costs money."""
    cloud.write(codes="75")
    assert cloud.stopped("tpu_vm.sh", "all", *TRAIN) == 75
    assert (cloud.folder / "asked").exists()
    assert cloud.actions("describe")[-1] == "delete" and not (cloud.folder / "slice").exists()
    assert cloud.actions().count("create") == 1


def test_an_xpk_workload_runs_the_command_in_the_image(cloud):
    cloud("gke_xpk.sh", "run", "gkd-large", *TRAIN, SLICES="2", BUCKETS="gs://c_2.d/x")
    (call,) = cloud.calls()
    assert call[:4] == ["xpk", "workload", "create", "--cluster=cluster"]
    assert {"--workload=gkd-large", "--tpu-type=v5litepod-16", "--num-slices=2"} <= set(call)
    assert {"--docker-image=place/gkd:1", "--storage=b-1", "--storage=c-2-d"} <= set(call)
    # Without 75 and 76, xpk takes a run that saved and stopped for one that failed for good.
    assert {"--max-restarts=20", "--restart-on-exit-codes=75,76"} <= set(call)
    command = shlex.split(call[-1].removeprefix("--command="))
    assert command == ["exec", "python", "-m", "gkd", *TRAIN]
    printed = cloud("gke_xpk.sh", "--dry-run", "run", "gkd-large", *TRAIN, SLICES="2",
                    BUCKETS="gs://c_2.d/x").stdout  # fmt: skip
    assert shlex.split(printed) == call


def test_sigterm_reaches_the_run_inside_xpks_shell(tmp_path):
    """xpk's container runs `(COMMAND) &` in a shell that sends SIGTERM to that child only."""
    program = "import signal, time; signal.signal(15, lambda *_: exit(75)); print(flush=True); "
    command = f"exec {sys.executable} -c {shlex.quote(program + 'time.sleep(30)')}"
    shell = f"trap 'kill -TERM $!' TERM; ({command}) & PID=$!; wait $PID; wait $PID; exit $?"
    process = subprocess.Popen(["bash", "-c", shell], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75


def test_a_bucket_is_attached_where_the_image_looks_for_it(cloud):
    cloud("gke_xpk.sh", "attach", "gs://c_2.d", BUCKETS="gs://another")
    (call,) = cloud.calls()
    assert call[:4] == ["xpk", "storage", "attach", "c-2-d"]
    assert {"--type=gcsfuse", "--bucket=c_2.d", "--mount-point=/buckets/c_2.d"} <= set(call)
    assert "ENV GKD_BUCKETS=/buckets " in (REPOSITORY / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("answers", "code", "waits"), [("0", 0, 1), ("125", 1, 1), ("1 124 0", 0, 3)]
)
def test_all_waits_for_the_workload_and_deletes_it(cloud, answers, code, waits):
    cloud.write(codes=answers)
    cloud("gke_xpk.sh", "all", "cell-a", *TRAIN, code=code)
    assert [call[2] for call in cloud.calls()] == ["create", *["list"] * waits, "delete"]
    assert "--wait-for-job-completion=cell-a" in cloud.calls()[1]


def test_sigterm_deletes_the_workload(cloud):
    assert cloud.stopped("gke_xpk.sh", "all", "cell-a", *TRAIN) == 75
    assert [call[2] for call in cloud.calls()] == ["create", "list", "delete"]


def test_an_image_is_built_of_what_git_has(cloud):
    cloud("gke_xpk.sh", "image")
    kinds = [[call[0], *call[1:3]] for call in cloud.calls()]
    assert kinds[-1] == ["docker", "push", "place/gkd:1"]
    assert ["docker", "build", "--tag=place/gkd:1"] in kinds
    assert any(call[0] == "git" and call[-2:] == ["--format=tar", "HEAD"] for call in cloud.calls())
    printed = cloud("gke_xpk.sh", "--dry-run", "image").stdout.splitlines()
    assert printed[0] == f"git -C {REPOSITORY} archive --format=tar HEAD | " + (
        "docker build --tag=place/gkd:1 - "
    )


def test_the_archive_knows_its_commit(tmp_path):
    """The output of `git archive` has no .git; a run's record still names the commit."""
    git = ["git", "-C", REPOSITORY]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("not a checkout")
    made = subprocess.run([*git, "archive", "HEAD", "gkd"], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", tmp_path], input=made.stdout, check=True)
    from gkd.runs.provenance import git_state

    assert git_state(tmp_path) == {"git_commit": head.stdout.strip(), "git_dirty": False}


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_xpk.sh"])
@pytest.mark.parametrize("name", ["HF_TOKEN", "my_secret", "DB_PASSWORD", "API_KEY"])
def test_no_secret_is_printed_or_stored(cloud, script, name):
    given = {"GKD_ENVIRONMENT": f"GKD_DATA=/data {name}=hush", "WANDB_API_KEY": "hush"}
    done = cloud(script, "--dry-run", "all", "a", *TRAIN, code=2, **given)
    assert f"GKD_ENVIRONMENT sets {name}" in done.stderr
    assert "hush" not in done.stderr + done.stdout and cloud.calls() == []
    allowed = cloud(script, "--dry-run", "all", "a", *TRAIN, WANDB_API_KEY="hush")
    assert "hush" not in allowed.stderr + allowed.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "message"),
    [
        ("tpu_vm.sh", ["start"], {}, "action start: use create"),
        ("tpu_vm.sh", ["create"], {"TPU_TYPE": ""}, "set TPU_TYPE"),
        ("tpu_vm.sh", ["run"], {}, "run what?"),
        ("gke_xpk.sh", ["run"], {}, "run which workload?"),
        ("gke_xpk.sh", ["run", "a"], {}, "run what?"),
        ("gke_xpk.sh", ["attach", "bucket"], {}, "attach which bucket?"),
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
