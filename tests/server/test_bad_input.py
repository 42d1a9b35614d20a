"""Whatever arrives on the socket, the server answers in the right shape and keeps serving. Real server, real engine."""

import http.client
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability.byte_spoiler import spoiled_bytes

GOOD = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": [{"type": "text", "text": "Hi 🙂 <|user|></think>"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}],
    "tool_choice": "auto",
    "max_tokens": 5,
    "temperature": 0.7,
    "top_p": 0.9,
    "stop": ["\n\n", "END"],
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {"enable_thinking": True},
}
JSON_HEADERS = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(live):
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client


@pytest.fixture(autouse=True)
def still_serving(client, server_errors):
    """After every test the server answers, and nothing was logged as an internal error."""
    yield
    response = client.post("/chat/completions", json={**GOOD, "max_tokens": 1})
    assert response.status_code == 200, response.text
    assert not [record.getMessage() for record in server_errors]


def check(response):
    """A success, or an error of the client's in the shape that OpenAI's SDK reads."""
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and isinstance(error["code"], str)
        assert len(error["message"]) < 600
        assert "Traceback" not in response.text and "site-packages" not in response.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": -Infinity}',
        b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": ' + b"9" * 4000 + b"}",
        b'{"messages": [{"role": "user", "content": "a"}], "messages": []}',
        b"[" * 100_000,
        b'{"a":' * 5000,
        json.dumps(GOOD).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        json.dumps(GOOD).encode() + b"x",
    ],
    ids=lambda body: repr(body[:50]),
)
def test_malformed_bodies_are_400(client, body):
    response = client.post("/chat/completions", content=body, headers=JSON_HEADERS)
    assert response.status_code == 400
    check(response)


def test_a_prompt_longer_than_the_context_is_told_with_both_numbers(client):
    body = {**GOOD, "messages": [{"role": "user", "content": "word " * 3000}]}
    for stream in (False, True):
        response = client.post("/chat/completions", json={**body, "stream": stream})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length is 2048 tokens" in error["message"]


def test_a_stop_token_outside_the_vocabulary_is_named(client):
    response = client.post("/chat/completions", json={**GOOD, "stop_token_ids": [10**6]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stop_token_ids"


def test_huge_bodies_are_413_before_they_are_read(live, client):
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 200000000\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 413"
    assert client.get("/models").status_code == 200


def test_requests_that_are_no_http_do_not_disturb_the_server(live):
    for data in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


def test_mutated_requests_never_break_the_server(client):
    """Bytes flipped, cut, doubled and exchanged in a good request; the seed makes a failure repeatable."""
    source = random.Random(20)
    good = json.dumps(GOOD, ensure_ascii=False).encode()
    bodies = [spoiled_bytes(source, good) for _ in range(150)]
    with ThreadPoolExecutor(8) as pool:
        for response in pool.map(lambda body: client.post("/chat/completions", content=body, headers=JSON_HEADERS), bodies):
            check(response)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "name", "function"]), inner)
    ),
    max_leaves=6,
)


FIELDS = st.sampled_from([*GOOD, "n", "stream", "thinking", "response_format", "logit_bias", "top_k"])
FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.dictionaries(FIELDS, ANYTHING, max_size=3))
def test_any_value_in_any_field_is_answered(client, changes):
    check(client.post("/chat/completions", json={**GOOD, **changes}))


def test_text_that_spells_control_tokens_is_text(client):
    def num_tokens(content):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return client.post("/chat/completions", json=body).json()["usage"]["prompt_tokens"]

    nothing = num_tokens("")
    for word in ("<think>", "</think>", "<tool_call>", "<|user|>", "<|endoftext|>", "[gMASK]", "/nothink", "<arg_key>"):
        # In this vocabulary ordinary text takes a token per byte; as a control token the word would take one.
        assert num_tokens(word) == nothing + len(word)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(live, client):
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "1000")
        connection.endheaders(b'{"messages"')
        connection.close()
    live.wait_until_idle()
