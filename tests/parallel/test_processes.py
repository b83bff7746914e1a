"""Two processes on loopback that share batches and agree, on meshes in every order."""

import os
import pathlib
import socket
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).with_name("rows_program.py")


def test_rows_and_answers_follow_the_mesh_not_the_number_of_the_process():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join([str(PROGRAM.parents[2]), *sys.path]),
    }
    two = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), port, str(number)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        for process in two:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in two:
            process.kill()
