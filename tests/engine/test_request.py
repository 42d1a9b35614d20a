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

BAD = [
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", True), ("max_tokens", 1.0), ("max_tokens", "3"),
    ("temperature", -0.1), ("temperature", 2.01), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "1"), ("temperature", True),
    ("temperature", 10**400), ("top_p", 0.0), ("top_p", 1.01), ("top_p", math.nan), ("top_k", -2), ("top_k", 1.5), ("min_p", -0.01), ("min_p", 1.01),
    ("seed", 2**63), ("seed", 0.5), ("logprobs", -1), ("logprobs", 21), ("stop", ("",)), ("stop", ("x" * 257,)), ("stop", ("a",) * 17), ("stop", (1,)),
    ("stop_token_ids", (-1,)), ("stop_token_ids", (1,) * 129), ("stop_token_ids", ("1",)),
]  # fmt: skip
GOOD = [
    ("max_tokens", 1), ("max_tokens", 2**40), ("temperature", 0), ("temperature", 2.0), ("top_p", 1e-9), ("top_k", -1), ("top_k", 2**31), ("min_p", 1.0),
    ("seed", -(2**63)), ("seed", 2**63 - 1), ("logprobs", 0), ("logprobs", 20), ("stop", ("x" * 256,) * 16), ("stop_token_ids", (0,) * 128),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_wrong_values_name_their_parameter_and_do_not_echo_at_length(name, value):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name and name.split("_")[0] in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(("name", "value"), GOOD)
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
    ],
)
def test_requests_that_the_model_cannot_run_are_refused(prompt, params, error, param):
    with pytest.raises(error) as caught:
        validate_request(GenerationRequest("r", prompt, params), num_tokens=100, max_model_len=16)
    assert caught.value.param == param


def test_a_prompt_that_leaves_room_for_one_token_is_taken():
    validate_request(GenerationRequest("r", [1] * 15), num_tokens=100, max_model_len=16)


def test_structs_survive_msgpack():
    request = GenerationRequest("r", [1, 2], SamplingParams(temperature=0.5, stop=("a", "b"), stop_token_ids=(3,), logprobs=2, seed=-5))
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
