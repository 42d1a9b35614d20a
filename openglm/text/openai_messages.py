"""OpenAI chat messages and tools to the neutral conversation, and a parsed turn back to an OpenAI message.

Strict about types: a wrong value is a `RequestError` that names its place (`messages[2].content`). Lenient where real clients
differ: unknown fields are ignored, null means absent, `developer` is `system` (the template would drop it silently), `function`
is `tool`, reasoning is read from `reasoning_content` or `reasoning`. Normalised before any template sees it: null content becomes
"", text parts become one string, arguments that are a JSON string become an object, no arguments become {}.

Refuses to own: HTTP limits on sizes and counts, wire ids, dialects other than chat completions.
"""

from __future__ import annotations

from typing import Final

from openglm.errors import RequestError
from openglm.text.messages import JSON, Conversation, Message, Role, Tool, ToolCall
from openglm.text.schema_types import to_json
from openglm.text.wire_checks import call_arguments, check_depth, optional_string, tool_name, wrong_type

ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def conversation_from_openai(messages: JSON, tools: JSON | None, *, thinking: bool = True, keep_thinking: bool = False) -> Conversation:
    """The conversation that the `messages` and `tools` of a request describe."""
    if not isinstance(messages, list):
        raise wrong_type("messages", "a list of messages", messages)
    if not messages:
        raise RequestError("messages: must hold at least one message", param="messages")
    return Conversation(
        tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages)),
        tools_from_openai(tools),
        thinking=thinking,
        keep_thinking=keep_thinking,
    )


def tools_from_openai(tools: JSON | None) -> tuple[Tool, ...]:
    """The tools of a request; each is kept whole for the template, which prints it as the client gave it."""
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise wrong_type("tools", "a list of tools", tools)
    parsed = tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools))
    seen: set[str] = set()
    for i, tool in enumerate(parsed):
        if tool.name in seen:
            where = f"tools[{i}].function.name"
            raise RequestError(f"{where}: the tool {tool.name} is defined twice; names must be unique", param=where)
        seen.add(tool.name)
    return parsed


def message_to_openai(message: Message) -> dict[str, JSON]:
    """The message in OpenAI form. Arguments are JSON text; a call without an id gets its position as one."""
    result: dict[str, JSON] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        result["reasoning_content"] = message.reasoning
    if message.tool_calls:
        result["content"] = message.content or None
        result["tool_calls"] = [
            {
                "id": call.id or f"call_{i}",
                "type": "function",
                "function": {"name": call.name, "arguments": to_json(call.arguments)},
            }
            for i, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    return result


def _message(message: JSON, where: str) -> Message:
    if not isinstance(message, dict):
        raise wrong_type(where, "an object", message)
    name = message.get("role")
    if not isinstance(name, str) or name not in ROLES:
        known = ", ".join(ROLES)
        raise RequestError(f"{where}.role: expected one of {known}", param=f"{where}.role")
    role = ROLES[name]
    content = _content(message.get("content"), f"{where}.content")
    if role == "assistant":
        return Message(role, content, reasoning=_reasoning(message, where), tool_calls=_tool_calls(message, where))
    if role == "tool":
        return Message(role, content, tool_call_id=optional_string(message, "tool_call_id", where))
    return Message(role, content)


def _content(content: JSON, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or a list of text parts", content)
    return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: JSON, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise wrong_type(where, "a text part", part)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        shown = kind[:40] if isinstance(kind, str) else type(kind).__name__
        raise RequestError(
            f'{where}.type: this model reads text only, so parts must be {{"type": "text", "text": ...}}; got {shown!r}',
            param=f"{where}.type",
        )
    field = TEXT_PARTS[kind]
    if not isinstance(part.get(field), str):
        raise wrong_type(f"{where}.{field}", "a string", part.get(field))
    text: str = part[field]
    return text


def _reasoning(message: dict[str, JSON], where: str) -> str | None:
    first = optional_string(message, "reasoning_content", where)
    second = optional_string(message, "reasoning", where)
    return first if first is not None else second


def _tool_calls(message: dict[str, JSON], where: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls")
    if calls is None and message.get("function_call") is not None:  # the form before tools existed
        return (_function(message["function_call"], f"{where}.function_call", id=""),)
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise wrong_type(f"{where}.tool_calls", "a list of calls", calls)
    return tuple(_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))


def _tool_call(call: JSON, where: str) -> ToolCall:
    if not isinstance(call, dict):
        raise wrong_type(where, "an object", call)
    if call.get("type") not in (None, "function"):
        raise RequestError(f'{where}.type: only "function" calls are supported', param=f"{where}.type")
    call_id = optional_string(call, "id", where) or ""
    if "function" in call:
        return _function(call["function"], f"{where}.function", id=call_id)
    return _function(call, where, id=call_id)


def _function(function: JSON, where: str, *, id: str) -> ToolCall:
    if not isinstance(function, dict):
        raise wrong_type(where, "an object", function)
    return ToolCall(tool_name(function, where), call_arguments(function.get("arguments"), f"{where}.arguments"), id=id)


def _tool(tool: JSON, where: str) -> Tool:
    if not isinstance(tool, dict):
        raise wrong_type(where, "an object", tool)
    if tool.get("type") != "function":
        raise RequestError(f'{where}.type: only "function" tools are supported', param=f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise wrong_type(f"{where}.function", "an object", function)
    check_depth(tool, where)
    optional_string(function, "description", f"{where}.function")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong_type(f"{where}.function.parameters", "a JSON schema object", parameters)
    return Tool(tool_name(function, f"{where}.function"), parameters or {}, tool)
