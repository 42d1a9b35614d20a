"""The real `openai` package against the real server, beyond chat: responses, completions and parsed answers.

The scripted checkpoint thinks, says "Moment🙂" and calls get_weather."""

import json

import httpx
import openai
import pytest

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=live.url, api_key="unused", max_retries=0) as client:
        yield client


def test_a_whole_response_and_its_follow_up(client):
    first = client.responses.create(model="scripted", input="Weather in Zürich?", tools=[TOOL])
    reasoning, message, call = first.output
    assert (first.status, first.output_text) == ("completed", "Moment🙂")
    assert reasoning.content[0].text == "Ilookitup" and message.role == "assistant"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Zürich"})
    assert first.usage.output_tokens_details.reasoning_tokens == 6
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "blue"}
    chained = client.responses.create(model="scripted", input=[result], tools=[TOOL], previous_response_id=first.id)
    sent = [{"role": "user", "content": "Weather in Zürich?"}, *[item.model_dump() for item in first.output], result]
    replayed = client.responses.create(model="scripted", input=sent, tools=[TOOL], store=False)
    assert chained.usage.input_tokens == replayed.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == "Moment🙂"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel(replayed.id)


def test_the_response_stream_helper_accumulates_the_same(client):
    with client.responses.stream(model="scripted", input="Weather in Zürich?", tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert {"response.reasoning_text.delta", "response.output_text.delta", "response.function_call_arguments.delta"} <= set(kinds)
    assert final.output_text == "Moment🙂"
    assert json.loads(final.output[-1].arguments) == {"city": "Zürich"}


def test_a_response_in_the_background_is_polled_and_streamed_again(client):
    queued = client.responses.create(model="scripted", input="Hi", background=True)
    assert queued.status == "queued"
    while (response := client.responses.retrieve(queued.id)).status in ("queued", "in_progress"):
        pass
    assert response.output_text.startswith("Moment🙂")
    events = list(client.responses.create(model="scripted", input="Hi", background=True, stream=True))
    again = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in again] == [event.sequence_number for event in events[4:]]
    running = client.responses.create(model="scripted", input="Hi", background=True, extra_body={"ignore_eos": True})
    assert client.responses.cancel(running.id).status == "cancelled"


def test_a_response_cut_by_the_token_limit_is_incomplete(client):
    response = client.responses.create(model="scripted", input="Hi", max_output_tokens=2)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"background": True, "store": False}, "invalid_request", "background"),
        ({"previous_response_id": "resp_none"}, "previous_response_not_found", "previous_response_id"),
        ({"input": "x " * 9999}, "context_length_exceeded", "messages"),
        ({"temperature": 9}, "invalid_request", "temperature"),
    ],
)
def test_response_errors_are_typed(client, fields, code, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "scripted", "input": "Hi", **fields})
    assert (caught.value.code, caught.value.param) == (code, param)


def test_completions_continue_ids_and_stream(client, live):
    tokenizer = live.service.model.tokenizer
    prompt = [tokenizer.assistant]
    whole = client.completions.create(model="scripted", prompt=prompt, max_tokens=50)
    assert whole.choices[0].text.startswith("\n<think>Ilookitup</think>Moment🙂<tool_call>get_weather")
    assert whole.choices[0].finish_reason == "stop"
    pieces = client.completions.create(model="scripted", prompt=prompt, max_tokens=50, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    both = client.completions.create(model="scripted", prompt=[prompt, prompt], max_tokens=4, n=2, temperature=0)
    assert [choice.text for choice in both.choices] == [whole.choices[0].text[: len("\n<think>Ilook")]] * 4


def test_prompts_are_scored(client, live):
    tokenizer = live.service.model.tokenizer
    ids = [tokenizer.assistant, *tokenizer.encode_raw("\n<think>Ilookwrong")]
    for max_tokens in (0, 1):
        scored = client.completions.create(model="scripted", prompt=ids, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
        lists = scored.choices[0].logprobs
        values = lists.token_logprobs[: len(ids)]
        # The model ends its turn here; the stop id is listed all the same, because harnesses drop the last entry.
        assert len(lists.tokens) == len(ids) + max_tokens == len(lists.text_offset) == len(lists.top_logprobs)
        assert values[0] is None and all(value > -0.01 for value in values[1:5]) and values[5] < -1
        greedy = [value == max(top.values()) for value, top in zip(values[1:], lists.top_logprobs[1 : len(ids)], strict=True)]
        assert greedy[:4] == [True] * 4 and not greedy[4]
    again = client.completions.create(model="scripted", prompt=ids, echo=True, logprobs=1, max_tokens=0)
    assert again.choices[0].logprobs.token_logprobs == values  # a cached prefix changes nothing


def test_a_suffix_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="scripted", prompt="a", suffix="b")


def test_sglangs_generate_scores_and_streams(live):
    tokenizer = live.service.model.tokenizer
    body = {
        "input_ids": [tokenizer.assistant, *tokenizer.encode_raw("\n<think>I")],
        "sampling_params": {"temperature": 0, "max_new_tokens": 4},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    answer = httpx.post(f"{live.root}/generate", json=body, timeout=30).json()
    assert answer["text"] == "lookitup</think>"
    meta = answer["meta_info"]
    assert [entry[1] for entry in meta["input_token_logprobs"]] == body["input_ids"]
    assert [entry[1] for entry in meta["output_token_logprobs"]] == answer["output_ids"]
    assert meta["finish_reason"] == {"type": "length", "length": 4}
    text = httpx.post(f"{live.root}/generate", json={**body, "stream": True}, timeout=30).text
    *_, last, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    streamed = json.loads(last.removeprefix("data: "))
    assert (streamed["text"], streamed["output_ids"]) == (answer["text"], answer["output_ids"])
    assert streamed["meta_info"]["output_token_logprobs"] == meta["output_token_logprobs"]


def test_the_cache_is_flushed(client, live):
    ask = [{"role": "user", "content": "A question to be forgotten. " * 20}]

    def cached():
        answer = client.chat.completions.create(model="scripted", messages=ask, max_tokens=1)
        return answer.usage.prompt_tokens_details.cached_tokens

    cached()
    assert cached() >= 64
    assert httpx.post(f"{live.root}/flush_cache", headers={"x-api-key": "operator"}, timeout=30).status_code == 200
    assert cached() == 0
    assert httpx.get(f"{live.root}/v1/loads", timeout=30).json()["loads"][0]["max_total_num_tokens"] > 0
    assert httpx.get(f"{live.root}/server_info", timeout=30).json()["status"] == "ready"
    assert httpx.get(f"{live.root}/health_generate", timeout=30).status_code == 200
