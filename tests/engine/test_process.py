"""The engine in its own process: same results as here, and every way it can be hurt ends in typed errors and a restart."""

import asyncio
import os
import signal
import socket
import struct
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
from engine_runs import generate, make_core, merged

from openglm.config.engine import EngineConfig
from openglm.engine import protocol
from openglm.engine.client import AsyncEngineClient
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.supervisor import Supervision
from openglm.errors import CheckpointError, EngineDeadError, QueueFullError, RequestError

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = EngineConfig("tiny-air", load_format="dummy", max_model_len=1024, max_num_seqs=4, max_queued_requests=4, threads=1, seed=0)
SHORT = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=1000, ignore_eos=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client():
    client = AsyncEngineClient(CONFIG, supervision=Supervision(prefill_timeout_s=5.0, decode_timeout_s=1.0, backoff_s=(0.0, 0.0, 0.0)))
    await client.start()
    yield client
    pid, directory = client.pid, client._child._directory
    await client.close()
    assert client.state == "dead" and client.pid is None
    assert not Path(f"/proc/{pid}").exists() and not directory.exists()


async def collect(stream) -> list:
    async with aclosing(stream):
        return [output async for output in stream]


async def run(client, request_id: str, params: SamplingParams = SHORT, prompt=(1, 2, 3)):
    return merged(await collect(client.generate(GenerationRequest(request_id, list(prompt), params))))


async def settled_stats(client):
    """Counters once nothing runs any more."""
    while (stats := await client.stats()).num_running or stats.num_waiting:
        pass
    return stats


async def test_answers_are_those_of_the_engine_in_this_process(client):
    prompts = [[1, 2, 3], [4] * 100, [5, 6]]
    params = [SHORT, SamplingParams(max_tokens=5, seed=1, logprobs=2, prompt_logprobs=1, ignore_eos=True), SHORT]
    answers = await asyncio.gather(
        *(run(client, f"q{i}", own, prompt) for i, (prompt, own) in enumerate(zip(prompts, params, strict=True)))
    )
    core = make_core(max_model_len=1024)
    core.runner.model.init_weights(0)
    try:
        expected = generate(core, prompts, params)
    finally:
        core.runner.model.init_weights(7)
    assert [(a.token_ids, a.logprobs, a.prompt_logprobs) for a in answers] == [
        (e.token_ids, e.logprobs, e.prompt_logprobs) for e in expected
    ]
    assert client.state == "ready" and client.info.max_model_len == 1024 and client.info.num_tokens == 384


async def test_a_flushed_cache_knows_nothing_any_more(client):
    prompt = [7] * 200
    await run(client, "first", prompt=prompt)
    assert (await run(client, "again", prompt=prompt)).num_cached_tokens >= 128
    await client.flush_cache()
    assert (await run(client, "after", prompt=prompt)).num_cached_tokens == 0


async def test_wrong_requests_raise_at_once(client):
    with pytest.raises(RequestError, match="empty"):
        client.generate(GenerationRequest("x", []))
    with pytest.raises(RequestError, match="id"):
        client.generate(GenerationRequest("x" * 129, [1]))
    stream = client.generate(GenerationRequest("twice", [1], LONG))
    with pytest.raises(RequestError, match="unused"):
        client.generate(GenerationRequest("twice", [1]))
    await stream.aclose()
    refused = await run(client, "stop-string", SamplingParams(stop=("x",)))
    assert (refused.finish_reason, refused.error.code, refused.error.param) == ("error", "invalid_request", "stop")


async def test_a_full_queue_is_refused_and_aborts_free_the_pages(client):
    streams = [client.generate(GenerationRequest(f"f{i}", [i] * 70, LONG)) for i in range(8)]
    with pytest.raises(QueueFullError) as caught:
        client.generate(GenerationRequest("one-more", [1]))
    assert caught.value.retry_after_s >= 1
    first = [await anext(stream) for stream in streams[:4]]
    assert all(output.token_ids for output in first)
    for stream in streams[1:]:
        await stream.aclose()
    await client.abort("f0")
    last = (await collect(streams[0]))[-1]
    assert last.finish_reason == "abort"
    stats = await settled_stats(client)
    assert stats.pages_held == 0 and stats.num_finished["abort"] >= 8 and client.num_requests == 0
    assert (await run(client, "after")).finish_reason == "length"


async def test_a_cancelled_reader_aborts_its_request(client):
    reader = asyncio.create_task(collect(client.generate(GenerationRequest("cancelled", [1], LONG))))
    while not (await client.stats()).num_running:
        pass
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (await settled_stats(client)).pages_held == 0


async def test_a_slow_reader_gets_everything_in_fewer_outputs(client):
    stream = client.generate(GenerationRequest("slow", [1], SamplingParams(max_tokens=30, ignore_eos=True, logprobs=0)))
    await settled_stats(client)
    outputs = await collect(stream)
    assert len(outputs) == 1 and len(outputs[0].token_ids) == len(outputs[0].logprobs) == 30


async def test_garbage_on_the_socket_costs_only_its_own_connection(client):
    running = client.generate(GenerationRequest("meanwhile", [1], LONG))
    path = str(client._child._directory / "engine.sock")
    garbage = [
        b"\x05\x00\x00\x00hello",
        protocol.frame(protocol.Abort("unknown")) + b"\x01\x00\x00\x00\xc1",
        struct.pack("<I", 8) + b"\x91" * 8,
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(5000),
        protocol.frame(protocol.Abort("x"))[:-2],
    ]
    for data in garbage:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            peer.sendall(data)
    await client.stats()
    assert (await run(client, "still-there")).finish_reason == "length"
    await anext(running)
    await running.aclose()
    assert client.num_restarts == 0


async def test_signals_to_the_process_group_are_left_to_the_parent(client):
    os.kill(client.pid, signal.SIGINT)
    os.kill(client.pid, signal.SIGTERM)
    assert (await run(client, "unmoved")).finish_reason == "length"
    assert client.num_restarts == 0


async def test_kill_9_in_mid_generation_ends_requests_with_a_typed_error_and_restarts(client):
    before, restarts = client.pid, client.num_restarts
    streams = [client.generate(GenerationRequest(f"k{i}", [i], LONG)) for i in range(6)]
    await anext(streams[0])
    asking = asyncio.create_task(client.stats())
    await asyncio.sleep(0)
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(1):
        endings = [(await collect(stream))[-1] for stream in streams]
    assert all((e.finish_reason, e.error.code) == ("error", "engine_dead") for e in endings)
    assert all(isinstance(e.error.to_error(), EngineDeadError) and "signal 9" in e.error.message for e in endings)
    with pytest.raises(EngineDeadError):
        client.generate(GenerationRequest("too-early", [1]))
    with pytest.raises(EngineDeadError):
        await client.stats()
    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], EngineDeadError | protocol.EngineStats)
    await client.wait_ready()
    assert client.pid != before and client.num_restarts == restarts + 1
    assert (await run(client, "k0")).finish_reason == "length"


async def test_a_hanging_engine_is_killed_and_replaced(client):
    before = client.pid
    stream = client.generate(GenerationRequest("hang", [1], LONG))
    await anext(stream)
    os.kill(before, signal.SIGSTOP)
    async with asyncio.timeout(10):
        ending = (await collect(stream))[-1]
    assert (ending.finish_reason, ending.error.code) == ("error", "engine_dead")
    await client.wait_ready()
    assert client.pid != before
    assert (await run(client, "again")).finish_reason == "length"


async def test_a_model_that_cannot_be_loaded_is_reported_and_not_retried(tmp_path):
    client = AsyncEngineClient(EngineConfig(str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match="nowhere"):
        await client.start()
    assert client.state == "dead" and client.num_restarts == 0
    with pytest.raises(EngineDeadError):
        client.generate(GenerationRequest("r", [1]))
    await client.close()
