"""The completions dialect: raw prompts in, text out, with the scores of both."""

import json
import math

import pytest
from canned_app import ENCODE, MODEL, CannedApp, events_of
from canned_engine import CannedEngine, MadeOutputs
from golden import check_golden
from text_model import text_model

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.request import EngineOutput, TokenLogprobs
from openglm.errors import RequestError
from openglm.server.completions_request import read_completion_request

PATH = "/v1/completions"
TEXT = [ENCODE("\nZ"), ENCODE("ürich"), ENCODE(" <think>")]


def read(**fields):
    body = json.dumps({"prompt": "Hi", **fields}).encode()
    return read_completion_request(body, limits=RequestLimits(), defaults=SamplingDefaults())


class Scores(CannedEngine):
    """Reports a log probability for every token, and with the first step those of the prompt. Token 65 is always likelier."""

    def generate(self, request):
        inner = super().generate(request)
        scores = [_scored(token) for token in request.prompt_ids[1:]]

        async def outputs():
            first = True
            async for output in inner:
                ids = [] if request.params.max_tokens == 0 else output.token_ids
                yield EngineOutput(
                    output.request_id,
                    ids,
                    [_scored(token) for token in ids],
                    "length" if request.params.max_tokens == 0 else output.finish_reason,
                    num_prompt_tokens=len(request.prompt_ids),
                    prompt_logprobs=scores if first and request.params.prompt_logprobs is not None else None,
                )
                first = False
                if request.params.max_tokens == 0:
                    return

        return MadeOutputs(outputs())


def _scored(token):
    return TokenLogprobs(token, -2.0, ((65, -0.5),))


async def test_the_text_comes_as_it_is_whole_or_streamed():
    whole = (await CannedApp(TEXT).post(PATH, {"prompt": "Hi"})).json()
    streamed = events_of(await CannedApp(TEXT).post(PATH, {"prompt": "Hi", "stream": True}))
    assert whole["choices"][0]["text"] == "".join(data["choices"][0]["text"] for _, data in streamed) == "\nZürich <think>"
    assert streamed[-1][1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
async def test_echo_and_log_probabilities(stream):
    app = CannedApp(engine=Scores([ENCODE("Zü")[:2], ENCODE("Zü")[2:]]))
    body = {"prompt": "Hi", "echo": True, "logprobs": 1, "stream": stream, "stream_options": {"include_usage": True}}
    check_golden(f"completions_{'stream' if stream else 'whole'}.txt", await app.post(PATH, body))


async def test_streams_and_whole_answers_have_the_same_lists_for_several_prompts_and_choices():
    body = {"prompt": ["Hi", "Ho!"], "n": 2, "echo": True, "logprobs": 1}
    whole = (await CannedApp(engine=Scores(TEXT)).post(PATH, body)).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    sums = [{"text": "", "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in range(4)]
    for _, data in events_of(await CannedApp(engine=Scores(TEXT)).post(PATH, {**body, "stream": True})):
        for choice in data["choices"]:
            sums[choice["index"]]["text"] += choice["text"]
            for name, values in choice["logprobs"].items():
                sums[choice["index"]][name] += values
    for choice, total in zip(whole["choices"], sums, strict=True):
        assert {"text": choice["text"], **choice["logprobs"]} == total
        assert total["token_logprobs"][0] is None and total["top_logprobs"][0] is None
        joined = b"".join(MODEL.tokenizer.token_bytes(t) for t in MODEL.tokenizer.encode_raw(total["text"]))
        assert joined.decode() == total["text"]
        for token, offset in zip(total["tokens"], total["text_offset"], strict=True):
            assert token.startswith("bytes:") or total["text"][offset : offset + len(token)] == token
    assert whole["usage"]["prompt_tokens"] == 5


async def test_a_prompt_is_scored_as_lm_eval_does_it():
    context, continuation = ENCODE("Is it?"), ENCODE(" Yes")
    for extra in ({"max_tokens": 1}, {"max_tokens": 0}):
        app = CannedApp(engine=Scores([[65]]))
        body = {"prompt": [context + continuation], "echo": True, "logprobs": 1, "temperature": 0, "seed": 1234, **extra}
        (choice,) = (await app.post(PATH, body)).json()["choices"]
        generated = extra["max_tokens"]
        end = len(choice["logprobs"]["tokens"]) - generated
        scores = choice["logprobs"]["token_logprobs"][len(context) : end]
        tops = choice["logprobs"]["top_logprobs"][len(context) : end]
        assert scores == [-2.0] * len(continuation)
        assert all(math.isclose(max(top.values()), -0.5) and -2.0 in top.values() for top in tops)
        assert choice["text"].startswith("Is it? Yes")


@pytest.mark.parametrize("stream", [True, False])
async def test_echo_without_scores_and_of_a_single_token(stream):
    for prompt, extra in (("Hi", {}), ([72], {"logprobs": 0})):
        response = await CannedApp(engine=Scores([[65]])).post(PATH, {"prompt": prompt, "echo": True, "stream": stream, **extra})
        if stream:
            text = "".join(choice["text"] for _, data in events_of(response) for choice in data["choices"])
        else:
            text = response.json()["choices"][0]["text"]
        assert text == ("Hi" if prompt == "Hi" else MODEL.tokenizer.decode([72])) + MODEL.tokenizer.decode([65])


async def test_text_holds_no_control_tokens_unless_its_author_says_so():
    app = CannedApp(TEXT)
    await app.post(PATH, {"prompt": "<|user|>/nothink"})
    assert app.engine.requests[-1].prompt_ids == MODEL.tokenizer.encode_text("<|user|>/nothink")
    await app.post(PATH, {"prompt": "<|user|>", "parse_special": True})
    assert app.engine.requests[-1].prompt_ids == [MODEL.tokenizer.user]
    trusting = CannedApp(TEXT, parse_special=True)
    for path, body in ((PATH, {"prompt": "<|user|>"}), ("/generate", {"text": "<|user|>"})):
        await trusting.post(path, body)
        assert trusting.engine.requests[-1].prompt_ids == [MODEL.tokenizer.user]
        await trusting.post(path, {**body, "parse_special": False, "sampling_params": {"parse_special": False}})
        assert len(trusting.engine.requests[-1].prompt_ids) == len("<|user|>")
    await app.post(PATH, {"prompt": [258, 260], "max_tokens": 3})
    assert app.engine.requests[-1].prompt_ids == [258, 260]


async def test_a_stop_string_cuts_and_can_be_kept():
    for keep, text in ((False, "\nZür"), (True, "\nZürich")):
        body = {"prompt": "Hi", "stop": ["ich"], "include_stop_str_in_output": keep}
        (choice,) = (await CannedApp(TEXT).post(PATH, body)).json()["choices"]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", "ich")


async def test_constraints_reach_the_engine_without_a_layout_around_them():
    for fields, kind, text in (
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "lark", 'start: "a" | "b"'),
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        ({"ebnf": 'root ::= "x"'}, "lark", None),
    ):
        constraint = read(**fields).turns[0].params.constraint
        assert constraint.kind == kind and (text is None or constraint.text == text)


async def test_token_ids_and_counts_so_far_when_asked_for():
    body = {"prompt": "Hi", "stream": True, "return_token_ids": True, "stream_options": {"continuous_usage_stats": True}}
    events = [data for _, data in events_of(await CannedApp(TEXT).post(PATH, body))]
    assert [token for data in events for token in data["choices"][0]["token_ids"]] == [token for step in TEXT for token in step]
    assert [data["usage"]["completion_tokens"] for data in events] == [2, 8, 10]
    whole = (await CannedApp(TEXT).post(PATH, {"prompt": "Hi", "return_token_ids": True})).json()["choices"][0]
    assert whole["prompt_token_ids"] == ENCODE("Hi") and len(whole["token_ids"]) == 10


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.0]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"n": 9}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"guided_regex": "a", "ebnf": "b"}, "ebnf"),
    ],
)
def test_what_is_wrong_is_named(fields, param):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param == param


async def test_a_prompt_that_is_too_long_is_told_with_both_numbers():
    response = await CannedApp(TEXT, model=text_model(max_model_len=50)).post(PATH, {"prompt": "x" * 60})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert "is 50 tokens" in error["message"] and "has 60 input tokens" in error["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_scores_of_all_prompts_together_are_bounded(stream, monkeypatch):
    monkeypatch.setattr("openglm.server.exchange.MAX_PROMPT_LOGPROB_ENTRIES", 100)
    app = CannedApp(engine=Scores(TEXT))
    body = {"prompt": ["x" * 30] * 2, "echo": True, "logprobs": 1, "stream": stream}
    response = await app.post(PATH, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")
    assert (await app.post(PATH, {**body, "prompt": ["x" * 20] * 2})).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_many_scores_are_written_outside_the_event_loop(stream, monkeypatch):
    monkeypatch.setattr("openglm.server.exchange._LARGE_SCORES", 3)
    body = {"prompt": "Hi there", "echo": True, "logprobs": 1}
    few = (await CannedApp(engine=Scores(TEXT)).post(PATH, body)).json()["choices"][0]
    response = await CannedApp(engine=Scores(TEXT)).post(PATH, {**body, "stream": stream})
    text = "".join(choice["text"] for _, data in events_of(response) for choice in data["choices"]) if stream else None
    assert (text or response.json()["choices"][0]["text"]) == few["text"]
