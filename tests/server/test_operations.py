"""Routes about tokens, state and load, and what an operator can do to requests."""

import asyncio
from datetime import datetime, timedelta

import pytest
from canned_app import ADMIN, MODEL, SAY, CannedApp
from test_responses_wire import Waits

from openglm import __version__

ASK = {"messages": [{"role": "user", "content": "Hi"}]}


async def test_text_and_conversations_become_ids_and_back():
    app = CannedApp(SAY)
    text = "Zürich <|user|>"
    answer = (await app.post("/tokenize", {"prompt": text, "return_token_strs": True, "add_special_tokens": True})).json()
    assert answer["tokens"] == MODEL.tokenizer.encode_text(text) and answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 4000 and len(answer["token_strs"]) == answer["count"]
    assert (await app.post("/detokenize", {"tokens": answer["tokens"]})).json()["prompt"] == text
    assert (await app.post("/v1/tokenize", {"content": "<|user|>", "parse_special": True})).json()["tokens"] == [MODEL.tokenizer.user]
    chat = (await app.post("/tokenize", ASK)).json()["tokens"]
    await app.post("/v1/chat/completions", ASK)
    assert chat == app.engine.requests[-1].prompt_ids
    bare = (await app.post("/tokenize", {**ASK, "add_generation_prompt": False})).json()["tokens"]
    assert bare == chat[: len(bare)] and len(bare) < len(chat)
    info = (await app.get("/tokenizer_info")).json()
    assert info["eos_token"] == info["pad_token"] == "<|endoftext|>" and info["bos_token"] is None and "chat_template" in info


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"messages": 7}, "messages"),
        ("/tokenize", {"prompt": "x", "model": "gpt"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [100_000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1] * 300_000}, "tokens"),
        ("/tokenize", {"prompt": "x" * 300_000, "return_token_strs": True}, "return_token_strs"),
        ("/detokenize", {"tokens": [2**70]}, "tokens[0]"),
        ("/abort_request", {}, "rid"),
        ("/abort_request", {"request_ids": ["x"] * 200}, "request_ids"),
        ("/abort_request", {"rid": 7}, "rid"),
    ],
)
async def test_what_is_wrong_is_named(path, body, param):
    response = await CannedApp(SAY).post(path, body, headers=ADMIN)
    assert response.status_code in (400, 404) and response.json()["error"]["param"] == param


async def test_state_and_load_tell_an_allow_list():
    app = CannedApp(SAY, api_keys=("very-secret",))
    headers = {"authorization": "Bearer very-secret"}
    await app.request("POST", "/v1/chat/completions", json={**ASK, "made_up": 1, "x" * 500: 1}, headers=headers)
    answers = {}
    for path in ("/version", "/model_info", "/server_info", "/v1/loads"):
        assert (await app.get(path)).status_code == 401
        response = await app.request("GET", path, headers=headers)
        assert "very-secret" not in response.text
        answers[path] = response.json()
    assert answers["/version"] == {"version": __version__}
    assert answers["/model_info"]["model_path"] == "test-model"
    assert answers["/server_info"]["ignored_fields"] == {"total": 2, "by_name": {"made_up": 1, "(odd name)": 1}}
    assert datetime.fromisoformat(answers["/v1/loads"]["timestamp"]).utcoffset() == timedelta(0)  # a text, as routers expect
    (load,) = answers["/v1/loads"]["loads"]
    assert (load["num_waiting_reqs"], load["max_total_num_tokens"], load["token_usage"]) == (3, 6400, 0.1)


async def test_the_cache_can_be_flushed_but_not_by_a_page_of_another_site():
    app = CannedApp(SAY)
    for method, path in (("POST", "/flush_cache"), ("GET", "/flush_cache"), ("POST", "/reset_prefix_cache")):
        assert (await app.request(method, path, headers=ADMIN)).status_code == 200
        assert (await app.request(method, path)).status_code == 404
    assert app.engine.num_flushes == 3
    response = await app.request("POST", "/flush_cache", headers={**ADMIN, "sec-fetch-site": "cross-site"})
    assert response.status_code == 403 and app.engine.num_flushes == 3


async def test_health_generate_generates():
    app = CannedApp(SAY)
    assert (await app.get("/health_generate")).status_code == 200
    assert app.params.max_tokens == 1 and app.params.greedy


@pytest.mark.parametrize("body", [{"rid": "mine"}, {"request_ids": ["other", "mine"]}, {"abort_all": True}, {"rid": "{id}"}])
async def test_a_running_request_is_aborted_by_the_name_its_client_gave_it(body):
    engine = Waits([])
    app = CannedApp(engine=engine)
    thinking_off = {"chat_template_kwargs": {"enable_thinking": False}}
    waiting = asyncio.create_task(app.post("/v1/chat/completions", {**ASK, **thinking_off, "request_id": "mine"}))
    while not engine.requests:
        await asyncio.sleep(0)
    if body.get("rid") == "{id}":
        body = {"rid": f"chatcmpl-{engine.requests[0].id}"}
    assert (await app.post("/abort_request", body)).status_code == 404
    assert (await app.post("/abort_request", {"rid": "someone-else"}, headers=ADMIN)).json() == {"aborted": 0}
    assert (await app.post("/abort_request", body, headers=ADMIN)).json() == {"aborted": 1}
    answer = (await waiting).json()
    assert (answer["choices"][0]["finish_reason"], answer["choices"][0]["message"]["content"]) == ("abort", "He")
    assert (await app.post("/abort_request", {"abort_all": True}, headers=ADMIN)).json() == {"aborted": 0}
