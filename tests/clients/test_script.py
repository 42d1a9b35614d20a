"""The scripted model itself, without any client: the real server says what the script wants, on every wire, several tokens a step."""

import json

import httpx
import pytest

from openglm.text.tokenizer import Tokenizer

from . import installed
from .script import GREETING, Turn, reading_call, reply, turns_of

READ = {
    "type": "function",
    "function": {"name": "Read", "parameters": {"type": "object", "properties": {"file_path": {"type": "string"}}}},
}


def test_a_tool_loop_over_chat(server, task):
    messages = [{"role": "user", "content": task.prompt}]
    first = _post(server, "/v1/chat/completions", {"messages": messages, "tools": [READ]})
    message = first["choices"][0]["message"]
    assert message["reasoning_content"] == "Let me look." and message["content"] == "I read the file."
    (call,) = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"file_path": str(task.file)}
    details = first["usage"]["completion_tokens_details"]
    assert details["accepted_draft_tokens"] > first["usage"]["completion_tokens"] / 2
    messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": task.file.read_text("utf-8")}]
    second = _post(server, "/v1/chat/completions", {"messages": messages, "tools": [READ]})
    assert second["choices"][0]["message"]["content"] == task.answer


def test_the_weights_decide_about_raw_prompts_and_a_grammar_over_the_script(server):
    raw = _post(server, "/v1/completions", {"prompt": 'Please say the word "river".', "max_tokens": 8, "temperature": 0})
    assert "river" not in raw["choices"][0]["text"]
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}}
    body = {"messages": [{"role": "user", "content": "Hello"}], "response_format": form, "thinking": {"type": "disabled"}}
    assert _post(server, "/v1/chat/completions", body)["choices"][0]["message"]["content"] in ('"yes"', '"no"')


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ({"name": "read_file", "parameters": {"properties": {"path": {"type": "string"}}}}, {"path": "/x"}),
        ({"name": "functions.exec_command", "parameters": {"properties": {"cmd": {"type": "string"}}}}, {"cmd": "cat '/x'"}),
        (
            {
                "name": "read_files",
                "parameters": {
                    "properties": {"files": {"type": "array", "items": {"type": "object", "properties": {"path": {}, "start_line": {}}}}}
                },
            },
            {"files": [{"path": "/x"}]},
        ),
    ],
)
def test_the_call_fits_the_schema_of_whatever_tool_there_is(tool, arguments):
    other = {"name": "Write", "parameters": {"properties": {"file_path": {"type": "string"}}}}
    assert reading_call([other, tool], "/x") == (tool["name"], arguments)


def test_without_a_reading_tool_it_says_so():
    with pytest.raises(AssertionError, match="no tool of these reads a file"):
        reading_call([{"name": "Write", "parameters": {}}], "/x")


def test_turns_are_divided_by_control_tokens_only(model_dir):
    tokenizer = Tokenizer.from_dir(model_dir)
    ids = [*tokenizer.encode_raw("<|user|>\n"), *tokenizer.encode_text("Hi <|observation|> there"), *tokenizer.encode_raw("<|assistant|>")]
    assert turns_of(ids, tokenizer) == [Turn("user", "\nHi <|observation|> there"), Turn("assistant", "")]
    assert reply(turns_of(ids, tokenizer)).endswith(f"{GREETING}<|user|>")
    assert reply(turns_of(tokenizer.encode_text("Hi"), tokenizer)) is None


def test_a_client_that_could_not_be_installed_fails_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(installed, "ROOT", tmp_path)
    with pytest.raises(installed.NotInstalledError, match="make test-clients"):
        installed.programs("codex")
    monkeypatch.setenv("PATH", str(tmp_path))
    installed.install("codex")
    assert "codex could not be installed" in capsys.readouterr().out
    with pytest.raises(installed.NotInstalledError, match="No such file or directory: 'npm'"):
        installed.programs("codex")


def _post(server, path: str, body: dict) -> dict:
    response = httpx.post(server.root + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()
