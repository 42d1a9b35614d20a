"""Steps that go the short way: the same bytes as pulled ones, and ends, failures and slow clients as everywhere."""

import asyncio
import json
import re

import pytest
from canned_app import CALL, ENCODE, SAY, SCHEMA, THINK, CannedApp
from canned_engine import CannedEngine

from openglm.engine.client import EngineStream
from openglm.engine.request import EngineOutput
from openglm.server.direct_line import BODY_WRITER
from openglm.server.http_protocol import Outbox, _BodyWriter
from openglm.text.turn_parser import TurnParser


class PushingEngine(CannedEngine):
    """Outputs arrive when `push` says so, as from the engine process."""

    def generate(self, request):
        self.requests.append(request)
        self.stream = EngineStream(request.id, self.aborted.append)
        return self.stream

    def push(self, ids, reason=None):
        self.stream.deliver(EngineOutput("r", list(ids), finish_reason=reason, num_prompt_tokens=3))


class Writer:
    """A connection's body writer; what it and `send` wrote, in order, and how each piece came."""

    def __init__(self, *, offered=True) -> None:
        self.offered = offered
        self.ready, self.body, self.num_direct, self.gone = True, b"", 0, asyncio.Event()

    def write(self, data) -> None:
        assert self.ready
        self.body += data
        self.num_direct += 1

    async def send(self, message) -> None:
        self.body += message.get("body", b"")


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def stream(steps, *, writer, path="/v1/chat/completions", ending="stop", hold=lambda number, writer: None, **fields):
    """The body of a streamed answer of these steps, and the engine."""
    engine = PushingEngine([])
    app = CannedApp(engine=engine)
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50, "stream": True, **fields}).encode()
    received = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if received:
            return received.pop()
        await writer.gone.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json")], "query_string": b""}
    if writer.offered:
        scope["extensions"] = {BODY_WRITER: writer}
    answering = asyncio.create_task(app.app(scope, receive, writer.send))
    await settle()
    for number, ids in enumerate(steps):
        hold(number, writer)
        engine.push(ids)
        await settle()
    if not answering.done() and ending is not None:
        engine.push([], ending)
    await asyncio.wait_for(answering, 5)
    return writer, engine


def normalized(body: bytes) -> bytes:
    """Without ids and times, which differ from answer to answer."""
    return re.sub(rb'"(id|request_id|created|signature)":("[^"]*"|\d+)', rb'"\1":0', body)


STEPS = [*THINK, *SAY, *CALL]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/paas/v4/chat/completions", "/v1/messages"])
async def test_the_short_way_writes_the_same_bytes(path):
    function = {"name": "get_weather", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}] if path != "/v1/messages" else [{"name": "get_weather", "input_schema": SCHEMA}]
    direct, _ = await stream(STEPS, writer=Writer(), path=path, tools=tools)
    slow, _ = await stream(STEPS, writer=Writer(offered=False), path=path, tools=tools)
    assert direct.num_direct >= 3 and slow.num_direct == 0
    assert normalized(direct.body) == normalized(slow.body)


async def test_a_client_that_does_not_keep_up_gets_everything_in_order():
    def hold(number, writer):
        writer.ready = number % 3 == 0

    steps = [ENCODE(character) for character in "abcdefghijkl"]
    fields = {"chat_template_kwargs": {"enable_thinking": False}}
    sent, _ = await stream(steps, writer=Writer(), hold=hold, **fields)
    whole, _ = await stream(steps, writer=Writer(offered=False), **fields)
    assert 0 < sent.num_direct < len(steps)
    assert normalized(sent.body) == normalized(whole.body)


async def test_a_stop_string_ends_the_turn_on_the_short_way():
    steps = [ENCODE("one"), ENCODE(" two"), ENCODE(" END"), ENCODE(" three")]
    fields = {"stop": ["END"], "chat_template_kwargs": {"enable_thinking": False}}
    sent, engine = await stream(steps, writer=Writer(), ending=None, **fields)
    assert b"two" in sent.body and b"three" not in sent.body and sent.body.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"stop"' in sent.body
    assert len(engine.aborted) == 1


async def test_a_failure_on_the_short_way_ends_that_stream_with_an_error_event(monkeypatch):
    feed = TurnParser.feed

    def fails(parser, text):
        if "boom" in text:
            raise RuntimeError("a bug")
        return feed(parser, text)

    monkeypatch.setattr(TurnParser, "feed", fails)
    fields = {"chat_template_kwargs": {"enable_thinking": False}}
    sent, engine = await stream([ENCODE("one"), ENCODE(" two"), ENCODE("boom")], writer=Writer(), ending=None, **fields)
    assert sent.num_direct and b'"error"' in sent.body and b"a bug" not in sent.body
    assert len(engine.aborted) == 1


async def test_an_answer_that_is_not_streamed_wakes_nobody_for_its_middle():
    engine = PushingEngine([])
    app = CannedApp(engine=engine)
    asking = asyncio.create_task(app.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}))
    while not engine.requests:
        await asyncio.sleep(0)
    await settle()
    for ids in [*THINK, *SAY]:
        engine.push(ids)
        assert engine.stream._pending is None  # nobody is to fetch it
    engine.push([], "stop")
    message = (await asking).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "hm")


async def test_pieces_of_one_turn_of_the_loop_are_written_together_and_before_whoever_wakes_later():
    written, order = [], []
    outbox = Outbox()

    class Transport:
        def __init__(self, name) -> None:
            self.name = name

        def write(self, data) -> None:
            written.append((self.name, data))

    a, b, gone = (_BodyWriter(Transport(name), outbox) for name in "abc")
    a.write(b"one")
    b.write(b"two")
    gone.write(b"lost")
    a.write(b"three")
    asyncio.get_running_loop().call_soon(lambda: order.append(list(written)))
    gone.end()
    assert written == [] and not gone.ready
    await settle()
    expected = [("a", b"3\r\none\r\n"), ("b", b"3\r\ntwo\r\n"), ("a", b"5\r\nthree\r\n")]
    assert written == expected and order == [expected]
