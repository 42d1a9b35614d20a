"""Tokenizers for the text tests: a small one made on the spot, and GLM's own where the reference data is there."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from openglm.text.added_tokens import ADDED_TOKENS
from openglm.text.tokenizer import Tokenizer

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "The quick brown fox calls get_weather and the model thinks about think and tool_call.",
    "user assistant observation system nothink 天气怎么样 你好世界 12 + 30 = 42\n\n    return value",
]


@pytest.fixture(scope="session")
def small_definition():
    """`tokenizer.json` of a byte-level BPE of some hundred tokens with GLM's 36 added tokens after it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False) for token, special in ADDED_TOKENS])
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="session")
def small(small_definition):
    return Tokenizer(small_definition)


@pytest.fixture(scope="session")
def glm(shared):
    return Tokenizer.from_file(shared / "tokenizer/tokenizer.json")
