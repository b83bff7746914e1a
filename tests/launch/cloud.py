"""For the tests of the launch scripts: stand-ins for the programs of a cloud."""

import json
import os
import signal
import subprocess
import sys

import pytest

from gkd.configuration.gin_files import REPOSITORY
from tests.waiting import wait_until

# Notes its arguments, and plays a cloud with one slice (the file `slice` holds its state).
# `codes` has what the slice answers when it is asked for the run's exit code, the next of each:
# a number; runs; drop (the connection is lost); P… (it is preempted, and answers the rest).
STAND_IN = f"""\
#!{sys.executable} -SE
import json, os, pathlib, sys, time
folder = pathlib.Path(os.environ["STAND_IN"])
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
def answer(what, last):
    path = folder / what
    if not path.exists():
        return last
    first, *rest = path.read_text().split()
    path.write_text(" ".join(rest or [last]))
    return first
if name == "xpk" and "create" in arguments:
    (folder / "answer").write_text(sys.stdin.read())
if name == "xpk" and "create" in arguments and "EXECUTE" in os.environ:
    sys.exit(os.system(arguments[-1].removeprefix("--command=")) >> 8)
slice_ = folder / "slice"
if "EXECUTE" in os.environ and len(arguments) > 4:
    slice_ = folder / "hosts" / arguments[4] / "slice"  # each has its own
state = slice_.read_text() if slice_.exists() else ""
if name == "xpk" and "list" in arguments:
    if (folder / "wait").exists():
        (folder / "waiting").touch()
        while json.dumps("delete") not in (folder / "calls.jsonl").read_text():
            time.sleep(0.02)
    sys.exit(int(answer("codes", "0")))
if name != "gcloud" or "scp" in arguments:
    sys.exit()
queued = "queued-resources" in arguments
if "create" in arguments:
    refused = answer("refusals", "no")
    if refused != "no":
        sys.exit("ERROR: " + refused.replace("_", " "))
    slice_.write_text("" if queued else "READY")
if "describe" in arguments and queued:
    found = answer("queue", "ACTIVE")
    slice_.write_text("READY" if found == "ACTIVE" else "")
    print(found)
elif "describe" in arguments and answer("network", "up") == "down":
    sys.exit("ERROR: gcloud crashed (ConnectionError)")
elif "describe" in arguments:
    print(state) if state else sys.exit("ERROR: not found")
if "delete" in arguments:
    slice_.unlink(missing_ok=True)
if "ssh" in arguments:
    if state != "READY":
        sys.exit(255)
    if "setup.sh" in arguments[-1] and answer("installs", "ok") == "P":
        slice_.write_text("PREEMPTED")
        sys.exit(255)
    if arguments[-1].startswith("--command=cat gkd.launch") and (folder / "launch").exists():
        print((folder / "launch").read_text())
    command = arguments[-1]
    if "EXECUTE" in os.environ:  # this machine is the slice's one host; its Python is another's
        installs = "setup.sh" in command
        command = "mkdir -p gkd" if installs else command.removeprefix("--command=")
        os.chdir(folder / "hosts" / arguments[arguments.index("ssh") + 1])
        os.execvp("bash", ["bash", "-c", command])
    if command.startswith("--command=cd gkd && tail") and (folder / "wait").exists():
        (folder / "waiting").touch()
        while not (folder / "asked").exists():
            time.sleep(0.02)
    if command.endswith("|| true") and "pkill -TERM" in command:
        (folder / "asked").touch()
    if "echo runs" in command:
        code = answer("codes", "0")
        if code.startswith("P"):
            slice_.write_text("PREEMPTED")
            code = code[1:] or "drop"
        print(code) if code != "drop" else sys.exit(255)
"""


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

    def write(self, **files):
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def start(self, script, *arguments, **environment):
        return subprocess.Popen(
            ["bash", REPOSITORY / "launch" / script, *arguments], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**self.environment, **environment},
        )  # fmt: skip

    def __call__(self, script, *arguments, code=0, **environment):
        process = self.start(script, *arguments, **environment)
        process.stdout, process.stderr = process.communicate(timeout=180)
        assert process.returncode == code, process.stderr
        return process

    def stopped(self, script, *arguments):
        """Starts, sends SIGTERM once it follows the run, and returns the exit code."""
        self.write(wait="")
        process = self.start(script, *arguments)
        wait_until((self.folder / "waiting").exists)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        return process.returncode

    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def actions(self, *but):
        """The calls of gcloud, without `but`."""
        found = [call[4] for call in self.calls() if call[0] == "gcloud"]
        return [action for action in found if action not in but]

    def command(self, part):
        """The last command on the hosts that contains `part`."""
        found = [call[-1] for call in self.calls() if call[-1].startswith("--command=")]
        return [text.removeprefix("--command=") for text in found if part in text][-1]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)
