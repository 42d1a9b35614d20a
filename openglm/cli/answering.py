"""Where `glm chat` and `glm generate` get answers from: an engine started for them, or any OpenAI-compatible server.

Both are an `AnswerSource`, so the terminal code does not know which it talks to.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Protocol

from openglm.config.engine import EngineConfig, model_directory
from openglm.engine.client import AsyncEngineClient
from openglm.engine.request import SamplingParams
from openglm.errors import ConfigError
from openglm.server.openai_client import OpenAIClient, SamplingWishes
from openglm.server.served_model import ServedModel, load_served_model
from openglm.server.turn import TurnRequest, TurnStep, prepare, run
from openglm.text.messages import Conversation


class AnswerSource(Protocol):
    """Something that answers conversations."""

    async def open(self) -> str:
        """Get ready; returns the model's name."""
        ...

    def answer(self, conversation: Conversation, wishes: SamplingWishes) -> AsyncGenerator[TurnStep]:
        """Stream the next turn; closing the generator cancels it."""
        ...

    async def close(self) -> None:
        """Let go of whatever was started."""
        ...


class LocalSource:
    """An engine process of our own, ended with the command."""

    def __init__(self, config: EngineConfig) -> None:
        self._client = AsyncEngineClient(config)
        self._model: ServedModel = load_served_model(model_directory(config.model), names=(config.model or "glm-nano",))

    async def open(self) -> str:
        """Start the engine and load the model."""
        info = await self._client.start()
        self._model = self._model.with_context(info.max_model_len)
        return self._model.name

    async def answer(self, conversation: Conversation, wishes: SamplingWishes) -> AsyncGenerator[TurnStep]:
        """Run one turn."""
        defaults = self._model.defaults
        params = SamplingParams(
            max_tokens=wishes.max_tokens,
            temperature=defaults.temperature if wishes.temperature is None else wishes.temperature,
            top_p=defaults.top_p if wishes.top_p is None else wishes.top_p,
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            seed=wishes.seed,
        )
        turn = prepare(TurnRequest(conversation, params), self._model)
        async with contextlib.aclosing(run(turn, self._client, self._model.tokenizer)) as steps:
            async for step in steps:
                yield step

    async def close(self) -> None:
        """End the engine process."""
        await self._client.close()
        self._model.template.close()


class RemoteSource:
    """A server somewhere else."""

    def __init__(self, url: str, *, api_key: str | None, model: str | None) -> None:
        self._client = OpenAIClient(url, api_key=api_key, model=model)

    async def open(self) -> str:
        """Ask which model there is."""
        return await self._client.model()

    def answer(self, conversation: Conversation, wishes: SamplingWishes) -> AsyncGenerator[TurnStep]:
        """Ask for one turn."""
        return self._client.answer(conversation, wishes)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def answer_source(url: str | None, *, api_key: str | None, engine: EngineConfig) -> AnswerSource:
    """A server's answers if `url` is given (then `engine.model` names one of its models), else those of an engine of our own."""
    if url is not None:
        return RemoteSource(url, api_key=api_key, model=engine.model)
    if api_key is not None:
        raise ConfigError("--api-key is for a server; give --url too")
    return LocalSource(engine)
