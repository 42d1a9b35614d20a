"""The scenarios against `glm serve` over the scripted model: a small count always, the full count with `make test-reliability`."""

import pytest
from serve_process import ServeProcess

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


def serve(directory, flags) -> ServeProcess:
    """`glm serve` with flags as a mapping."""
    return ServeProcess(directory, *[word for pair in flags.items() for word in pair])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    from scripted_model import THINKING_AND_CALL, write_scripted_model

    path = tmp_path_factory.mktemp("models") / "scripted"
    write_scripted_model(path, THINKING_AND_CALL)
    return path


@pytest.fixture(scope="module")
def server(directory):
    """One server that must survive everything."""
    running = serve(directory, FLAGS)
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
    running = serve(directory, {**FLAGS, "--max-queued-requests": 32, "--limit-head-read-s": 10})
    try:
        await passes(running, "overload")
    finally:
        running.close()


@pytest.mark.reliability
async def test_closed_doors_in_full(directory, monkeypatch):
    monkeypatch.setenv("GLM_API_KEY", "the-key")
    running = serve(directory, FLAGS)
    try:
        await passes(running, "closed-doors", "--api-key-env", "GLM_API_KEY", api_key="the-key")
    finally:
        running.close()
