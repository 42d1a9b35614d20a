"""Pieces of a prompt that know whether they may hold control tokens.

A prompt is a sequence of segments. In a *control* segment the added tokens of the tokenizer are recognised: only the
template writes those. Everything that a user, a tool or the model wrote is an ordinary segment, where `<|user|>` is eight
letters and signs. This is what keeps a prompt from being forged by its contents.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """`control`: the text comes from the template, so added tokens in it are tokens."""

    text: str
    control: bool


@dataclass(frozen=True, slots=True)
class TrainingSegment:
    """A segment with the answer to "must the model learn to write this?"."""

    text: str
    control: bool
    trained: bool
