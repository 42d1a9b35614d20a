"""`glm train` starts workers; none may outlive it."""

import os
import select
import signal
import subprocess
import sys

LAUNCH = """
import subprocess, sys
import openglm.cli.train as train
start = subprocess.Popen
worker = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
train.subprocess.Popen = lambda command, env: start([sys.executable, "-c", worker])
train._launch(1)
"""


def test_workers_end_with_the_command_that_is_told_to_end():
    with subprocess.Popen([sys.executable, "-c", LAUNCH], stdout=subprocess.PIPE, text=True) as command:
        worker = os.pidfd_open(int(command.stdout.readline()))
        try:
            command.terminate()
            assert select.select([worker], [], [], 20)[0], "the worker outlived the command"
            assert command.wait(20) == 128 + signal.SIGTERM
        finally:
            if not select.select([worker], [], [], 0)[0]:
                signal.pidfd_send_signal(worker, signal.SIGKILL)
            os.close(worker)
