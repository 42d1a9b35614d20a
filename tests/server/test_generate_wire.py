"""SGLang's /generate: text or ids in, text, ids and meta_info out."""

import json

import pytest
from canned_app import CannedApp, events_of
from canned_engine import CannedEngine, MadeOutputs
from golden import check_golden
from test_completions_wire import TEXT, Scores
from text_model import text_model

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.request import EngineOutput, TokenLogprobs
from openglm.errors import RequestError
from openglm.server.sglang_request import read_generate_request

PATH = "/generate"


def read(**fields):
    body = json.dumps({"text": "Hi", **fields} if "input_ids" not in fields else fields).encode()
    return read_generate_request(body, limits=RequestLimits(), defaults=SamplingDefaults())


@pytest.mark.parametrize("stream", [True, False])
async def test_one_prompt_with_log_probabilities(stream):
    app = CannedApp(engine=Scores([[65], [66, 67]]))
    body = {
        "input_ids": [72, 73, 74],
        "rid": "mine",
        "sampling_params": {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": 1,
        "top_logprobs_num": 1,
        "return_text_in_logprobs": True,
        "stream": stream,
    }
    check_golden(f"generate_{'stream' if stream else 'whole'}.txt", await app.post(PATH, body))
    assert (app.params.max_tokens, app.params.ignore_eos, app.params.greedy) == (3, True, True)


async def test_several_prompts_and_choices_are_a_list_in_order():
    answers = (await CannedApp(TEXT).post(PATH, {"text": ["Hi", "Ho!"], "sampling_params": {"n": 2}})).json()
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [2, 2, 3, 3]
    events = [data for _, data in events_of(await CannedApp(TEXT).post(PATH, {"text": ["Hi", "Ho!"], "stream": True}))]
    last = {data["index"]: data for data in events}
    assert [last[i]["text"] for i in (0, 1)] == ["\nZürich <think>"] * 2
    assert all(data["meta_info"]["finish_reason"]["type"] == "stop" for data in last.values())
    single = (await CannedApp(TEXT).post(PATH, {"text": ["Hi"]})).json()
    assert isinstance(single, list) and len(single) == 1
    assert isinstance((await CannedApp(TEXT).post(PATH, {"text": "Hi"})).json(), dict)


async def test_without_a_start_the_prompt_is_not_scored():
    app = CannedApp(engine=Scores([[65]]))
    meta = (await app.post(PATH, {"text": "Hi", "return_logprob": True})).json()["meta_info"]
    assert meta["input_token_logprobs"] == [] and meta["output_token_logprobs"] == [[-2.0, 65, None]]
    assert app.params.prompt_logprobs is None


async def test_a_stop_string_is_named():
    answer = (await CannedApp(TEXT).post(PATH, {"text": "Hi", "sampling_params": {"stop": "ich"}})).json()
    assert answer["text"] == "\nZür" and answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "ich"}


async def test_the_stop_id_is_the_last_of_the_ids_and_is_scored():
    class Stops(CannedEngine):
        def generate(self, request):
            async def outputs():
                yield EngineOutput(request.id, [65], [TokenLogprobs(65, -1.0)], "stop", 263, stop_logprobs=TokenLogprobs(263, -0.25))

            return MadeOutputs(outputs())

    answer = (await CannedApp(engine=Stops([])).post(PATH, {"text": "Hi", "return_logprob": True})).json()
    assert answer["output_ids"] == [65, 263] and answer["text"] == "b"
    assert answer["meta_info"]["output_token_logprobs"] == [[-1.0, 65, None], [-0.25, 263, None]]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": 263}
    lists = (await CannedApp(engine=Stops([])).post("/v1/completions", {"prompt": "Hi", "logprobs": 0})).json()["choices"][0]["logprobs"]
    assert (lists["tokens"], lists["token_logprobs"]) == (["b", "<|user|>"], [-1.0, -0.25])


async def test_length_and_abort():
    for ending, kind in (("length", "length"), ("abort", "abort")):
        answer = (await CannedApp(engine=CannedEngine([[65]], ending=ending)).post(PATH, {"text": "Hi"})).json()
        assert answer["meta_info"]["finish_reason"]["type"] == kind


def test_each_prompt_may_have_its_own_parameters():
    request = read(text=["a", "b"], sampling_params=[{"max_new_tokens": 1}, {"max_new_tokens": 2, "regex": "a"}], rid=["x", "y"])
    assert [turn.params.max_tokens for turn in request.turns] == [1, 2]
    assert [turn.client_id for turn in request.turns] == ["x", "y"]
    assert request.turns[1].params.constraint.kind == "regex"
    assert read(sampling_params={"spaces_between_special_tokens": True}).unknown == ("spaces_between_special_tokens",)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": None}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": [1]}, "text"),
        ({"text": []}, "text"),
        ({"input_ids": "a"}, "input_ids"),
        ({"input_ids": ["a"]}, "input_ids"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [-1]}, "input_ids"),
        ({"input_embeds": [[0.1]]}, "input_embeds"),
        ({"image_data": "x"}, "image_data"),
        ({"sampling_params": 7}, "sampling_params"),
        ({"sampling_params": [{}, {}]}, "sampling_params"),
        ({"sampling_params": {"temperature": "x"}}, "sampling_params.temperature"),
        ({"sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
        ({"sampling_params": {"sampling_seed": 2**63}}, "sampling_params.sampling_seed"),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}, "sampling_params.n"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"rid": ""}, "rid"),
        ({"return_logprob": True, "top_logprobs_num": 50}, "top_logprobs_num"),
        ({"text": ["a"] * 200}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(fields, param):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param == param


async def test_a_long_stream_costs_no_square():
    steps = [[65 + i % 20] for i in range(3000)]
    events = events_of(await CannedApp(steps, model=text_model(max_model_len=10_000)).post(PATH, {"text": "Hi", "stream": True}))
    counts = [data["meta_info"]["completion_tokens"] for _, data in events]
    assert counts[:2000] == list(range(1, 2001)) and len(counts) < 2600 and counts[-1] == 3000
    assert len(events[-1][1]["text"]) == 3000
