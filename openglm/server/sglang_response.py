"""Steps over raw prompts become SGLang's wire: objects of text, ids and `meta_info`, whole or as they grow.

A stream repeats everything from the beginning in every event, as SGLang's own does; a long reply is therefore told in steps that
grow with it, and the scores of the prompt only first and last, or the cost would be quadratic. Log probabilities are triples of log
probability, token id and text (null unless asked for). The stop id that ended a reply is the last of the ids, as it is there,
though it is no text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from openglm.engine.request import TokenLogprobs
from openglm.server.json_reply import encode
from openglm.server.openai_response import DONE, LOWEST_LOGPROB, error_body
from openglm.server.refusal import Refusal
from openglm.server.sglang_request import GenerateRequest
from openglm.server.turn import PreparedTurn, TurnEnd, TurnStep
from openglm.text.tokenizer import Tokenizer

_STEPS: Final = 1024
"""An event follows when a reply has grown by this part of its length: each step of an ordinary one."""

Triple = tuple[float | None, int, str | None]


@dataclass
class _Reply:
    """One answer as far as it has come."""

    began: float
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[Triple] = field(default_factory=list)
    tops: list[list[Triple]] = field(default_factory=list)
    num_told: int = 0
    told_prompt: bool = False


class GenerateWire:
    """Encodes the answers to one or more prompts; every method returns bytes ready for the socket."""

    keep_alive = b": keep-alive\n\n"

    def __init__(self, wanted: GenerateRequest, turns: Sequence[PreparedTurn], tokenizer: Tokenizer) -> None:
        self._wanted = wanted
        self._turns = turns
        self._tokenizer = tokenizer
        began = time.monotonic()
        self._replies = [_Reply(began) for _ in range(len(turns) * wanted.num_choices)]
        self._prompt_scores: dict[int, Sequence[TokenLogprobs]] = {}
        self._num_open = len(self._replies)

    def start(self) -> bytes:
        """Nothing is said before there is something."""
        return b""

    def step(self, step: TurnStep, index: int = 0) -> bytes:
        """The answer so far, after this step."""
        self._take(step, index)
        reply = self._replies[index]
        if step.end is None and len(reply.ids) - reply.num_told < max(1, len(reply.ids) // _STEPS):
            return b""
        reply.num_told = len(reply.ids)
        answer = self._object(index, step.end)
        if self._wanted.is_batch:
            answer["index"] = index
        sent = b"data: " + encode(answer) + b"\n\n"
        if step.end is None:
            return sent
        self._num_open -= 1
        return sent if self._num_open else sent + DONE

    def error(self, refusal: Refusal) -> bytes:
        """What is left to say when an answer fails in the middle."""
        return b"data: " + encode(error_body(refusal)) + b"\n\n" + DONE

    def whole(self, answers: Sequence[Sequence[TurnStep]]) -> bytes:
        """All answers in one body: an object, or a list where several were asked for."""
        for index, steps in enumerate(answers):
            for step in steps:
                self._take(step, index)
        objects = [self._object(index, steps[-1].end) for index, steps in enumerate(answers)]
        return encode(objects if self._wanted.is_batch else objects[0])

    def _take(self, step: TurnStep, index: int) -> None:
        reply = self._replies[index]
        reply.text.append(step.text)
        reply.ids += step.token_ids
        entries = list(step.logprobs)
        if step.end is not None and isinstance(step.end.stop, int):
            reply.ids.append(step.end.stop)
            entries += [step.stop_logprobs] if step.stop_logprobs is not None else []
        reply.logprobs += [self._triple(entry.token, entry.logprob) for entry in entries]
        reply.tops += [[self._triple(*pair) for pair in entry.top] for entry in entries]
        if step.prompt_logprobs is not None:
            self._prompt_scores[index // self._wanted.num_choices] = step.prompt_logprobs

    def _object(self, index: int, end: TurnEnd | None) -> dict[str, Any]:
        reply, prompt = self._replies[index], index // self._wanted.num_choices
        turn = self._turns[prompt]
        meta: dict[str, Any] = {
            "id": turn.request.client_id or turn.id,
            "finish_reason": None if end is None else _finish(end, len(reply.ids)),
            "prompt_tokens": len(turn.prompt_ids),
            "completion_tokens": len(reply.ids),
            "weight_version": "default",
        }
        if end is not None:
            meta["cached_tokens"] = end.usage.cached_tokens
            meta["e2e_latency"] = time.monotonic() - reply.began
            if end.usage.draft_tokens:
                meta["spec_draft_tokens"] = end.usage.draft_tokens
                meta["spec_accepted_tokens"] = end.usage.accepted_draft_tokens
        if turn.params.logprobs is not None:
            meta["output_token_logprobs"] = reply.logprobs
            if turn.params.logprobs:
                meta["output_top_logprobs"] = reply.tops
            if end is not None or not reply.told_prompt:
                reply.told_prompt = True
                self._add_prompt_logprobs(meta, prompt, turn)
        return {"text": "".join(reply.text), "output_ids": reply.ids, "meta_info": meta}

    def _add_prompt_logprobs(self, meta: dict[str, Any], prompt: int, turn: PreparedTurn) -> None:
        scores, start = self._prompt_scores.get(prompt, ()), self._wanted.logprob_starts[prompt]
        triples: list[Triple] = []
        tops: list[list[Triple] | None] = []
        if start is not None and start < len(turn.prompt_ids):
            # The first of them has nothing before it that counts, so it has no log probability.
            triples.append((None, turn.prompt_ids[start], self._text(turn.prompt_ids[start])))
            tops.append(None)
            triples += [self._triple(entry.token, entry.logprob) for entry in scores[start:]]
            tops += [[self._triple(*pair) for pair in entry.top] for entry in scores[start:]]
        meta["input_token_logprobs"] = triples
        if turn.params.logprobs:
            meta["input_top_logprobs"] = tops

    def _triple(self, token: int, logprob: float) -> Triple:
        return (max(logprob, LOWEST_LOGPROB), token, self._text(token))

    def _text(self, token: int) -> str | None:
        return self._tokenizer.decode([token]) if self._wanted.text_in_logprobs else None


def _finish(end: TurnEnd, num_tokens: int) -> dict[str, Any]:
    match end.finish_reason:
        case "length":
            return {"type": "length", "length": num_tokens}
        case "abort":
            return {"type": "abort", "message": "aborted"}
    return {"type": "stop", "matched": end.stop}
