import json

import pytest
from llguidance import LLMatcher

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import RequestError
from openglm.server.openai_request import read_chat_request

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
STRICT_NOT = {
    "type": "function",
    "function": {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"a": {"type": "string", "not": {}}}}},
}
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def read(default_thinking=True, defaults=None, **fields):
    body = json.dumps({**HELLO, **fields}).encode()
    return read_chat_request(body, limits=RequestLimits(), defaults=defaults or SamplingDefaults(), thinking=default_thinking)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x"}] * 5000}, "messages"),
        ({"model": 3}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -0.5}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": list(range(200))}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": 5_000_000}, "n"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "05": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"bad_words": "word"}, "bad_words"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": ["x" * 65]}, "bad_words"),
        ({"bad_words": ["x"] * 129}, "bad_words"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"thinking_token_budget": 1.5}, "thinking_token_budget"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}}, "response_format.json_schema.schema"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a" * 3000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "(((("}}, "structured_outputs.grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"$ref": "https://example.org"}}, "guided_json"),
        ({"guided_json": {"enum": list(range(1001))}}, "guided_json"),
        ({"guided_json": {"pattern": "a" * 600}}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"ebnf": "root ::= " + "(" * 9000}, "ebnf"),
        ({"json_schema": "[1]"}, "json_schema"),
        ({"tools": {}}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": [STRICT_NOT]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"thinking": "off"}, "thinking"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_a_wrong_field_is_named(fields, param):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param == param
    assert len(str(caught.value)) < 300


def test_missing_messages_are_named():
    with pytest.raises(RequestError) as caught:
        read_chat_request(b"{}", limits=RequestLimits(), defaults=SamplingDefaults(), thinking=True)
    assert caught.value.param == "messages"


def test_null_means_absent_and_unknown_fields_are_ignored():
    names = """
        model tools tool_choice stream stream_options max_tokens max_completion_tokens temperature top_p top_k min_p seed stop
        stop_token_ids logprobs top_logprobs chat_template_kwargs thinking reasoning_effort n frequency_penalty logit_bias
        response_format do_sample parallel_tool_calls ignore_eos presence_penalty repetition_penalty min_tokens bad_words
        thinking_budget thinking_token_budget structured_outputs guided_json guided_regex guided_choice guided_grammar json_schema
        regex ebnf
    """
    fields = dict.fromkeys(names.split())
    assert read(**fields, user="me", metadata={"a": [1]}, store=True, watermark_enabled=0).turn == read().turn


def test_values_that_demand_nothing_constrain_nothing():
    chat = read(structured_outputs={}, response_format={"type": "text"}, tool_choice="auto", tools=[TOOL])
    assert chat.turn.params.constraint is None
    assert read(tools=[TOOL], tool_choice="none", response_format={"type": "text"}).turn.params.constraint is None


def constraint(**fields):
    return read(**fields).turn.params.constraint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}, "response_format.json_schema"),
        ({"structured_outputs": {"json": {"type": "object"}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a/b"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "structured_outputs.grammar"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"guided_json": '{"type": "object"}'}, "guided_json"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, "guided_grammar"),
        ({"json_schema": '{"type": "object"}'}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"ebnf": 'root ::= "a"'}, "ebnf"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_every_way_to_demand_a_form_becomes_a_constraint_that_compiles(fields, param):
    alone, with_tools = constraint(**fields), constraint(**fields, tools=[TOOL])
    assert (alone.param, alone.at, alone.reads_calls) == (param, "answer", False)
    assert (with_tools.param, with_tools.at, with_tools.reads_calls) == (param, "answer", True)
    assert "tool_call" in with_tools.text and "tool_call" not in alone.text
    assert not LLMatcher.validate_grammar(alone.text)


G = {"type": "function", "function": {"name": "g", "parameters": {}}}
STRICT = {"type": "function", "function": {"name": "s", "strict": True, "parameters": {}}}
NAME_G = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize(
    ("fields", "at", "names", "several"),
    [
        ({"tools": [TOOL, G], "tool_choice": "required"}, "answer", "fg", True),
        ({"tools": [TOOL, G], "tool_choice": "required", "parallel_tool_calls": False}, "answer", "fg", False),
        ({"tools": [TOOL, G], "tool_choice": NAME_G}, "answer", "g", False),
        ({"tools": [TOOL, G], "tool_choice": {"type": "function", "name": "g"}}, "answer", "g", False),
        ({"tools": [TOOL, STRICT]}, "call", "fs", True),
        ({"tools": [TOOL, STRICT], "tool_choice": "auto", "parallel_tool_calls": False}, "call", "fs", False),
        ({"tools": [TOOL, G], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [NAME_G]}}, "call", "g", True),
        (
            {"tools": [TOOL, G], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAME_G]}}},
            "answer",
            "g",
            True,
        ),
    ],
)
def test_tool_choice_and_strict_functions_constrain_calls(fields, at, names, several):
    found = constraint(**fields)
    assert (found.at, found.reads_calls, found.param) == (at, True, "tools")
    assert [name for name in "fgs" if f'"{name}" GAP' in found.text] == list(names)
    start = found.text.split("\n", 1)[0]
    assert ("{0," in start or start.endswith("+")) is several


def test_adjustments_reach_the_engine():
    chat = read(
        n=3,
        frequency_penalty=0.5,
        presence_penalty=-1,
        repetition_penalty=1.1,
        min_tokens=2,
        logit_bias={"5": -100, "7": 0.5},
        thinking_token_budget=9,
        bad_words=["no", "no", "never"],
    )
    params = chat.turn.params
    assert (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (0.5, -1, 1.1)
    assert (params.min_tokens, params.logit_bias, params.thinking_budget) == (2, {5: -100, 7: 0.5}, 9)
    assert (chat.num_choices, chat.turn.bad_words) == (3, ("no", "never"))
    assert read(thinking_budget=0, thinking_token_budget=9).turn.params.thinking_budget == 0
    assert not read(n=1, frequency_penalty=0, repetition_penalty=1, min_tokens=0, logit_bias={}).turn.params.adjusts_logits


def test_priority_and_cache_salt_reach_the_engine():
    assert read().turn.scheduling == SchedulingParams()
    assert read(priority=-3, cache_salt="tenant").turn.scheduling == SchedulingParams(priority=-3, cache_salt="tenant")
    for fields in ({"priority": 2**31}, {"priority": 1.5}, {"cache_salt": ""}, {"cache_salt": "x" * 300}, {"cache_salt": 5}):
        with pytest.raises(RequestError) as caught:
            read(**fields)
        assert caught.value.param == next(iter(fields))


def test_defaults_come_from_the_model_and_requests_override_them():
    defaults = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=40, min_p=0.05)
    params = read(defaults=defaults).turn.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.95, 40, 0.05)
    params = read(defaults=defaults, temperature=0, top_p=1, top_k=-1, min_p=0, seed=-7).turn.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0.0, 1.0, -1, 0.0, -7)
    assert read(defaults=defaults, do_sample=False, temperature=1.0).turn.params.greedy


def test_the_newer_name_of_the_token_limit_wins():
    assert read(max_tokens=10, max_completion_tokens=20).turn.params.max_tokens == 20
    assert read(max_tokens=10).turn.params.max_tokens == 10


@pytest.mark.parametrize(
    ("fields", "thinking", "keep"),
    [
        ({}, True, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, False),
        ({"chat_template_kwargs": {"enable_thinking": True, "clear_thinking": False}}, True, True),
        ({"thinking": {"type": "disabled"}}, False, False),
        ({"thinking": {"type": "enabled", "clear_thinking": False}}, True, True),
        ({"thinking": {"type": "disabled"}, "chat_template_kwargs": {"enable_thinking": True}}, True, False),
        ({"reasoning_effort": "none"}, False, False),
        ({"reasoning_effort": "high"}, True, False),
        ({"reasoning_effort": "none", "thinking": {"type": "enabled"}}, True, False),
    ],
)
def test_every_way_to_say_whether_to_think(fields, thinking, keep):
    conversation = read(**fields).turn.prompt
    assert (conversation.thinking, conversation.keep_thinking) == (thinking, keep)


def test_the_servers_default_decides_when_nobody_says():
    assert not read(default_thinking=False).turn.prompt.thinking
    assert read(default_thinking=False, chat_template_kwargs={"enable_thinking": True}).turn.prompt.thinking


def test_tool_choice_none_hides_the_tools():
    assert read(tools=[TOOL], tool_choice="auto").turn.prompt.tools
    assert not read(tools=[TOOL], tool_choice="none").turn.prompt.tools


def test_a_stop_string_may_stand_alone_and_repeats_count_once():
    assert read(stop="a").turn.stop == ("a",)
    assert read(stop=["a", "b", "a"]).turn.stop == ("a", "b")
