"""`glm render` and `glm parse` as a person uses them: exact output, and one clear line when something is wrong."""

import io
import json
import subprocess
import sys

import pytest

from openglm.cli.main import main
from openglm.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "Hi <think> 天"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}},
    }
]


@pytest.fixture
def glm_command(capsysbinary, monkeypatch):
    """Runs a verb; returns (exit code, standard output, standard error)."""

    def run(*arguments, given=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        try:
            main(list(map(str, arguments)))
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


@pytest.fixture
def write(tmp_path):
    def make(name, document):
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return make


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("glm-4.5", [], "[gMASK]<sop><|user|>\nHi <think> 天<|assistant|>"),
        ("zai-org/GLM-4.6", [], "[gMASK]<sop><|user|>\nHi <think> 天<|assistant|>"),
        ("glm-4.5-air", ["--no-thinking"], "[gMASK]<sop><|user|>\nHi <think> 天/nothink<|assistant|>\n<think></think>"),
        ("glm-4.7", [], "[gMASK]<sop><|user|>Hi <think> 天<|assistant|><think>"),
        ("glm-4.7", ["--no-thinking"], "[gMASK]<sop><|user|>Hi <think> 天<|assistant|></think>"),
    ],
)
def test_render_prints_the_exact_prompt(glm_command, write, model, options, expected):
    assert glm_command("render", write("chat.json", CHAT), "--model", model, *options) == (0, expected, "")


def test_render_takes_a_whole_request(glm_command, write):
    request = {
        "messages": [*CHAT, {"role": "assistant", "content": "x", "reasoning_content": "r"}, *CHAT],
        "tools": TOOLS,
        "chat_template_kwargs": {"enable_thinking": False, "clear_thinking": False},
    }
    code, out, _ = glm_command("render", write("request.json", request), "--model", "glm-4.7")
    assert code == 0
    assert json.dumps(TOOLS[0]) in out
    assert out.endswith("</think>")
    assert "<think>r</think>x" in out
    code, out, _ = glm_command("render", write("r.json", {"messages": CHAT, "add_generation_prompt": False}), "--model", "glm-4.5")
    assert out.endswith("天")


def test_render_takes_tools_from_a_file(glm_command, write):
    code, out, _ = glm_command("render", write("chat.json", CHAT), "--tools", write("tools.json", TOOLS), "--model", "glm-4.5")
    assert code == 0
    assert out.count(json.dumps(TOOLS[0])) == 1


def test_render_with_a_model_directory_prints_ids_and_uses_its_template(glm_command, write, tmp_path, small_definition, small):
    write("tokenizer.json", small_definition)
    chat = write("chat.json", CHAT)
    code, out, _ = glm_command("render", chat, "--model", tmp_path, "--ids")
    ids = json.loads(out)
    assert code == 0
    assert Tokenizer(small_definition).decode(ids) == "[gMASK]<sop><|user|>\nHi <think> 天<|assistant|>"
    assert small.think not in ids
    write("chat_template.jinja", "own:{{ messages[0].content }}")
    assert glm_command("render", chat, "--model", tmp_path) == (0, "own:Hi <think> 天", "")


@pytest.mark.parametrize(
    ("name", "document", "options", "message"),
    [
        ("missing.json", None, [], "missing.json: cannot be read: No such file"),
        ("chat.json", "{", [], "chat.json: not valid JSON"),
        ("chat.json", "[" * 100_000, [], "chat.json: not"),
        ("chat.json", [{"role": "robot"}], [], "chat.json: messages[0].role: expected one of"),
        ("chat.json", [], [], "messages: must hold at least one"),
        ("chat.json", 3, [], "messages: expected a list"),
        ("chat.json", {"messages": CHAT, "enable_thinking": "no"}, [], "enable_thinking: expected true or false"),
        ("chat.json", {"messages": CHAT, "chat_template_kwargs": 1}, [], "chat_template_kwargs: expected an object"),
        ("chat.json", CHAT, ["--ids"], "--ids needs a tokenizer"),
        ("chat.json", CHAT, ["--model", "gpt-5"], "no directory and no known name"),
    ],
)
def test_render_says_in_one_line_what_is_wrong(glm_command, write, tmp_path, name, document, options, message):
    path = tmp_path / name if document is None else write(name, document)
    code, out, err = glm_command("render", path, "--model", "glm-4.5", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_render_names_the_tools_file(glm_command, write):
    chat, tools = write("chat.json", CHAT), write("tools.json", [{"type": "x"}])
    code, _, err = glm_command("render", chat, "--tools", tools, "--model", "glm-4.5")
    assert code == 2
    assert "tools.json: tools[0].type" in err


REPLY = "\n<think>so</think>\nSum: <tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"  # noqa: E501


@pytest.mark.parametrize(("tools", "arguments"), [(True, {"a": "1", "b": 2}), (False, {"a": 1, "b": 2})])
def test_parse_prints_the_message(glm_command, write, tools, arguments):
    options = ["--tools", write("tools.json", TOOLS)] if tools else []
    code, out, err = glm_command("parse", *options, given=REPLY.encode())
    message = json.loads(out)
    call = message["tool_calls"][0]
    assert (code, err) == (0, "")
    assert (message["role"], message["content"], message["reasoning_content"]) == ("assistant", "Sum:", "so")
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("add", arguments)


def test_parse_starts_where_it_is_told(glm_command):
    assert json.loads(glm_command("parse", "--start", "reasoning", given=b"a</think>b")[1])["reasoning_content"] == "a"
    assert json.loads(glm_command("parse", "--start", "content", given="<think>天".encode())[1])["content"] == "<think>天"
    assert json.loads(glm_command("parse", given=b"\xff")[1])["content"] == "\ufffd"
    assert json.loads(glm_command("parse")[1]) == {"role": "assistant", "content": ""}


def test_parse_says_in_one_line_what_is_wrong(glm_command, write):
    code, _, err = glm_command("parse", "--tools", write("tools.json", {"a": 1}))
    assert code == 2
    assert "tools.json: tools: expected a list of tools" in err
    code, _, err = glm_command("parse", "--start", "nowhere")
    assert code == 2
    assert "Traceback" not in err


def test_the_verbs_load_no_torch():
    program = "import sys; from openglm.cli import render, parse; import openglm.text.turn_parser, openglm.text.checkpoint_template; "
    program += "raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
