"""Anthropic's system text, messages and tools to the neutral conversation.

Content comes as blocks. `thinking` becomes reasoning, `tool_use` a call, `tool_result` a tool turn of its own, in the order
given; text that follows results in the same message is the user's next turn. A message of role `system` stays where it is: moving it
to the front would change the beginning of the prompt, and with it what is cached. The block that Claude Code puts before everything
(`x-anthropic-billing-header`, which may differ in every request) is left out for the same reason.

Dropped, because nothing here can act on them: redacted thinking, server tools with what they returned, changes of the tool list,
cache marks. Refused: images and documents of a user, since this model reads text only. One inside a tool result is replaced by a note
that says so: the client cannot take the result back, so an error would end the conversation for good.
"""

from __future__ import annotations

from typing import Final

from openglm.errors import RequestError
from openglm.text.messages import JSON, Conversation, Message, Tool, ToolCall
from openglm.text.wire_checks import call_arguments, check_depth, optional_string, tool_name, wrong_type

_BILLING: Final = "x-anthropic-billing-header"
_DROPPED: Final = frozenset({"redacted_thinking", "tool_addition", "tool_removal", "mid_conv_system", "container_upload", "fallback"})
_SERVER_TOOL: Final = ("server_tool_use", "_tool_result")
_UNREADABLE: Final = "[{} left out: this model reads text only]"


def conversation_from_anthropic(
    system: JSON, messages: JSON, tools: tuple[Tool, ...], *, thinking: bool, keep_thinking: bool = False
) -> Conversation:
    """The conversation that `system` and `messages` of a request describe. Raises `RequestError` naming the place."""
    if not isinstance(messages, list):
        raise wrong_type("messages", "a list of messages", messages)
    if not messages:
        raise RequestError("messages: must hold at least one message", param="messages")
    first = _system_text(system, "system")
    turns = [Message("system", first)] if first else []
    for i, message in enumerate(messages):
        turns += _turns(message, f"messages[{i}]")
    if not turns:
        raise RequestError("messages: there is no text in them", param="messages")
    return Conversation(tuple(turns), tools, thinking=thinking, keep_thinking=keep_thinking)


def tools_from_anthropic(tools: JSON) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools of a request, in the form that the model was trained on, and the types of those that only Anthropic's own servers
    can run, which are left out."""
    if tools is None:
        return (), ()
    if not isinstance(tools, list):
        raise wrong_type("tools", "a list of tools", tools)
    kept: dict[str, Tool] = {}
    dropped: list[str] = []
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not isinstance(tool, dict):
            raise wrong_type(where, "an object", tool)
        kind = optional_string(tool, "type", where)
        if kind not in (None, "custom") and tool.get("input_schema") is None:
            dropped.append(kind or "")
            continue
        made = _tool(tool, where)
        if made.name in kept:
            raise RequestError(f"{where}.name: this tool is defined twice; names must be unique", param=f"{where}.name")
        kept[made.name] = made
    return tuple(kept.values()), tuple(dropped)


def _tool(tool: dict[str, JSON], where: str) -> Tool:
    check_depth(tool, where)
    name, description = tool_name(tool, where), optional_string(tool, "description", where)
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise wrong_type(f"{where}.input_schema", "a JSON schema object", schema)
    function: dict[str, JSON] = {"name": name, "description": description, "parameters": schema}
    if description is None:
        del function["description"]
    if tool.get("strict") is True:
        function["strict"] = True
    return Tool(name, schema, {"type": "function", "function": function})


def _turns(message: JSON, where: str) -> list[Message]:
    if not isinstance(message, dict):
        raise wrong_type(where, "an object", message)
    content, inner = message.get("content"), f"{where}.content"
    match message.get("role"):
        case "user":
            return _user_turns(content, inner)
        case "assistant":
            return [_assistant_turn(content, inner)]
        case "system":
            text = _system_text(content, inner)
            return [Message("system", text)] if text else []
    raise RequestError(f"{where}.role: expected one of user, assistant, system", param=f"{where}.role")


def _system_text(value: JSON, where: str) -> str:
    blocks = [value] if isinstance(value, str) else [_text(block, at) for block, at in _blocks(value, where)]
    return "\n\n".join([kept for text in blocks if (kept := _without_billing(text))])


def _without_billing(text: str) -> str:
    return text.partition("\n")[2].lstrip("\n") if text.startswith(_BILLING) else text


def _user_turns(content: JSON, where: str) -> list[Message]:
    if isinstance(content, str):
        return [Message("user", content)]
    turns: list[Message] = []
    texts: list[str] = []
    for block, at in _blocks(content, where):
        if not isinstance(block, str) and block.get("type") == "tool_result":
            if texts:
                turns.append(Message("user", "\n".join(texts)))
                texts = []
            turns.append(_tool_result(block, at))
        elif not _is_dropped(block):
            texts.append(_text(block, at))
    if texts:
        turns.append(Message("user", "\n".join(texts)))
    return turns


def _tool_result(block: dict[str, JSON], where: str) -> Message:
    content, inner = block.get("content"), f"{where}.content"
    if content is None or isinstance(content, str):
        text = content or ""
    else:
        text = "\n".join([_result_text(part, at) for part, at in _blocks(content, inner)])
    if block.get("is_error") is True:
        text = f"Error: {text}"
    return Message("tool", text, tool_call_id=optional_string(block, "tool_use_id", where))


def _result_text(part: str | dict[str, JSON], where: str) -> str:
    if isinstance(part, dict):
        match part.get("type"):
            case "image":
                return _UNREADABLE.format("image")
            case "document" if not _is_text_document(part):
                return _UNREADABLE.format("document")
            case "tool_reference":
                return f"Tool loaded: {optional_string(part, 'tool_name', where) or ''}"
            case "search_result":
                parts = [_text(inner, at) for inner, at in _blocks(part.get("content"), f"{where}.content")]
                return "\n".join([optional_string(part, "title", where) or "", optional_string(part, "source", where) or "", *parts])
    return _text(part, where)


def _assistant_turn(content: JSON, where: str) -> Message:
    if isinstance(content, str):
        return Message("assistant", content)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block, at in _blocks(content, where):
        kind = "text" if isinstance(block, str) else block.get("type")
        if isinstance(block, str) or kind == "text":
            texts.append(_text(block, at))
        elif kind == "thinking":
            thoughts.append(optional_string(block, "thinking", at) or "")
        elif kind == "tool_use":
            call_id = optional_string(block, "id", at) or ""
            calls.append(ToolCall(tool_name(block, at), call_arguments(block.get("input"), f"{at}.input"), id=call_id))
        elif not _is_dropped(block):
            _text(block, at)  # raises: nothing else can stand here
    return Message("assistant", "".join(texts), reasoning="".join(thoughts) or None, tool_calls=tuple(calls))


def _blocks(content: JSON, where: str) -> list[tuple[str | dict[str, JSON], str]]:
    """Blocks, each with its place. A bare string counts as a text block."""
    if content is None:
        return []
    if not isinstance(content, list):
        raise wrong_type(where, "a string or a list of blocks", content)
    for i, block in enumerate(content):
        if not isinstance(block, str | dict):
            raise wrong_type(f"{where}[{i}]", "a block", block)
    return [(block, f"{where}[{i}]") for i, block in enumerate(content)]


def _text(block: str | dict[str, JSON], where: str) -> str:
    if isinstance(block, str):
        return block
    if block.get("type") == "document" and _is_text_document(block):
        text: str = block["source"]["data"]
        return text
    if block.get("type") != "text":
        raise RequestError(f"{where}.type: this model reads text only; a block of this type cannot stand here", param=f"{where}.type")
    if not isinstance(block.get("text"), str):
        raise wrong_type(f"{where}.text", "a string", block.get("text"))
    return str(block["text"])


def _is_text_document(block: dict[str, JSON]) -> bool:
    source = block.get("source")
    return isinstance(source, dict) and source.get("type") == "text" and isinstance(source.get("data"), str)


def _is_dropped(block: str | dict[str, JSON]) -> bool:
    if isinstance(block, str):
        return False
    kind = block.get("type")
    if not isinstance(kind, str) or kind == "tool_result":
        return False
    return kind in _DROPPED or kind == _SERVER_TOOL[0] or kind.endswith(_SERVER_TOOL[1])
