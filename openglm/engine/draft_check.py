"""Does the MTP layer of a checkpoint work? Found out when it is loaded, in two short passes, instead of by serving slowly.

A layer that is zero, random, half loaded or mapped to the wrong names drafts tokens that are never right. The adaptive depth would
notice, but every request would still pay for its probes and its KV; and nobody would be told.

The layer and the trunk read the same short conversation, with a system text, a tool, reasoning, a call and an answer in the chat
template: most of it is what every GLM model reproduces by heart, whatever its vocabulary. At each position the layer's first
draft, made from the true hidden state and the true next token, is compared with the trunk's own choice one position on. A trained
layer agrees in most places, one that is broken nearly never, so the limit between them need not be fine.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE
from openglm.text.messages import Conversation, Message, Tool, ToolCall
from openglm.text.template import render
from openglm.text.tokenizer import Tokenizer

LOWEST_AGREEMENT: Final = 0.15
_MAX_TOKENS: Final = 192
_FEWEST_TOKENS: Final = 64  # fewer are no basis for a verdict
_FIRST: Final = 8  # positions with next to no context say little

_TOOL: Final = {
    "name": "get_weather",
    "description": "Current weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name of the city"}}, "required": ["city"]},
}
_CALL: Final = Message(
    "assistant",
    reasoning="The user wants to know the weather in Paris. I will call get_weather with the city Paris.",
    tool_calls=(ToolCall("get_weather", {"city": "Paris"}),),
)
_CONVERSATION: Final = Conversation(
    (
        Message("user", "What is the weather in Paris?"),
        _CALL,
        Message("tool", "sunny, 21 degrees"),
        _CALL,  # by now the call can be copied
        Message("tool", "sunny, 21 degrees"),
        Message("assistant", "It is sunny in Paris, 21 degrees.", reasoning="The weather in Paris is sunny, 21 degrees."),
    ),
    tools=(Tool("get_weather", _TOOL["parameters"], {"type": "function", "function": _TOOL}),),  # type: ignore[arg-type]
)


def check_text(tokenizer: Tokenizer) -> list[int]:
    """The conversation as this tokenizer writes it, without the tool's boilerplate as far as it is too long."""
    return tokenizer.encode_segments(render(_CONVERSATION, "glm-4.5", add_generation_prompt=False).segments)[-_MAX_TOKENS:]


@torch.inference_mode()
def first_draft_agreement(model: GlmModel, tokens: list[int], *, num_tokens: int) -> float:
    """Share of positions at which the MTP layer's first draft is the trunk's choice; NaN when the layer's output is not finite.

    Ids from `num_tokens` on are padding.
    """
    device = model.embed_tokens.device
    ids = torch.tensor(tokens, device=device)
    kv = allocate_kv(model.config, -(-len(tokens) // PAGE_SIZE), model.embed_tokens.dtype, device)

    def context(count: int) -> ForwardContext:
        positions = torch.arange(count, device=device)
        pages = torch.arange(-(-count // PAGE_SIZE), device=device).unsqueeze(0)
        return ForwardContext(positions, PagedBatch((0, count), (count,), pages, positions, kv), native=model.is_packed)

    hidden = model(ids, context(len(tokens)))
    drafted = model.mtp_forward(ids[1:], hidden[:-1], context(len(tokens) - 1))
    first = min(_FIRST, len(tokens) // 2)
    chosen = model.logits(hidden[first + 1 :])[:, :num_tokens].argmax(-1)  # at position i + 1, of token i + 2
    highest, drafts = model.logits(drafted[first:])[:, :num_tokens].max(-1)
    if not bool(highest.isfinite().all()):
        return math.nan
    return float((chosen == drafts).float().mean())


def what_is_wrong(model: GlmModel, tokenizer: Tokenizer, *, max_tokens: int) -> str | None:
    """Why the MTP layer should not be used, or None. Takes two forward passes over at most `max_tokens` tokens."""
    tokens = check_text(tokenizer)[-max_tokens:]
    if len(tokens) < _FEWEST_TOKENS:
        return None
    agreement = first_draft_agreement(model, tokens, num_tokens=min(tokenizer.num_tokens, model.config.vocab_size))
    if math.isnan(agreement):
        return "its output is not finite"
    if agreement < LOWEST_AGREEMENT:
        return f"on a sample conversation {agreement:.0%} of its first drafts are what the model itself goes on with; about half is usual"
    return None
