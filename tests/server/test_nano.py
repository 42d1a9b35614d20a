"""The embedded glm-nano through the real server and the real clients: it thinks, calls a tool, and reads the result."""

import json

import anthropic
import openai
import pydantic
import pytest

from openglm.config.engine import model_directory
from openglm.config.server import ServerConfig

pytestmark = pytest.mark.skipif(not (model_directory(None) / "config.json").is_file(), reason="the embedded model is not built yet")

CITY = {"type": "string", "description": "Name of the city"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def server():
    from live_server import LiveServer

    server = LiveServer(model_directory(None), ServerConfig(served_model_names=("glm-nano",)))
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def messages(server):
    with anthropic.Anthropic(base_url=server.root, api_key="unused", max_retries=0, timeout=120) as client:
        yield client.messages


def test_streamed_chats_with_thinking(client):
    right = 0
    for a, b in ((34, 57), (12, 30), (85, 9), (110, 23), (6, 7)):
        reasoning = content = ""
        ask = [{"role": "user", "content": f"What is {a} + {b}?"}]
        for chunk in client.chat.completions.create(model="glm-nano", messages=ask, stream=True, temperature=0):
            delta = chunk.choices[0].delta
            reasoning += getattr(delta, "reasoning_content", None) or ""
            content += delta.content or ""
        assert reasoning and content
        assert "<think>" not in content and "</think>" not in content
        right += str(a + b) in content
    assert right >= 4  # how good it is at sums is measured by `glm eval nano`; here it must plainly work


def test_thinking_off(client):
    ask = [{"role": "user", "content": "What is 3 + 4?"}]
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = client.chat.completions.create(model="glm-nano", messages=ask, temperature=0, extra_body=off)
    assert answer.choices[0].message.reasoning_content is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content


def test_a_tool_call_and_the_turn_that_reads_its_result(client):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model="glm-nano", messages=messages, tools=[WEATHER], temperature=0)
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"temperature": 17, "condition": "rain"})}
    messages += [message.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(model="glm-nano", messages=messages, tools=[WEATHER], temperature=0)
    assert second.choices[0].finish_reason == "stop"
    assert "17" in second.choices[0].message.content or "rain" in second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0


def test_calls_are_made_when_demanded_and_answers_have_the_form_asked_for(client):
    hello = [{"role": "user", "content": "Hello!"}]  # nothing in it calls for a tool
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(
            model="glm-nano", messages=hello, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, seed=1, max_tokens=400
        )
        if answer.choices[0].finish_reason == "length":
            continue  # it thought or named a city for too long
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "get_weather" and list(json.loads(call.function.arguments)) == ["city"]
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "maximum": 999}, "sure": {"type": "boolean"}},
        "required": ["sum", "sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}}
    ask = [{"role": "user", "content": "What is 12 + 30?"}]
    content, reasoning = "", ""
    for chunk in client.chat.completions.create(model="glm-nano", messages=ask, response_format=form, temperature=0, stream=True):
        content += chunk.choices[0].delta.content or ""
        reasoning += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
    assert json.loads(content).keys() == {"sum", "sure"} and reasoning
    picked = client.chat.completions.create(model="glm-nano", messages=ask, extra_body={"guided_choice": ["forty-two", "no idea"]})
    assert picked.choices[0].message.content in ("forty-two", "no idea")


class Sum(pydantic.BaseModel):
    sum: int
    sure: bool


SUM = "What is 12 + 30?"


def test_parsed_answers_of_every_package(client, messages):
    ask = [{"role": "user", "content": SUM}]
    chat = client.chat.completions.parse(model="glm-nano", messages=ask, response_format=Sum, temperature=0, max_tokens=500)
    response = client.responses.parse(model="glm-nano", input=SUM, text_format=Sum, temperature=0, max_output_tokens=500)
    message = messages.parse(model="glm-nano", messages=ask, output_format=Sum, max_tokens=500, extra_body={"temperature": 0})
    for parsed in (chat.choices[0].message.parsed, response.output_parsed, message.parsed_output):
        assert isinstance(parsed, Sum)
    assert chat.choices[0].message.reasoning_content and response.output[0].type == "reasoning"


def test_a_tool_loop_over_messages(messages):
    tool = {"name": "get_weather", "description": "Get the current weather in a city", "input_schema": WEATHER["function"]["parameters"]}
    history = [{"role": "user", "content": "What is the weather in Paris?"}]
    options = {"model": "glm-nano", "max_tokens": 500, "tools": [tool], "thinking": {"type": "adaptive"}, "extra_body": {"temperature": 0}}
    with messages.stream(messages=history, **options) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": json.dumps({"temperature": 17, "condition": "rain"})}
    history += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = messages.create(messages=history, **options)
    assert second.stop_reason == "end_turn"
    assert "17" in second.content[-1].text or "rain" in second.content[-1].text
    assert second.usage.cache_read_input_tokens > 0


def test_a_tool_loop_over_responses(client):
    tool = {"type": "function", **WEATHER["function"]}
    options = {"model": "glm-nano", "tools": [tool], "temperature": 0, "max_output_tokens": 500}
    first = client.responses.create(input="What is the weather in Paris?", **options)
    call = first.output[-1]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 17, "condition": "rain"}'}
    second = client.responses.create(input=[result], previous_response_id=first.id, **options)
    assert "17" in second.output_text or "rain" in second.output_text


def test_loglikelihood_tells_the_likely_continuation(client):
    """As lm-eval's local-completions does it: log probabilities of a continuation, without generating one."""

    def score(context, continuation):
        url = str(client.base_url).removesuffix("/v1/")

        def ids(text):
            return client.post(f"{url}/tokenize", body={"prompt": text}, cast_to=object)["tokens"]

        prompt, length = ids(context + continuation), len(ids(context))
        answer = client.completions.create(model="glm-nano", prompt=prompt, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234)
        lists = answer.choices[0].logprobs
        assert len(lists.token_logprobs) == len(prompt) + 1
        return sum(lists.token_logprobs[length:-1])

    assert score("The weather in Paris", " is") > score("The weather in Paris", " zq")
