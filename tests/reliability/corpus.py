"""Good requests of every route, and ways to spoil them. Everything follows from a seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from .byte_spoiler import spoiled_bytes
from .wire import Target

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}}
HISTORY = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": [{"type": "text", "text": "Hi 🙂 </think><|user|>"}]},
    {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "42"},
]  # fmt: skip

CHAT: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    {"messages": HISTORY, "tools": [TOOL], "tool_choice": "auto", "max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "seed": 1},
    {"messages": HISTORY[:2], "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "stop": ["\n\n", "END"], "n": 2},
    {"messages": HISTORY[:2], "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}},
    {"messages": HISTORY[:2], "max_tokens": 3, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"messages": HISTORY[:2], "max_tokens": 3, "logit_bias": {"5": -3.5}, "frequency_penalty": 0.5, "presence_penalty": -0.5},
    {"messages": HISTORY[:2], "max_tokens": 3, "chat_template_kwargs": {"enable_thinking": False}, "thinking": {"type": "disabled"}},
    {"messages": HISTORY[:2], "max_tokens": 3, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": [5, 6]},
]
ROUTES: list[tuple[int, str, list[dict[str, Any]]]] = [
    (6, "/v1/chat/completions", CHAT),
    (2, "/api/paas/v4/chat/completions", [{**CHAT[1], "do_sample": True, "tool_stream": True, "request_id": "mine"}, CHAT[3]]),
    (2, "/v1/completions", [{"prompt": "Hi", "max_tokens": 3}, {"prompt": [1, 2, 3], "max_tokens": 3, "echo": True, "logprobs": 1}]),
    (3, "/v1/messages", [
        {"max_tokens": 3, "system": "You help.", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"max_tokens": 3, "messages": HISTORY[1:2], "stream": True,
         "tools": [{"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}], "tool_choice": {"type": "auto"}},
        {"max_tokens": 3, "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "u"}, "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"},
                                              {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Z"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "42"}]}]},
    ]),
    (1, "/v1/messages/count_tokens", [{"messages": [{"role": "user", "content": "Hi"}]}]),
    (3, "/v1/responses", [
        {"input": "Hi", "max_output_tokens": 3},
        {"input": HISTORY[:2], "max_output_tokens": 3, "stream": True, "instructions": "Help."},
        {"input": [{"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"},
                   {"type": "function_call_output", "call_id": "c", "output": "42"}],
         "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA}], "max_output_tokens": 3, "background": True},
    ]),
    (1, "/tokenize", [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}]),
    (1, "/v1/tokenize", [{"content": "Hi", "return_token_strs": True}]),
    (1, "/detokenize", [{"tokens": [1, 2, 3]}]),
    (2, "/generate", [
        {"text": "Hi", "sampling_params": {"max_new_tokens": 3}},
        {"input_ids": [[1, 2], [3]], "sampling_params": {"max_new_tokens": 3, "n": 2, "stop": ["x"]}, "return_logprob": True,
         "logprob_start_len": 0, "top_logprobs_num": 1, "rid": ["a", "b"], "stream": True},
    ]),
    (1, "/page/prompt", CHAT[:2]),
]  # fmt: skip
CONTROL_ROUTES: list[tuple[int, str, list[dict[str, Any]]]] = [
    (1, "/abort_request", [{"rid": "mine"}, {"request_ids": ["a", "b"]}]),
    (1, "/flush_cache", [{}]),
    (1, "/resume", [{}]),
]
"""Spoiled only for who has a key for them; `/drain` is not, because the server would do as it is told."""
_READS = (
    *("GET /v1/responses/ID", "DELETE /v1/responses/ID", "POST /v1/responses/ID/cancel", "GET /v1/models/ID", "GET /page/ID"),
    *("POST /v1/chat/completions/ID/stop_thinking", "GET /tokenizer_info", "GET /v1/loads", "GET /server_info", "GET /openapi.json"),
)
_IDS = (
    *("x", "resp_0123456789abcdef01234567", "resp_", "%00", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%ff%fe", "a" * 300, "%F0%9F%99%82"),
    *("..", "", "%0d%0aset-cookie:%20a", "<script>", "'", "resp_0123456789abcdef01234567/cancel/cancel"),
)
_QUERIES = ("", "?stream=true", "?stream=maybe", "?stream=true&starting_after=-1", "?starting_after=1e9", "?%ff=%00", "?" + "a=b&" * 50)

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 1e308, -1e-308, 0.5, "", "x", "3", "\x00", "\U0010ffff", "<|user|>"),
    *([], [[]], [None], {}, {"type": None}, ["x"] * 200, "x" * 5000, {"a": {"b": {"c": []}}}),
)


def spoiled_request(source: random.Random, target: Target) -> tuple[str, bytes]:
    """A name and the bytes of one request that is wrong somewhere, most of the time."""
    if source.random() < 0.05:
        return _spoiled_read(source, target)
    routes = [*ROUTES, *(CONTROL_ROUTES if target.admin_key else ())]
    _, path, bodies = source.choices(routes, weights=[weight for weight, _, _ in routes])[0]
    body = {"model": target.model, **json.loads(json.dumps(source.choice(bodies)))}
    way = source.random()
    if way < 0.45:
        _spoil_value(source, body)
        data = json.dumps(_bounded(body)).encode("utf-8", "surrogatepass")
    elif way < 0.9:
        data = _bounded_bytes(spoiled_bytes(source, json.dumps(body, ensure_ascii=source.random() < 0.5).encode()))
    else:
        return f"{path} (head)", _spoil_head(source, target.request(path, json.dumps(body).encode()))
    return path, target.request(path, data)


def _spoiled_read(source: random.Random, target: Target) -> tuple[str, bytes]:
    """A request without a body, with an odd id and an odd query."""
    method, path = source.choice(_READS).split()
    data = target.request(path.replace("ID", source.choice(_IDS)) + source.choice(_QUERIES), method=method)
    if source.random() < 0.2:
        return f"{path} (head)", _spoil_head(source, data)
    return path, data


def _spoil_value(source: random.Random, value: Any) -> None:
    """Replace, remove or add something at a random place of a JSON value."""
    for _ in range(source.randint(1, 3)):
        place = value
        while isinstance(place, (dict, list)) and place and source.random() < 0.7:
            inner = source.choice(list(place.values()) if isinstance(place, dict) else place)
            if not isinstance(inner, (dict, list)) or not inner:
                break
            place = inner
        if isinstance(place, dict):
            key = source.choice([*place, "n", "stream", "tools", "logit_bias", "stop", "unknown_field"])
            if source.random() < 0.2:
                place.pop(key, None)
            else:
                place[key] = copy.deepcopy(source.choice(_VALUES))
        elif isinstance(place, list) and place:
            place[source.randrange(len(place))] = copy.deepcopy(source.choice(_VALUES))


def _spoil_head(source: random.Random, good: bytes) -> bytes:
    head, _, body = good.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    match source.randrange(8):
        case 0:
            lines = [line for line in lines if not line.startswith(b"content-type")]
        case 1:
            lines.append(b"content-encoding: gzip")
        case 2:
            lines.append(b"transfer-encoding: chunked")
        case 3:
            lines[source.randrange(len(lines))] = bytes(source.randrange(256) for _ in range(source.randrange(60)))
        case 4:
            lines.append(b"x-long: " + b"a" * source.choice((7_000, 9_000, 100_000)))
        case 5:
            lines += [b"x-%d: 1" % i for i in range(source.choice((50, 200, 5000)))]
        case 6:
            lines[0] = source.choice((b"GET", b"PUT", b"BREW", b"POST ", b"post")) + lines[0][4:]
        case _:
            lines[0] = lines[0].replace(b" HTTP", source.choice((b"/../x HTTP", b"%00 HTTP", b"/ HTTP", b"?a=%ff HTTP", b" x HTTP")))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _bounded(body: Any) -> Any:
    """A request that is still right must not run to the end of the context: what this scenario waits for is refusals."""
    if isinstance(body, dict):
        for name in ("max_tokens", "max_output_tokens", "max_new_tokens"):
            value = body.get(name)
            if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 8):
                body[name] = 3
        if isinstance(body.get("sampling_params"), dict):
            _bounded(body["sampling_params"])
        if "max_completion_tokens" in body:
            del body["max_completion_tokens"]
    return body


def _bounded_bytes(data: bytes) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(value, dict) or value.get("max_tokens") == 3:
        return data
    return json.dumps(_bounded(value)).encode("utf-8", "surrogatepass")
