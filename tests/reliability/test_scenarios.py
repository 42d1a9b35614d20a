"""The scenarios against `glm serve` over the scripted model: a small count always, the full count with `make test-reliability`."""

import os
import subprocess
import sys
import threading

import pytest

from .__main__ import options_of, run, scenarios
from .wire import Target

HEAD_S, BODY_S = 1.0, 2.0
FLAGS = {
    "--served-model-name": "scripted",
    "--threads": 1,
    "--num-speculative-tokens": 1,
    "--max-queued-requests": 1200,
    "--limit-connections": 4000,
    "--limit-connections-per-peer": 4000,
    "--limit-head-read-s": HEAD_S,
    "--limit-body-read-s": BODY_S,
    "--admin-api-key": "operator",
}


class Server:
    """`glm serve` as a process on a free port."""

    def __init__(self, directory, flags) -> None:
        words = [str(word) for pair in flags.items() for word in pair]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "openglm.cli.main", "serve", str(directory), "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self._reader.start()
        for line in self.process.stdout:
            if "OpenAI base URL" in line:
                self.url = line.split()[-1]
            if "chosen for you" in line:
                return
        raise AssertionError("".join(self.log))

    def close(self) -> None:
        self.process.terminate()
        self.process.stdout.read()
        code = self.process.wait(60)
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        assert code == 0
        assert "Traceback" not in "".join(self.log)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    from scripted_model import THINKING_AND_CALL, write_scripted_model

    path = tmp_path_factory.mktemp("models") / "scripted"
    write_scripted_model(path, THINKING_AND_CALL)
    return path


@pytest.fixture(scope="module")
def server(directory):
    """One server that must survive everything."""
    running = Server(directory, FLAGS)
    yield running
    running.close()


async def passes(server, name, *words, api_key="", admin_key=""):
    options = options_of(["--url", server.url, "--head-s", str(HEAD_S), "--body-s", str(BODY_S), *words])
    target = Target(server.url, "scripted", api_key, admin_key)
    outcome = await run(target, scenarios(options)[name])
    print(outcome.figures)
    assert outcome.passed, "\n".join(outcome.failures)
    return outcome


SMALL = ("malformed", "control-tokens", "slow-clients", "aborts", "streams", "slow-readers", "sockets")


@pytest.mark.parametrize("name", SMALL)
async def test_a_small_count(server, name):
    pid = str(server.process.pid)
    scale = "0.006" if name == "aborts" else "0.02"  # a stream that is left in its middle has to get there first
    await passes(server, name, "--scale", scale, "--server-pid", pid, "--health-limit-ms", "2000", admin_key="operator")


@pytest.mark.reliability
@pytest.mark.parametrize("name", [*SMALL, "large-bodies", "engine-death"])
async def test_the_full_count(server, name):
    await passes(server, name, "--server-pid", str(server.process.pid), admin_key="operator")


@pytest.mark.reliability
async def test_overload_in_full(directory):
    # Here the clients are what keeps the machine busy, and they need more than a second to send a head.
    running = Server(directory, {**FLAGS, "--max-queued-requests": 32, "--limit-head-read-s": 10})
    try:
        await passes(running, "overload")
    finally:
        running.close()


@pytest.mark.reliability
async def test_closed_doors_in_full(directory, monkeypatch):
    monkeypatch.setenv("GLM_API_KEY", "the-key")
    running = Server(directory, FLAGS)
    try:
        await passes(running, "closed-doors", "--api-key-env", "GLM_API_KEY", api_key="the-key")
    finally:
        running.close()
