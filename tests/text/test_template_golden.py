"""Our renderer against the official templates' output, character by character."""

import json

import pytest

from openglm.text.messages import Conversation, Message, Tool, ToolCall
from openglm.text.template import render


def _text(content):
    if isinstance(content, list):
        return "".join(p if isinstance(p, str) else p.get("text", "") for p in content)
    return content or ""


def neutral(case):
    """The neutral conversation of a golden case; null content is the empty string, as our translators make it."""
    messages = []
    for m in case["messages"]:
        calls = [c.get("function", c) for c in m.get("tool_calls") or ()]
        messages.append(
            Message(
                m["role"],
                _text(m["content"]),
                reasoning=m.get("reasoning_content"),
                tool_calls=tuple(ToolCall(c["name"], c["arguments"]) for c in calls),
            )
        )
    tools = tuple(Tool(t["function"]["name"], t["function"]["parameters"], t) for t in case.get("tools", ()))
    return Conversation(
        tuple(messages),
        tools,
        thinking=case.get("enable_thinking", True),
        keep_thinking=not case.get("clear_thinking", True),
    )


@pytest.mark.parametrize(
    ("style", "key"), [("glm-4.5", "glm45"), ("glm-4.5", "glm46_llamacpp"), ("glm-4.7", "glm47")]
)
def test_every_golden_case_is_reproduced(shared, style, key):
    cases = json.loads((shared / "golden/chat_template_cases.json").read_text())["cases"]
    for case in cases:
        expected = case["expected"][key].replace("<think></think>\nNone\n", "<think></think>\n")
        expected = expected.replace("</think>None<tool_call>", "</think><tool_call>")
        prompt = bool(case["input"].get("add_generation_prompt"))
        assert render(neutral(case["input"]), style, add_generation_prompt=prompt).text == expected, case["name"]
