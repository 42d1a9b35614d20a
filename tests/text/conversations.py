"""Hypothesis strategies for conversations, and the contents that try to break out of them."""

from hypothesis import strategies as st

from openglm.text.added_tokens import ADDED_TOKENS
from openglm.text.messages import Conversation, Message, Tool, ToolCall

FRAGMENTS = [token for token, _ in ADDED_TOKENS] + [
    "<",
    ">",
    "</",
    "<thi",
    "nk>",
    "<|us",
    "er|>",
    "/no",
    "\n",
    " ",
    "a",
    "天气",
    "🙂",
    "12",
    '"',
    "\\",
]

hostile_text = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<[/"), max_size=12)
any_text = st.one_of(hostile_text, plain_text)
names = st.from_regex(r"[a-z][a-z_.]{0,8}", fullmatch=True)


def values(text):
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), text)
    return st.recursive(
        scalars, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(plain_text, inner, max_size=2)), max_leaves=4
    )


def calls(text):
    return st.builds(ToolCall, names, st.dictionaries(text, values(text), max_size=2))


def _tool(name, text):
    return Tool(name, {}, {"type": "function", "function": {"name": name, "description": text}})


def _message(role, content, reasoning, tool_calls):
    if role == "assistant":
        return Message(role, content, reasoning=reasoning, tool_calls=tuple(tool_calls))
    return Message(role, content)


def conversations(text=any_text, *, thinking=st.booleans()):
    message = st.builds(
        _message,
        st.sampled_from(["system", "user", "assistant", "assistant", "tool"]),
        text,
        st.none() | text,
        st.lists(calls(text), max_size=2),
    )
    return st.builds(
        Conversation,
        st.lists(message, min_size=1, max_size=5).map(tuple),
        st.lists(st.builds(_tool, names, text), max_size=1).map(tuple),
        thinking=thinking,
        keep_thinking=st.booleans(),
    )
