"""Steps over raw prompts become the wire of the completions route: chunks of text, or one text completion.

Log probabilities come as four parallel lists. A token that is not whole characters has no text of its own; it is named by its bytes
(`bytes:\\xe2\\x80`), as OpenAI does, so that different tokens stay different keys. With `echo` the lists cover the prompt too; its
first token has no log probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openglm.engine.request import TokenLogprobs
from openglm.server.json_reply import encode
from openglm.server.openai_response import DONE, LOWEST_LOGPROB, error_body, usage_object
from openglm.server.refusal import Refusal
from openglm.server.turn import PreparedTurn, TurnEnd, TurnStep, TurnUsage, sum_usages, total_usage
from openglm.text.detokenizer import IncrementalDetokenizer
from openglm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """What every piece of one answer repeats, and what the client wants of it."""

    id: str
    created: int
    model: str
    num_choices: int = 1
    echo: bool = False
    logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False


class CompletionWire:
    """Encodes the answers to one or more prompts; every method returns bytes ready for the socket."""

    keep_alive = b": keep-alive\n\n"

    def __init__(self, answer: Answer, turns: Sequence[PreparedTurn], tokenizer: Tokenizer) -> None:
        self._answer = answer
        self._turns = turns
        self._tokenizer = tokenizer
        num_answers = len(turns) * answer.num_choices
        self._head = {"id": answer.id, "object": "text_completion", "created": answer.created, "model": answer.model}
        self._lists = [_LogprobLists(tokenizer) for _ in range(num_answers)]
        self._usages: list[TurnUsage | None] = [None] * num_answers
        self._num_tokens = [0] * num_answers
        self._waiting: dict[int, list[tuple[TurnStep, int]]] = {i: [] for i in range(len(turns))} if answer.echo else {}
        """Of prompts that have not been echoed, the steps that came first."""

    def start(self) -> bytes:
        """Echoed prompts that need no scores."""
        if not self._answer.echo or self._answer.logprobs:
            return b""
        return b"".join([self._echo(prompt, None) for prompt in range(len(self._turns))])

    def step(self, step: TurnStep, index: int = 0) -> bytes:
        """The chunk of one step, after the echo of its prompt, which the first choice's step brings the scores for."""
        prompt = index // self._answer.num_choices
        if prompt not in self._waiting:
            return self._chunk(step, index)
        if index % self._answer.num_choices:
            self._waiting[prompt].append((step, index))
            return b""
        return self._echo(prompt, step.prompt_logprobs) + self._chunk(step, index)

    def error(self, refusal: Refusal) -> bytes:
        """What is left to say when an answer fails in the middle."""
        return b"data: " + encode(error_body(refusal)) + b"\n\n" + DONE

    def whole(self, answers: Sequence[Sequence[TurnStep]]) -> bytes:
        """All answers in one body."""
        choices = []
        for index, steps in enumerate(answers):
            end = steps[-1].end
            assert end is not None
            self._usages[index] = end.usage
            prompt = self._turns[index // self._answer.num_choices]
            first = answers[index - index % self._answer.num_choices]
            text, lists = "", self._lists[index]
            if self._answer.echo:
                text = self._tokenizer.decode(prompt.prompt_ids)
                scores = next((step.prompt_logprobs for step in first if step.prompt_logprobs is not None), None)
                lists.add_prompt(prompt.prompt_ids, scores or ())
            lists.add([entry for step in steps for entry in _scored(step)])
            text += "".join([step.text for step in steps])
            ids = [token for step in steps for token in step.token_ids]
            choices.append(self._choice(index, text, ids, end, prompt_ids=prompt.prompt_ids))
        return encode({**self._head, "choices": choices, "usage": self._usage()})

    def _echo(self, prompt: int, scores: Sequence[TokenLogprobs] | None) -> bytes:
        """The prompt as the first chunk of each of its choices, and what had to wait for that."""
        ids = self._turns[prompt].prompt_ids
        text = self._tokenizer.decode(ids)
        pieces = []
        for index in range(prompt * self._answer.num_choices, (prompt + 1) * self._answer.num_choices):
            self._lists[index].add_prompt(ids, scores or ())
            pieces.append(self._data([self._choice(index, text, [], None)], None))
        waiting = self._waiting.pop(prompt)
        return b"".join([*pieces, *(self._chunk(step, index) for step, index in waiting)])

    def _chunk(self, step: TurnStep, index: int) -> bytes:
        text = step.text
        self._lists[index].add(_scored(step))
        self._num_tokens[index] += len(step.token_ids)
        if step.end is None:
            if not text and not self._answer.return_token_ids:
                return b""  # half a character
            return self._data([self._choice(index, text, step.token_ids, None)], self._usage_so_far(index))
        self._usages[index] = step.end.usage
        sent = self._data([self._choice(index, text, step.token_ids, step.end)], self._usage_so_far(index))
        if any(usage is None for usage in self._usages):
            return sent
        return sent + (self._data([], self._usage()) if self._answer.include_usage else b"") + DONE

    def _choice(
        self, index: int, text: str, ids: Sequence[int], end: TurnEnd | None, *, prompt_ids: Sequence[int] | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": self._lists[index].take() if self._answer.logprobs else None,
            "finish_reason": None if end is None else end.finish_reason,
        }
        if end is not None:
            choice["stop_reason"] = end.stop
        if self._answer.return_token_ids:
            choice["token_ids"] = ids
            if prompt_ids is not None:
                choice["prompt_token_ids"] = prompt_ids
        return choice

    def _data(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        chunk: dict[str, Any] = {**self._head, "choices": choices}
        if usage is not None or self._answer.include_usage:
            chunk["usage"] = usage
        return b"data: " + encode(chunk) + b"\n\n"

    def _usage_so_far(self, index: int) -> dict[str, Any] | None:
        if not self._answer.continuous_usage:
            return None
        prompt, completion = len(self._turns[index // self._answer.num_choices].prompt_ids), self._num_tokens[index]
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _usage(self) -> dict[str, Any]:
        usages = [usage for usage in self._usages if usage is not None]
        size = self._answer.num_choices
        return usage_object(sum_usages([total_usage(usages[i : i + size]) for i in range(0, len(usages), size)]))


def _scored(step: TurnStep) -> list[TokenLogprobs]:
    """What the lists say of a step. The stop id is among them although it is no text: evaluation harnesses take the last entry for
    the one generated token, whatever it is, and drop it."""
    return [*step.logprobs, *([step.stop_logprobs] if step.stop_logprobs is not None else ())]


class _LogprobLists:
    """The four lists of one answer, as they grow. `take` hands out what came since the last time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special=False)
        self._num_chars = 0
        self._lists = self._empty()

    def add_prompt(self, ids: Sequence[int], scores: Sequence[TokenLogprobs]) -> None:
        """The prompt; `scores` has an entry for each id but the first, or none at all."""
        if not scores and len(ids) > 1:
            return
        self._append(ids[0], None, None)
        self.add(scores)

    def add(self, entries: Sequence[TokenLogprobs]) -> None:
        """Generated tokens, or scored ones."""
        for entry in entries:
            top = {self._name(token): max(logprob, LOWEST_LOGPROB) for token, logprob in entry.top}
            top.setdefault(self._name(entry.token), max(entry.logprob, LOWEST_LOGPROB))
            self._append(entry.token, max(entry.logprob, LOWEST_LOGPROB), top)

    def take(self) -> dict[str, list[Any]]:
        """What is new."""
        taken, self._lists = self._lists, self._empty()
        return taken

    def _append(self, token: int, logprob: float | None, top: dict[str, float] | None) -> None:
        self._lists["tokens"].append(self._name(token))
        self._lists["token_logprobs"].append(logprob)
        self._lists["top_logprobs"].append(top)
        self._lists["text_offset"].append(self._num_chars)
        self._num_chars += len(self._detokenizer.push([token]))

    def _name(self, token: int) -> str:
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join([f"\\x{byte:02x}" for byte in raw])

    @staticmethod
    def _empty() -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
