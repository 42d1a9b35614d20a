"""The engine's own gate: every limit, at the edge and beyond, names its parameter."""

import math

import msgspec
import pytest

from openglm.engine.request import (
    EngineOutput,
    GenerationRequest,
    RequestFailure,
    SamplingParams,
    TokenLogprobs,
    validate_request,
)
from openglm.errors import ContextLengthError, EngineDeadError, EngineError, QueueFullError, RequestError

BAD = {
    "max_tokens": [0, -1, True, 1.0, "3"],
    "temperature": [-0.1, 2.01, math.nan, math.inf, "1", True, 10**400],
    "top_p": [0.0, 1.01, math.nan],
    "top_k": [-2, 1.5],
    "min_p": [-0.01, 1.01],
    "seed": [2**63, 0.5],
    "logprobs": [-1, 21],
    "stop": [("",), ("x" * 257,), ("a",) * 17, (1,)],
    "stop_token_ids": [(-1,), (1,) * 129, ("1",)],
    "frequency_penalty": [-2.01, 2.01, math.nan, True, "1", 1e308],
    "presence_penalty": [-2.01, 2.01, math.inf],
    "repetition_penalty": [0, -1, 2.01, 1e-40, math.nan],
    "logit_bias": [{-1: 1.0}, {1: 100.1}, {1: math.nan}, {1: True}, {"1": 1.0}, dict.fromkeys(range(301), 1.0)],
    "bad_words": [((),), ((1,) * 65,), ((-1,),), (("a",),), (1,), ((1,),) * 257],
    "min_tokens": [-1, 1.0, True],
    "thinking_budget": [-1, 2.5, False],
}
GOOD = {
    "max_tokens": [1, 2**40],
    "temperature": [0, 2.0],
    "top_p": [1e-9],
    "top_k": [-1, 2**31],
    "min_p": [1.0],
    "seed": [-(2**63), 2**63 - 1],
    "logprobs": [0, 20],
    "stop": [("x" * 256,) * 16],
    "stop_token_ids": [(0,) * 128],
    "frequency_penalty": [-2, 2.0],
    "presence_penalty": [-2, 2.0],
    "repetition_penalty": [0.001, 2],
    "logit_bias": [dict.fromkeys(range(300), -100.0), {0: 100}],
    "bad_words": [((1,) * 64,) * 256, ([1, 2],)],
    "min_tokens": [0, 2**31],
    "thinking_budget": [0, 2**31],
}


def cases(table: dict[str, list]) -> list[tuple]:
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_wrong_values_name_their_parameter_and_do_not_echo_at_length(name, value):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name and name.split("_")[0] in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_values_at_the_edge_are_taken(name, value):
    SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("prompt", "params", "error", "param"),
    [
        ([], SamplingParams(), RequestError, "prompt"),
        ([-1], SamplingParams(), RequestError, "prompt"),
        ([100], SamplingParams(), RequestError, "prompt"),
        ([1] * 16, SamplingParams(), ContextLengthError, "messages"),
        ([1], SamplingParams(stop_token_ids=(100,)), RequestError, "stop_token_ids"),
        ([1], SamplingParams(logit_bias={5: 1.0, 10**30: 1.0}), RequestError, "logit_bias"),
        ([1], SamplingParams(bad_words=((1, 2), (3, 100))), RequestError, "bad_words"),
    ],
)
def test_requests_that_the_model_cannot_run_are_refused(prompt, params, error, param):
    with pytest.raises(error) as caught:
        validate_request(GenerationRequest("r", prompt, params), num_tokens=100, max_model_len=16)
    assert caught.value.param == param


def test_a_prompt_that_leaves_room_for_one_token_is_taken():
    validate_request(GenerationRequest("r", [1] * 15), num_tokens=100, max_model_len=16)


def test_more_tokens_at_least_than_at_most_are_refused():
    SamplingParams(min_tokens=4, max_tokens=4)
    with pytest.raises(RequestError) as caught:
        SamplingParams(min_tokens=5, max_tokens=4)
    assert caught.value.param == "min_tokens"


ADJUSTED = {"logit_bias": {7: -1.5}, "bad_words": ((1, 2), (3,)), "min_tokens": 2, "thinking_budget": 0}


def test_structs_survive_msgpack():
    request = GenerationRequest(
        "r", [1, 2], SamplingParams(temperature=0.5, stop=("a", "b"), stop_token_ids=(3,), logprobs=2, seed=-5, **ADJUSTED)
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=GenerationRequest) == request
    output = EngineOutput("r", [1], [TokenLogprobs(1, -0.5, ((1, -0.5), (2, -1.0)))], "error", 7, error=RequestFailure("internal", "m"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(output), type=EngineOutput) == output


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_request", RequestError),
        ("context_length_exceeded", ContextLengthError),
        ("queue_full", QueueFullError),
        ("engine_dead", EngineDeadError),
        ("not_finite", EngineError),
        ("internal", EngineError),
    ],
)
def test_failures_become_typed_errors(code, kind):
    error = RequestFailure(code, "why", "field").to_error()
    assert type(error) is kind and str(error) == "why"
