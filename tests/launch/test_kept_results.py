"""No launcher loses results: they go to a bucket, and no slice is deleted that may hold some."""

import importlib.util
import re
import shlex
import subprocess

import pytest

from gkd.configuration.gin_files import REPOSITORY
from tests.waiting import wait_until

TRAIN = ["train", "--gin_file=configs/runs/xsum/small.gin"]
IN_BUCKET = [*TRAIN, "--gin.MODEL_DIR='gs://b-1/a'"]
WHO = {"tpu_vm.sh": [], "gke_xpk.sh": ["cell-a"]}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """The module launch/check_command.py, for a repository in `tmp_path/clone`."""
    path = REPOSITORY / "launch" / "check_command.py"
    specification = importlib.util.spec_from_file_location("check_command", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    clone = tmp_path / "clone"
    clone.mkdir()
    monkeypatch.setattr(module, "ROOT", clone)
    monkeypatch.chdir(clone)
    return module


@pytest.mark.parametrize("script", WHO)
@pytest.mark.parametrize(
    ("command", "part"),
    [
        (TRAIN, "MODEL_DIR is 'runs/xsum/small'"),  # the gin file sets it
        ([*TRAIN, "--gin.MODEL_DIR='/home/me/a'"], "MODEL_DIR is '/home/me/a'"),
        ([*TRAIN, "--gin.MODEL_DIR='b-1/a'"], "MODEL_DIR is 'b-1/a'"),
        ([*TRAIN, "--gin.MODEL_DIR='s3://b-1/a'"], "MODEL_DIR is 's3://b-1/a'"),
        ([*IN_BUCKET, "--gin.train.train.model_dir='a'"], "train.model_dir is 'a'"),
        (["train", "--gin_file=tests/train/tiny.gin"], "MODEL_DIR is not set"),
        (["evaluate", *TRAIN[1:]], "MODEL_DIR is 'runs/xsum/small'"),
        (["evaluate", *IN_BUCKET[1:], "--gin.evaluate.evaluate.output='a.json'"], "'a.json'"),
        (["infer", "--model=gs://b-1/a", "--output=a.jsonl"], "--output is 'a.jsonl'"),
        (["infer", "--model=gs://b-1/a", "--output", "a.jsonl"], "--output is 'a.jsonl'"),
        (["convert", "gs://b-1/a", "b"], "DST is 'b'"),
        (["convert", "--to", "huggingface", "gs://b-1/a", "b"], "DST is 'b'"),
        (["convert", "gs://b-1/a", "gs://b-1//b"], "DST is 'gs://b-1//b'"),
        (["convert", "gs://b-1/a", "gs://b-1/a/../../b"], "DST is 'gs://b-1/a/../../b'"),
        (["sweep", "--gin_file=configs/sweeps/alpha.gin"], "is 'runs/sweeps/alpha'"),
    ],
)  # fmt: skip
def test_results_outside_of_a_bucket_are_refused_before_anything_is_made(
    cloud, script, command, part
):
    """The issue's own case: `all` deleted the slice, and with it everything trained."""
    done = cloud(script, "all", *WHO[script], *command, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("gkd: error: ") and part in line and "lost with the machines" in line
    assert {call[0] for call in cloud.calls()} <= {"git"}
    if script == "gke_xpk.sh":  # a pod's disk ends with the pod, whoever deletes it
        cloud(script, "run", *WHO[script], *command, code=2)


def test_a_dry_run_refuses_what_the_run_would(cloud):
    for script, who in WHO.items():
        done = cloud(script, "--dry-run", "all", *who, *TRAIN, code=2)
        assert "lost with the machines" in done.stderr and done.stdout == ""


def test_a_bucket_that_a_gin_file_names_is_mounted(cloud, check):
    """By the file alone: nothing on the command line names it."""
    (check.ROOT / "a.gin").write_text("MODEL_DIR = 'gs://b-2.x/a'\n")
    assert check.main("keep", "train", "--gin_file=a.gin") == "b-2.x"
    cloud.write(slice="")
    printed = cloud("tpu_vm.sh", "--dry-run", "all", *IN_BUCKET).stdout
    assert "/buckets/b-1" in printed


def test_results_that_nobody_wants_need_no_bucket(cloud):
    for arguments, environment in (((), {"KEEP_NOTHING": "1"}), (("--gin.DRY_RUN=True",), {})):
        done = cloud("tpu_vm.sh", "--dry-run", "all", *TRAIN, *arguments, **environment)
        assert "configs/runs/xsum/small.gin" in done.stdout and "create" in done.stdout
        assert "/buckets/" not in done.stdout  # none is mounted
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "overrides", "bucket"),
    [
        ("MODEL_DIR = 'gs://b1/a'", [], "b1"),
        ("MODEL_DIR = \"gs://b1/a\"  # not 'runs/a'", [], "b1"),
        ("MODEL_DIR = (\n    'gs://b1/a')", [], "b1"),
        ("MODEL_DIR = \\\n    'gs://b1/a'", [], "b1"),
        ("include 'base.gin'\nMODEL_DIR = 'gs://b1/a'", [], "b1"),
        ("MODEL_DIR = 'gs://b1/a'\ninclude 'base.gin'", [], None),
        ("include 'base.gin'", ["--gin.MODEL_DIR='gs://b1/a'"], "b1"),
        ("MODEL_DIR = 'gs://b1/a'", ["--gin.MODEL_DIR='runs/a'"], None),
        ("MODEL_DIR = %PLACE\nPLACE = 'gs://b1/a'", [], "b1"),
        ("MODEL_DIR = %PLACE\nPLACE = 'a'", [], None),
        ("train.train.model_dir = 'gs://b1/a'", [], "b1"),
        ("train.train:\n    seed = 1\n    model_dir = 'gs://b1/a'", [], "b1"),
        ("gkd.train.train.train.model_dir = 'a'\nMODEL_DIR = 'gs://b1/a'", [], None),
        ("MODEL_DIR = '/buckets/b1/a'", [], "b1"),
        ("MODEL_DIR = 'gs://'", [], None),
        ("MODEL_DIR = None", [], None),
        ("MODEL_DIR = @place()", [], None),
        ("# MODEL_DIR = 'gs://b1/a'", [], None),
        ("NOTE = 'MODEL_DIR = 1'\nMODEL_DIR = 'gs://b1/#a'", [], "b1"),
    ],
)
def test_where_a_gin_file_puts_the_results(check, text, overrides, bucket):
    (check.ROOT / "base.gin").write_text("MODEL_DIR = 'runs/base'\n")
    (check.ROOT / "a.gin").write_text(text + "\n")
    arguments = ("keep", "train", "--gin_file=a.gin", *overrides)
    if bucket:
        assert check.main(*arguments) == bucket
    else:
        with pytest.raises(check.Refused, match="the results would be lost"):
            check.main(*arguments)


def test_gin_files_that_git_does_not_ship_are_refused(check, tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=check.ROOT, check=True, capture_output=True)

    def write(name, text):
        path = check.ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    write("a.gin", "include 'sub/base.gin'\n")
    write("sub/base.gin", "MODEL_DIR = 'gs://b1/a'\n")
    write(".gitignore", "private/\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "a")
    assert check.main("both", "train", "--gin_file=a.gin") == "b1"
    assert check.main("both", "train", "--gin_file", str(check.ROOT / "a.gin")) == "b1"

    def refused(part, name="a.gin"):
        with pytest.raises(check.Refused, match=part):
            check.main("ship", "train", f"--gin_file={name}")

    write("new.gin", "include 'a.gin'\n")
    refused("new.gin is not committed", "new.gin")
    write("private/new.gin", "include 'a.gin'\n")
    refused("private/ is not committed|private/new.gin is not", "private/new.gin")
    write("a.gin", "include 'sub/base.gin'\nSEED = 1\n")
    refused("a.gin is not committed")
    git("add", ".")
    refused("a.gin is not committed")  # staged is not committed
    git("commit", "--quiet", "--message", "b")
    check.main("ship", "train", "--gin_file=a.gin")
    write("sub/base.gin", "MODEL_DIR = 'gs://b1/b'\n")
    refused("sub/base.gin is not committed")  # included
    git("checkout", "sub/base.gin")
    (tmp_path / "out.gin").write_text("")
    refused("outside of the repository", str(tmp_path / "out.gin"))
    monkeypatch.chdir(check.ROOT / "sub")
    refused("base.gin is sub/base.gin to the hosts", "base.gin")


def test_the_launcher_makes_names_relative_to_its_clone(cloud):
    path = REPOSITORY / "configs/runs/xsum/small.gin"
    command = ["train", f"--gin_file={path}", "--gin.MODEL_DIR='gs://b-1/a'"]
    for script, who in WHO.items():
        printed = cloud(script, "--dry-run", "all", *who, *command).stdout
        assert "--gin_file=configs/runs/xsum/small.gin" in printed
        assert f"gin_file={path}" not in printed


# Slices that exist


@pytest.mark.parametrize("state", ["READY", "CREATING", "PREEMPTED", "STOPPED"])
def test_a_slice_that_another_command_made_is_left_alone(cloud, state):
    cloud.write(slice=state, launch="123-45")
    done = cloud("tpu_vm.sh", "all", *IN_BUCKET, code=2)
    assert f"slice slice exists already ({state})" in done.stderr
    assert not {"create", "delete", "scp"} & set(cloud.actions())
    assert (cloud.folder / "slice").read_text() == state


def test_a_slice_that_the_same_command_made_is_gone_on_with(cloud):
    printed = cloud("tpu_vm.sh", "--dry-run", "all", *IN_BUCKET).stdout
    signature = re.search(r"echo\S* ([\d-]+)\S* .*>gkd.launch", printed)[1]
    cloud.write(slice="READY", launch=signature)
    cloud("tpu_vm.sh", "all", *IN_BUCKET)
    assert "create" not in cloud.actions() and cloud.actions()[-1] == "delete"
    install = cloud.command("setup.sh")
    assert install.index("pkill -TERM") < install.index("rm -rf gkd/gkd")  # the run saves first


def test_a_slice_made_by_another_meanwhile_is_not_deleted(cloud):
    cloud.write(refusals="ALREADY_EXISTS:_the_resource_exists")
    cloud("tpu_vm.sh", "all", *IN_BUCKET, code=2)
    assert "delete" not in cloud.actions()


def test_without_an_answer_nothing_is_made_or_deleted(cloud):
    cloud.write(network="down " * 9, slice="READY")
    cloud("tpu_vm.sh", "all", *IN_BUCKET, code=1)
    assert set(cloud.actions()) == {"describe"}


@pytest.mark.parametrize("network", ["up", "up up up " + "down " * 60])
def test_a_slice_that_does_not_answer_is_left(cloud, network):
    cloud.write(codes="drop " * 20, network=network)
    done = cloud("tpu_vm.sh", "all", *IN_BUCKET, code=255)
    assert "does not answer: it is left as it is" in done.stderr
    assert "delete" not in cloud.actions() and (cloud.folder / "slice").read_text() == "READY"


def test_a_lost_network_is_no_preemption(cloud):
    cloud.write(codes="76 0")
    process = cloud("tpu_vm.sh", "all", *IN_BUCKET)
    assert cloud.actions().count("create") == 1 and "interrupted" in process.stderr


def test_a_preemption_while_installing_or_that_fails_the_run_goes_on(cloud):
    cloud.write(installs="P ok ok ok", codes="P1 0")
    cloud("tpu_vm.sh", "all", *IN_BUCKET)
    assert cloud.actions("describe", "ssh", "scp") == ["create", "delete"] * 3


def test_the_logs_of_all_hosts_are_shown_before_they_are_deleted(cloud):
    cloud.write(codes="1")
    cloud("tpu_vm.sh", "all", *IN_BUCKET, code=1)
    last = [call for call in cloud.calls() if call[0] == "gcloud" and "describe" not in call][-2:]
    assert "tail -n 20 gkd/run.log" in last[0][-1] and "--worker=all" in last[0]
    assert "delete" in last[1]


def test_delete_lets_a_run_save_first(cloud):
    cloud.write(slice="READY")
    cloud("tpu_vm.sh", "delete")
    assert cloud.actions() == ["ssh", "delete"]
    assert "pkill -TERM" in cloud.calls()[0][-1] and "timeout 600" in cloud.calls()[0][-1]


def test_two_launches_of_one_machine_do_not_share_a_slice(cloud):
    cloud.write(wait="")
    first = cloud.start("tpu_vm.sh", "all", *IN_BUCKET)
    wait_until((cloud.folder / "waiting").exists)
    done = cloud("tpu_vm.sh", "all", *IN_BUCKET, code=2)
    assert f"in use by another launch (process {first.pid} of this machine)" in done.stderr
    cloud.write(asked="")
    assert first.wait(timeout=60) == 0
    first.communicate()
    cloud("tpu_vm.sh", "all", *IN_BUCKET)  # nothing is left of it


def test_a_workload_of_that_name_is_not_overwritten(cloud):
    """xpk asks; with --quiet it would delete the other one."""
    cloud("gke_xpk.sh", "all", "cell-a", *IN_BUCKET)
    (create,) = [call for call in cloud.calls() if "create" in call]
    assert "--quiet" not in create
    assert (cloud.folder / "answer").read_text() == "n\n"


def test_a_workload_that_cannot_be_followed_is_left(cloud):
    cloud.write(codes="1 " * 9)
    done = cloud("gke_xpk.sh", "all", "cell-a", *IN_BUCKET, code=1)
    called = [call[2] for call in cloud.calls() if call[0] == "xpk"]
    assert called == ["create", *["list"] * 5]
    assert "could not be followed: it is left" in done.stderr
    assert "gke_xpk.sh wait cell-a" in done.stderr


def test_dry_runs_print_what_a_shell_reads(cloud):
    for script, who in WHO.items():
        for line in cloud(script, "--dry-run", "all", *who, *IN_BUCKET).stdout.splitlines():
            assert shlex.split(line)[0] in ("git", "gcloud", "rm", "xpk")
