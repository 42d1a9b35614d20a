"""What can go wrong inside a real engine process, and what its clients see of it."""

import asyncio
import os
import re
import signal
from contextlib import aclosing
from pathlib import Path

import faulty_engine
import pytest
import pytest_asyncio

from openglm.config.engine import EngineConfig
from openglm.engine.client import AsyncEngineClient
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.supervisor import Supervision

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = EngineConfig("tiny-air", load_format="dummy", max_model_len=512, max_num_seqs=4, threads=1, seed=0)
PATIENCE = Supervision(load_timeout_s=20.0, prefill_timeout_s=6.0, decode_timeout_s=1.5, idle_timeout_s=1.5, backoff_s=(0.0,) * 3)
LIMIT_S = 120  # of every wait below; nothing that works comes near it, on however busy a machine
PARAMS = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def stuck_marker(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("marker") / "stuck"


@pytest.fixture(scope="module")
def stderr(tmp_path_factory) -> Path:
    """What the engine processes write there."""
    return tmp_path_factory.mktemp("stderr") / "engine"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stuck_marker, stderr):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openglm.engine.supervisor.process.__name__", "faulty_engine")
        paths = [str(Path(faulty_engine.__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("FAULTY_ENGINE_STUCK", str(stuck_marker))
        patch.setenv("FAULTY_ENGINE_STDERR", str(stderr))
        client = AsyncEngineClient(CONFIG, supervision=PATIENCE)
        await client.start()
        yield client
        await client.close()


async def ending(client, request_id: str, first_token: int):
    async with aclosing(client.generate(GenerationRequest(request_id, [first_token, 2, 3], PARAMS))) as stream:
        return [output async for output in stream][-1]


async def together(client, fault: int):
    """The endings of a request with a fault and of one without."""
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.gather(ending(client, "bad", fault), ending(client, "good", 1))


async def new_life(client, before: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        await client.wait_ready()
    assert client.pid != before
    assert (await ending(client, "after", 1)).finish_reason == "length"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (faulty_engine.STUCK_IN_STEP, r"made no progress for .* s \((decode|prefill)\)"),  # the other request may not have begun
        (faulty_engine.BROKEN_STEP, r"a step of the engine failed \(FloatingPointError: injected\)"),
        pytest.param(faulty_engine.NONSENSE, "sent what is no message", marks=pytest.mark.slow),
    ],
)
async def test_an_engine_that_fails_as_a_whole_ends_every_request_with_the_reason_and_comes_back(client, fault, why, stderr):
    before = client.pid
    for output in await together(client, fault):
        assert (output.finish_reason, output.error.code) == ("error", "engine_dead")
        assert output.error.message == f"{client.last_error}; the request did not finish"
    assert re.search(why, client.last_error)
    await new_life(client, before)
    if fault == faulty_engine.STUCK_IN_STEP:
        assert "in stuck_in_a_step" in stderr.read_text(), "the stacks say where it hung"


async def test_a_request_that_is_not_finite_ends_alone(client):
    before = client.pid
    bad, good = await together(client, faulty_engine.NOT_FINITE)
    assert (bad.finish_reason, bad.error.code, good.finish_reason) == ("error", "not_finite", "length")
    assert client.pid == before


async def test_wrong_page_accounting_is_counted_and_survived(client):
    before = client.pid
    endings = await together(client, faulty_engine.DOUBLE_RELEASE)
    assert [output.finish_reason for output in endings] == ["length", "length"]
    stats = await client.stats()
    assert stats.kv_accounting_errors == 1 and stats.pages_held == 0
    assert stats.pages_free + stats.pages_cached + stats.pages_held == stats.pages_total
    assert client.pid == before


async def test_an_idle_engine_that_hangs_is_replaced_before_anyone_asks(client):
    before = client.pid
    os.kill(before, signal.SIGSTOP)
    async with asyncio.timeout(LIMIT_S):
        while client.pid == before:
            await asyncio.sleep(0.05)
    assert "(idle)" in client.last_error
    await new_life(client, before)


async def test_an_idle_engine_that_answers_stays(client):
    before, heard = client.pid, client._child._last_heard
    async with asyncio.timeout(LIMIT_S):
        while client._child._last_heard <= heard + PATIENCE.idle_timeout_s:  # only the watchdog's own questions are answered
            await asyncio.sleep(0.05)
    assert client.pid == before and client.state == "ready"


@pytest.mark.parametrize("how", ["killed", pytest.param("stuck", marks=pytest.mark.slow)])
async def test_an_engine_that_is_lost_while_it_loads_is_started_again(client, stuck_marker, how):
    before = client.pid
    if how == "stuck":
        stuck_marker.touch()
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(LIMIT_S):
        while client.pid in (before, None):
            await asyncio.sleep(0.01)
    loading = client.pid
    assert client.state == "restarting"
    if how == "killed":
        os.kill(loading, signal.SIGKILL)
    await new_life(client, loading)
    assert (
        client.last_error
        == {
            "killed": "the engine process ended (killed by signal 9)",
            "stuck": "the engine process stayed in phase 'loading weights' for over 20 s",
        }[how]
    )
