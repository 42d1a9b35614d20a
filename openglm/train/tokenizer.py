"""Train the byte-level BPE of a small model: same added tokens as GLM-4.5, in the same order, another vocabulary.

The pre-tokenizer differs from GLM's on purpose: every digit and every Han character stands alone, and a word never swallows the space
or quote before it. So a name has the same tokens in a schema, in a sentence and in an argument, and a small model can
copy what it has never seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from openglm.text.added_tokens import ADDED_TOKENS

# One Han character | one digit | a run of other letters | a newline | a run of everything else (spaces, punctuation).
_SPLIT = r"\p{Han}|\p{N}|[\p{L}&&[^\p{Han}]]+|\r?\n|\r|[^\p{L}\p{N}\r\n]+"


def train_tokenizer(texts: Iterable[str], *, num_tokens: int) -> str:
    """A `tokenizer.json` text with exactly `num_tokens` tokens, added ones last; raises ValueError if the corpus is too small."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens - len(ADDED_TOKENS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    definition = json.loads(tokenizer.to_str())
    size = len(definition["model"]["vocab"])
    if size != num_tokens - len(ADDED_TOKENS):
        raise ValueError(f"the corpus yields only {size} tokens; ask for fewer or give more text")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition["added_tokens"] = [
        {"id": size + i, "content": content, **flags, "special": special} for i, (content, special) in enumerate(ADDED_TOKENS)
    ]
    return json.dumps(definition, ensure_ascii=False, separators=(",", ":"))
