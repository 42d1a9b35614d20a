"""Items and tools of OpenAI's Responses API to the neutral conversation.

A turn of the model arrives in pieces: reasoning, then a message, then calls, each an item of its own. They are put together again,
so that a history sent back reads as the model wrote it. Tools inside a namespace get one name, `namespace.tool`, which `split_name`
takes apart for the answer. Items and tools that belong to OpenAI's own servers are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from openglm.errors import RequestError
from openglm.text.messages import JSON, Message, Role, Tool, ToolCall
from openglm.text.wire_checks import call_arguments, check_depth, optional_string, tool_name, wrong_type

_ROLES: Final[dict[str, Role]] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS: Final = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}
_HOSTED_CALLS: Final = ("_call", "_call_output", "_list_tools", "_approval_request", "_approval_response")
_OTHER_IGNORED: Final = frozenset({"compaction", "compaction_summary", "tool_search_output", "additional_tools"})


@dataclass(frozen=True)
class OfferedTools:
    """The tools of a request. `names` takes those apart that stand in a namespace; `dropped` are types that were left out."""

    tools: tuple[Tool, ...] = ()
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def split_name(self, name: str) -> tuple[str | None, str]:
        """(namespace, name) of a called tool."""
        return self.names.get(name, (None, name))


def tools_from_responses(tools: JSON) -> OfferedTools:
    """The tools of a request. Raises `RequestError` naming the place."""
    if tools is None:
        return OfferedTools()
    if not isinstance(tools, list):
        raise wrong_type("tools", "a list of tools", tools)
    kept: dict[str, Tool] = {}
    names: dict[str, tuple[str, str]] = {}
    dropped: list[str] = []

    def keep(tool: dict[str, JSON], where: str, namespace: str | None) -> None:
        made = _function_tool(tool, where, namespace)
        if made.name in kept:
            raise RequestError(f"{where}.name: this tool is defined twice; names must be unique", param=f"{where}.name")
        kept[made.name] = made
        if namespace is not None:
            names[made.name] = (namespace, made.name.removeprefix(f"{namespace}."))

    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not isinstance(tool, dict):
            raise wrong_type(where, "an object", tool)
        kind = optional_string(tool, "type", where)
        if kind == "function":
            keep(tool, where, None)
        elif kind == "namespace":
            namespace, inner = tool_name(tool, where), tool.get("tools")
            if not isinstance(inner, list):
                raise wrong_type(f"{where}.tools", "a list of tools", inner)
            for j, nested in enumerate(inner):
                at = f"{where}.tools[{j}]"
                if not isinstance(nested, dict):
                    raise wrong_type(at, "an object", nested)
                if nested.get("type") == "function":
                    keep(nested, at, namespace)
                else:
                    dropped.append("nested")
        else:
            dropped.append(kind or "")
    return OfferedTools(tuple(kept.values()), names, tuple(dropped))


def _function_tool(tool: dict[str, JSON], where: str, namespace: str | None) -> Tool:
    check_depth(tool, where)
    inner = tool.get("function")
    source = inner if isinstance(inner, dict) else tool  # the nested form of chat completions is understood too
    name, description = tool_name(source, where), optional_string(source, "description", where)
    if namespace is not None:
        name = f"{namespace}.{name}"
    schema = source.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise wrong_type(f"{where}.parameters", "a JSON schema object", schema)
    function: dict[str, JSON] = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = schema or {}
    if source.get("strict") is True:
        function["strict"] = True
    return Tool(name, schema or {}, {"type": "function", "function": function})


def messages_from_items(items: JSON, recall_item: Callable[[str], JSON | None] = lambda item_id: None) -> tuple[Message, ...]:
    """The turns that `input` of a request describes. `recall_item` knows items that are only referred to. Raises `RequestError` naming
    the place."""
    if isinstance(items, str):
        return (Message("user", items),)
    if not isinstance(items, list):
        raise wrong_type("input", "a text or a list of items", items)
    reader = _ItemReader()
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise wrong_type(f"input[{i}]", "an object", item)
        where = f"input[{i}]"
        reader.read(_recalled(item, where, recall_item) if item.get("type") == "item_reference" else item, where)
    return tuple(reader.finish())


def _recalled(reference: dict[str, JSON], where: str, recall_item: Callable[[str], JSON | None]) -> dict[str, JSON]:
    item: dict[str, JSON] | None = recall_item(optional_string(reference, "id", where) or "")
    if item is None:
        raise RequestError(f"{where}: no item with this id is known here; send the item itself", param=where, code="item_not_found")
    return item


class _ItemReader:
    """Puts the pieces of the model's turns together."""

    def __init__(self) -> None:
        self._turns: list[Message] = []
        self._reasoning = ""
        self._content = ""
        self._calls: list[ToolCall] = []
        self._any = False

    def read(self, item: dict[str, JSON], where: str) -> None:
        """One item."""
        kind = optional_string(item, "type", where)
        match kind:
            case None | "message":
                self._message(item, where)
            case "reasoning":
                if self._content or self._calls:
                    self._end_turn()
                text = _parts(item.get("content"), f"{where}.content") or _parts(item.get("summary"), f"{where}.summary")
                self._reasoning += text
                self._any = True
            case "function_call":
                name = tool_name(item, where)
                namespace = optional_string(item, "namespace", where)
                arguments = call_arguments(item.get("arguments"), f"{where}.arguments")
                self._call(f"{namespace}.{name}" if namespace else name, arguments, item, where)
            case "custom_tool_call":
                self._call(tool_name(item, where), {"input": optional_string(item, "input", where) or ""}, item, where)
            case "function_call_output" | "custom_tool_call_output":
                self._end_turn()
                text = _parts(item.get("output"), f"{where}.output")
                self._turns.append(Message("tool", text, tool_call_id=optional_string(item, "call_id", where)))
            case _:
                if not kind.endswith(_HOSTED_CALLS) and kind not in _OTHER_IGNORED:
                    raise RequestError(f"{where}.type: no such item type", param=f"{where}.type")

    def finish(self) -> list[Message]:
        """All turns."""
        self._end_turn()
        return self._turns

    def _message(self, item: dict[str, JSON], where: str) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{where}.role: expected one of {', '.join(_ROLES)}", param=f"{where}.role")
        text = _parts(item.get("content"), f"{where}.content")
        if role != "assistant":
            self._end_turn()
            self._turns.append(Message(_ROLES[role], text))
            return
        if self._content or self._calls:
            self._end_turn()
        self._content, self._any = text, True

    def _call(self, name: str, arguments: dict[str, JSON], item: dict[str, JSON], where: str) -> None:
        self._calls.append(ToolCall(name, arguments, id=optional_string(item, "call_id", where) or ""))
        self._any = True

    def _end_turn(self) -> None:
        if self._any:
            self._turns.append(Message("assistant", self._content, self._reasoning or None, tuple(self._calls)))
        self._reasoning, self._content, self._calls, self._any = "", "", [], False


def _parts(content: JSON, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise wrong_type(where, "a text or a list of text parts", content)
    return "".join([_part(part, f"{where}[{i}]") for i, part in enumerate(content)])


def _part(part: JSON, where: str) -> str:
    if not isinstance(part, dict):
        raise wrong_type(where, "a text part", part)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise RequestError(f"{where}.type: this model reads text only; a part of this type cannot stand here", param=f"{where}.type")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise wrong_type(f"{where}.{_TEXT_PARTS[kind]}", "a string", text)
    return text
