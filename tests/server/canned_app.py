"""The whole application over an engine that plays back a turn: thinking, "Hello", a call of get_weather(city="Zürich")."""

import json

import httpx
from canned_engine import CannedEngine
from text_model import text_model

from openglm.config.server import ServerConfig
from openglm.server.app import build_app
from openglm.server.service import Service

MODEL = text_model()
ENCODE = MODEL.tokenizer.encode_raw
THINK, SAY = [ENCODE("\n<think>"), ENCODE("hm"), ENCODE("</think>")], [ENCODE("\nHe"), ENCODE("llo")]
CALL = [
    ENCODE(text) for text in ("<tool_call>get_", "weather\n<arg_key>city</arg_key>\n<arg_value>", "Zü", "rich</arg_value>\n</tool_call>")
]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


ADMIN = {"x-api-key": "operator"}


class CannedApp:
    """`post` and `get` answer with httpx responses; `prompt` is what the engine was last asked to continue, as text.

    Control routes are there for who sends the headers `ADMIN`.
    """

    def __init__(self, steps=(), *, engine=None, model=MODEL, **config):
        self.engine = engine or CannedEngine(list(steps))
        self.service = Service(ServerConfig(**{"admin_api_keys": ("operator",), **config}), model, self.engine)
        self.service.engine_loaded(max_model_len=model.max_model_len, max_num_seqs=4)
        self.app = build_app(self.service)

    @property
    def prompt(self):
        return MODEL.tokenizer.decode(self.engine.requests[-1].prompt_ids)

    @property
    def params(self):
        return self.engine.requests[-1].params

    async def request(self, method, path, **options):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    async def post(self, path, body, **options):
        return await self.request("POST", path, json=body, **options)

    async def get(self, path):
        return await self.request("GET", path)


def events_of(response):
    """(name, data) of every server-sent event; the name is None where there is no `event:` line. [DONE] is left out."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    events = []
    for block in blocks:
        *names, data = block.split("\n")
        if data != "data: [DONE]":
            events.append((names[0].removeprefix("event: ") if names else None, json.loads(data.removeprefix("data: "))))
    return events
