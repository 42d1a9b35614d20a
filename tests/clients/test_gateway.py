"""smg, SGLang's model gateway, in front of two servers: it finds them, reads their load, and every API works through it."""

import re
import socket
import subprocess
import threading

import anthropic
import httpx
import openai
import pytest

from .installed import programs
from .offline import environment
from .script import GREETING
from .scripted_server import NAME, ScriptedServer

pytestmark = pytest.mark.clients

START_S = 60.0
READ_FILE = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


class Gateway:
    """A running smg over these servers. `root` is its address."""

    def __init__(self, home, *servers) -> None:
        port, metrics_port = _free_port(), _free_port()
        self.root = f"http://127.0.0.1:{port}"
        home.mkdir()
        command = [
            *(str(programs("smg") / "smg"), "launch", "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--load-monitor-interval", "1"),
            *("--worker-urls", *(server.root for server in servers)),
        ]
        self.process = subprocess.Popen(
            command, cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.log: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(len(servers),))
        self._reader.start()
        if not self._ready.wait(START_S):
            self.close()
            raise AssertionError("the gateway did not accept the servers:\n" + "".join(self.log))

    def _read(self, wanted: int) -> None:
        activated = 0
        for line in self.process.stdout:
            self.log.append(line)
            activated += "Activated 1 of 1 worker" in line
            if activated == wanted:
                self._ready.set()

    def workers(self):
        return httpx.get(f"{self.root}/workers", timeout=30).json()["workers"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._reader.join()
        self.process.stdout.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def second(model_dir):
    running = ScriptedServer(model_dir, "--log-format", "json")
    yield running
    running.close()


@pytest.fixture
def gateway(server, second, tmp_path):
    running = Gateway(tmp_path / "home", server, second)
    yield running
    running.close()


def test_every_api_works_through_the_gateway(gateway, server, second, task):
    client = openai.OpenAI(base_url=f"{gateway.root}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [NAME]

    tool = {"type": "function", "function": {"name": "read_file", "parameters": READ_FILE}}
    messages = [{"role": "user", "content": task.prompt}]
    with client.chat.completions.stream(model=NAME, messages=messages, tools=[tool]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.reasoning_content == "Let me look."
    (call,) = message.tool_calls
    assert call.function.arguments == f'{{"path": "{task.file}"}}'
    messages += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": task.file.read_text()}]
    answer = client.chat.completions.create(model=NAME, messages=messages, tools=[tool])
    assert answer.choices[0].message.content == task.answer

    events = list(client.responses.create(model=NAME, input=task.prompt, tools=[{**tool["function"], "type": "function"}], stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message", "function_call"]

    claude = anthropic.Anthropic(base_url=gateway.root, auth_token="none", max_retries=0)
    with claude.messages.stream(
        model=NAME,
        max_tokens=2000,
        messages=[{"role": "user", "content": task.prompt}],
        tools=[{"name": "read_file", "input_schema": READ_FILE}],
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        reply = stream.get_final_message()
    assert [block.type for block in reply.content] == ["thinking", "text", "tool_use"]
    assert reply.content[-1].input == {"path": str(task.file)} and reply.stop_reason == "tool_use"

    greeting = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "Hello"}], extra_body={"thinking": {"type": "disabled"}}
    )
    assert greeting.choices[0].message.content == GREETING
    assert greeting.usage.completion_tokens_details.reasoning_tokens == 0  # the field that is not OpenAI's went through

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=NAME, messages=messages, temperature=99)
    assert refused.value.type == "invalid_request_error"

    for each in (server, second):
        assert any(re.search(r'"POST /v1/', line) for line in each.log), "one of the two was never asked"


def test_the_gateway_reads_the_load_and_survives_the_end_of_a_server(gateway, server, second):
    for worker in gateway.workers():
        assert (worker["model_id"], worker["is_healthy"], worker["models"][0]["context_length"]) == (NAME, True, 131_072)
    client = openai.OpenAI(base_url=f"{gateway.root}/v1", api_key="none", max_retries=0)
    ask = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}
    loads = []
    while len(loads) < 2:  # it looks once a second
        client.chat.completions.create(**ask)
        loads = [worker["engine_load"]["loads"][0] for worker in gateway.workers() if "engine_load" in worker]
    assert all(load["max_total_num_tokens"] == 262_144 and load["max_running_requests"] == 4 for load in loads)
    second.process.terminate()
    second.process.wait(60)
    for _ in range(6):
        assert client.chat.completions.create(**ask).choices[0].message.content == GREETING
