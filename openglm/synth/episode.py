"""What every generator returns, and the shortest way to build one."""

from __future__ import annotations

from dataclasses import dataclass

from openglm.text.messages import Conversation, Message


@dataclass(frozen=True)
class Episode:
    """A conversation whose last message is the assistant's, the answer that evaluation compares with."""

    task: str
    conversation: Conversation

    @property
    def answer(self) -> Message:
        """The last message."""
        return self.conversation.messages[-1]


def answered(task: str, question: str, answer: str, thought: str, *, thinking: bool = True) -> Episode:
    """One question and its answer; the thought is left out where thinking is off."""
    return Episode(task, Conversation((Message("user", question), reply(answer, thought, thinking)), thinking=thinking))


def reply(content: str, thought: str, thinking: bool) -> Message:
    """An assistant turn in words."""
    return Message("assistant", content, reasoning=thought if thinking else None)
