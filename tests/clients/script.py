"""What the scripted model says: a function of its prompt, like any model's answer.

A user who writes `read the file "PATH"` sets a task. While no tool result follows, the reply is a thought and a call of whichever tool of
the prompt can read a file, with PATH where that tool's schema wants it. Once a result is there, the reply is what the file said after
`codeword:`; the model cannot know the word from anywhere else. Whoever asks to `say the word "X"` gets X. All else is greeted.
Prompts that are no conversation, and answers whose form a grammar decides, are left to the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from openglm.text.schema_types import to_json
from openglm.text.tokenizer import Tokenizer

GREETING = "Hello from the scripted model."
TASK = re.compile(r'read the file \\?"([^"\\]+)')  # an agent may quote its user
WORD = re.compile(r'say the word "([^"]+)"')
CODEWORD = re.compile(r"codeword: (\w+)")

_MARKERS = {"<|system|>": "system", "<|user|>": "user", "<|assistant|>": "assistant", "<|observation|>": "tool"}
_READERS = ("read", "readfile", "readfiles", "view", "viewfile")
_PATHS = ("filepath", "path", "absolutepath", "file", "files", "filename", "paths")
_SHELLS = ("bash", "shell", "execcommand", "shellcommand", "runcommands", "executecommand", "exec")
_COMMANDS = ("cmd", "command", "commands")


class Turn(NamedTuple):
    """One turn of a prompt as the model sees it."""

    role: str
    text: str


def turns_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[Turn]:
    """The turns of a prompt, told apart by control tokens, so that text which looks like one divides nothing. Empty for a raw prompt."""
    names = {tokenizer.added_tokens[marker]: role for marker, role in _MARKERS.items()}
    starts = [i for i, token in enumerate(ids) if token in names]
    return [Turn(names[ids[a]], tokenizer.decode(ids[a + 1 : b])) for a, b in pairwise([*starts, len(ids)])]


def reply(turns: Sequence[Turn]) -> str | None:
    """The whole turn of the model, its closing marker included; None where the weights decide."""
    if not turns or turns[-1].role != "assistant":
        return None
    opening = "" if "</think>" in turns[-1].text else "\n<think>Let me look.</think>\n"
    asked = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
    tasks = [path for turn in turns if turn.role == "user" for path in TASK.findall(turn.text)]
    if not tasks:
        words = WORD.findall(turns[asked].text)
        return f"{opening}{words[-1] if words else GREETING}<|user|>"
    tools = tools_of(turns)
    results = [turn.text for turn in turns[asked:] if turn.role == "tool"]
    if not results:
        if not tools:
            return f"{opening}There is no tool to read it with.<|user|>"
        return f"{opening}I read the file.{call_text(*reading_call(tools, tasks[-1]))}<|observation|>"
    words = CODEWORD.findall(results[-1])
    answer = f"The codeword is {words[-1]} 🙂." if words else f"The tool gave no codeword but this: {results[-1][:400]}"
    return f"{opening}{answer}<|user|>"


def tools_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The function definitions in the prompt's first system turn."""
    lines = turns[0].text.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    definitions = [json.loads(line) for line in lines]
    return [definition.get("function", definition) for definition in definitions]


def reading_call(tools: Sequence[dict[str, Any]], path: str) -> tuple[str, dict[str, Any]]:
    """The name and arguments of a call that reads `path`; a tool made for it is preferred to a shell."""
    for names, parameters, value in ((_READERS, _PATHS, path), (_SHELLS, _COMMANDS, f"cat '{path}'")):
        for tool in tools:
            properties = (tool.get("parameters") or {}).get("properties") or {}
            fitting = [name for name in properties if _plain(name) in parameters]
            if _plain(tool["name"]) in names and fitting:
                return tool["name"], {fitting[0]: _shaped(properties[fitting[0]], value)}
    raise AssertionError(f"no tool of these reads a file: {[tool['name'] for tool in tools]}")


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as the model writes it."""
    pairs = (
        f"<arg_key>{key}</arg_key>\n<arg_value>{value if isinstance(value, str) else to_json(value)}</arg_value>\n"
        for key, value in arguments.items()
    )
    return f"\n<tool_call>{name}\n{''.join(pairs)}</tool_call>"


def _shaped(schema: dict[str, Any], value: str) -> Any:
    """`value` in the form that the parameter's schema wants: as it is, in a list, or in an object in a list."""
    if schema.get("type") != "array":
        return value
    fields = (schema.get("items") or {}).get("properties") or {}
    key = next((name for name in fields if _plain(name) in (*_PATHS, *_COMMANDS)), None)
    return [value if key is None else {key: value}]


def _plain(name: str) -> str:
    """A name without its spelling: read_file, readFile and functions.read-file are one."""
    return re.sub(r"[^a-z]", "", name.rpartition(".")[2].lower())
