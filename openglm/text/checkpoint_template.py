"""Which chat template a model directory uses: one of our two styles, or the checkpoint's own jinja file.

The own file (`chat_template.jinja`, or `chat_template` in `tokenizer_config.json`) always wins. It is rendered on probe
conversations first: where it agrees with one of our styles, ours is used from then on, which needs no jinja. Every
published GLM-4.5, 4.6 and 4.7 template agrees. Any other template is rendered as it is, in a sandboxed child process.

Such a template returns one string, so what the template wrote must be told from what users wrote. Before rendering, each place
in user, tool and model text that spells an added token (and each text end that begins one) gets a private-use
character put inside, one that occurs nowhere else in the conversation. In the output, added tokens that are still whole were
written by the template: they become control segments. Then the marks are taken out. Texts without such places, nearly
all, reach the template untouched. Two things that templates do by looking for tokens are done beforehand: reasoning inside
the content is moved to `reasoning_content`, and a `/nothink` that ends a user text is left to a template that adds it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Protocol, get_args

from openglm.errors import CheckpointError, TemplateError
from openglm.text.added_tokens import ADDED_TOKENS
from openglm.text.messages import JSON, Conversation, Message, Tool, ToolCall
from openglm.text.template import Rendered, Segment, StartState, TemplateStyle, render, split_reasoning
from openglm.text.template_process import MAX_SOURCE, TemplateProcess

_logger: Final = logging.getLogger(__name__)
_NOTHINK: Final = "/nothink"
_PRIVATE_USE: Final = range(0xF0000, 0xFFFFE)


class ChatTemplate(Protocol):
    """Renders conversations. `description` says where the template comes from, for logs."""

    @property
    def description(self) -> str: ...  # noqa: D102

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> Rendered: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class BuiltinTemplate:
    """One of our own styles."""

    def __init__(self, style: TemplateStyle, *, description: str | None = None) -> None:
        self.style: Final = style
        self._description = description or f"built-in {style}"

    @property
    def description(self) -> str:
        """Where the template comes from."""
        return self._description

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> Rendered:
        """The prompt for a conversation."""
        return render(conversation, self.style, add_generation_prompt=add_generation_prompt)

    def close(self) -> None:
        """Nothing to end."""


class JinjaTemplate:
    """A checkpoint's own template, in its child process. `added_tokens` are those of the checkpoint's tokenizer."""

    def __init__(
        self,
        source: str,
        *,
        origin: str = "chat_template.jinja",
        added_tokens: Collection[str] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """`timeout_s` bounds one rendering."""
        tokens = sorted(added_tokens or (token for token, _ in ADDED_TOKENS), key=len, reverse=True)
        self._tokens = tokens
        self._token = re.compile("|".join(map(re.escape, tokens)))
        self._token_ahead = re.compile(f"(?=({self._token.pattern}))")
        self._description = f"the checkpoint's {origin}"
        self._process = TemplateProcess(source, origin=origin, timeout_s=timeout_s)
        self._adds_nothink = False
        self._adds_nothink = self._probe_nothink()

    @property
    def description(self) -> str:
        """Where the template comes from."""
        return self._description

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> Rendered:
        """The prompt for a conversation; a `TemplateError` where the template refuses it."""
        written = self._written_by_others(conversation)
        mark = _unused_character(written)
        variables: dict[str, JSON] = {
            **self._marked(written, mark),
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": conversation.thinking,
        }
        if conversation.keep_thinking:
            variables["clear_thinking"] = False
        text = self._process.render(variables)
        segments = self._segments(text, mark)
        return Rendered(segments, _start_state(segments) if add_generation_prompt else "undecided")

    def close(self) -> None:
        """End the child process."""
        self._process.close()

    def _probe_nothink(self) -> bool:
        try:
            text = self.render(Conversation((Message("user", "hello"),), thinking=False)).text
        except TemplateError:
            return False
        return f"hello{_NOTHINK}" in text

    def _written_by_others(self, conversation: Conversation) -> dict[str, JSON]:
        drop_nothink = self._adds_nothink and not conversation.thinking
        variables: dict[str, JSON] = {"messages": [_message(message, drop_nothink) for message in conversation.messages]}
        if conversation.tools:
            variables["tools"] = [tool.definition for tool in conversation.tools]
        return variables

    def _marked(self, value: JSON, mark: str) -> JSON:
        if isinstance(value, str):
            return self._marked_text(value, mark)
        if isinstance(value, list):
            return [self._marked(item, mark) for item in value]
        if isinstance(value, dict):
            return {self._marked_text(key, mark): self._marked(item, mark) for key, item in value.items()}
        return value

    def _marked_text(self, text: str, mark: str) -> str:
        pieces: list[str] = []
        start = 0
        for match in self._token_ahead.finditer(text):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        text = mark.join([*pieces, text[start:]])
        longest = max(map(len, self._tokens))
        begins_token = any(token.startswith(text[-length:]) for length in range(1, min(longest, len(text) + 1)) for token in self._tokens)
        return text + mark if begins_token else text

    def _segments(self, text: str, mark: str) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        start = 0
        for match in self._token.finditer(text):
            segments.append(Segment(text[start : match.start()].replace(mark, ""), control=False))
            segments.append(Segment(match.group(), control=True))
            start = match.end()
        segments.append(Segment(text[start:].replace(mark, ""), control=False))
        return tuple(segment for segment in segments if segment.text)


def load_chat_template(
    directory: str | Path, *, style: TemplateStyle | None = None, added_tokens: Collection[str] | None = None
) -> ChatTemplate:
    """The template of a model directory. `style` overrides everything; without an own template it is glm-4.5's."""
    if style is not None:
        return BuiltinTemplate(style)
    found = read_template_source(Path(directory))
    if found is None:
        return BuiltinTemplate("glm-4.5")
    source, origin = found
    own = JinjaTemplate(source, origin=origin, added_tokens=added_tokens)
    for candidate in get_args(TemplateStyle):
        if _agree(own, BuiltinTemplate(candidate)):
            own.close()
            return BuiltinTemplate(candidate, description=f"built-in {candidate}, which equals the checkpoint's {origin}")
    _logger.info("%s differs from the built-in templates; it is used as it is, in a sandbox", origin)
    return own


def read_template_source(directory: Path) -> tuple[str, str] | None:
    """The text of a checkpoint's own template and the name of its file; None where it brings none."""
    jinja_file = directory / "chat_template.jinja"
    if jinja_file.is_file():
        return _read(jinja_file), jinja_file.name
    config_file = directory / "tokenizer_config.json"
    if not config_file.is_file():
        return None
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file}: cannot be read: {error}") from error
    source = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(source, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    return (source, config_file.name) if isinstance(source, str) else None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_SOURCE:
            raise CheckpointError(f"{path}: larger than {MAX_SOURCE} bytes, which is no chat template")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _message(message: Message, drop_nothink: bool) -> dict[str, JSON]:
    result: dict[str, JSON] = {"role": message.role, "content": message.content}
    if message.role == "user" and drop_nothink:
        result["content"] = message.content.removesuffix(_NOTHINK)
    if message.role == "assistant":
        reasoning, result["content"] = split_reasoning(message)
        if message.reasoning is not None or reasoning:
            result["reasoning_content"] = reasoning
    if message.tool_calls:
        result["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    return result


def _unused_character(variables: dict[str, Any]) -> str:
    used = set(json.dumps(variables, ensure_ascii=False))
    return next(chr(code) for code in _PRIVATE_USE if chr(code) not in used)


def _start_state(segments: tuple[Segment, ...]) -> StartState:
    """Read off the prompt itself: the last think tag after the last role marker."""
    state: StartState = "undecided"
    for segment in segments:
        if not segment.control:
            continue
        if segment.text == "<|assistant|>":
            state = "undecided"
        elif segment.text == "<think>":
            state = "reasoning"
        elif segment.text == "</think>":
            state = "content"
    return state


def _agree(own: ChatTemplate, ours: BuiltinTemplate) -> bool:
    for conversation in _probes():
        for prompt in (True, False):
            try:
                text = own.render(conversation, add_generation_prompt=prompt).text
            except TemplateError:
                return False
            if text != ours.render(conversation, add_generation_prompt=prompt).text:
                return False
    return True


def _probes() -> tuple[Conversation, ...]:
    """Conversations that touch every branch of a GLM template."""
    schema = {"type": "object", "properties": {"city": {"type": "string", "description": "城市 <&>"}}}
    definition = {"type": "function", "function": {"name": "weather", "description": "w", "parameters": schema}}
    tools = (Tool("weather", schema, definition), Tool("now", {}, {"type": "function", "function": {"name": "now"}}))
    calls = (
        ToolCall("weather", {"city": '上海 "x"', "days": 3, "deep": {"a": [1.5, None, True]}}, id="a"),
        ToolCall("now", {}, id="b"),
    )
    loop = (
        Message("system", " You help.\n"),
        Message("user", "q"),
        Message("assistant", "  answer \n", reasoning="\nthought "),
        Message("user", "next/nothink"),
        Message("assistant", " \n", reasoning="r", tool_calls=calls),
        Message("tool", " one\n", tool_call_id="a"),
        Message("tool", "", tool_call_id="b"),
        Message("assistant", "<think>inside</think>\nshown", tool_calls=calls[1:]),
        Message("tool", "three", tool_call_id="b"),
    )
    short = (Message("user", "hello"), Message("assistant", "hi"), Message("system", "mid"), Message("assistant", ""))
    return (
        Conversation(short),
        Conversation(short, thinking=False),
        Conversation(loop, tools),
        Conversation(loop, tools, thinking=False),
        Conversation(loop, keep_thinking=True),
        Conversation((Message("tool", "first"), *loop[1:4])),
    )
