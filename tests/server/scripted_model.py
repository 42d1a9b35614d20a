"""A GLM checkpoint that says what a test wants, through the real engine.

Attention and experts have zero weights, the embedding is the identity and the head a permutation, so the next token depends on
the present one alone: `script` is a chain of token strings, each occurring once. The MTP layer's `eh_proj` copies the embedding of the
next token, so its drafts follow the same chain and are always right: several tokens arrive per step, as with a trained
model. A token outside the chain is followed by `<|user|>`, which ends the turn; where stop ids are ignored, the chain begins
again after it.

The prompt ends with `<|assistant|>` when the model may think and with `</think>` when it may not, so a chain that passes through
both says the whole turn or its second half.
"""

import json
from dataclasses import replace
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from openglm.checkpoint import save_model
from openglm.config import variant
from openglm.model import GlmModel
from openglm.text.added_tokens import ADDED_TOKENS
from openglm.text.tokenizer import Tokenizer

WIDTH = 512  # vocabulary and hidden size
GAIN = 4.0  # leaves the likeliest token the only possible one at temperature 2

THINKING_AND_CALL = (
    *("<|assistant|>", "\n", "<think>", "I", "look", "it", "up", "</think>", "Moment", "🙂", "<tool_call>", "get", "_weather"),
    *("<arg_key>", "city", "</arg_key>", "<arg_value>", "Zürich", "</arg_value>", "</tool_call>", "<|observation|>"),
)
THINKING_AND_ANSWER = (*("<|assistant|>", "\n", "<think>", "Let", "me", "see", "</think>", "It", "is", "sunny", "🙂", "in", "Zürich", "."),)


THINKING_FOR_EVER = ("<|assistant|>", "\n", "<think>", "Hm", "</think>", "Done", ".")


def write_scripted_model(directory: Path, script: tuple[str, ...], *, stuck_at: str | None = None, context: int = 2048) -> Tokenizer:
    """Save the checkpoint and its tokenizer; returns the latter. `stuck_at` is a word of the script that follows itself: only a forced
    token, or the end of the context, leads on from there."""
    directory.mkdir(parents=True, exist_ok=True)
    definition = _tokenizer_definition(script)
    tokenizer = Tokenizer(definition)
    config = replace(
        variant("tiny-air"),
        vocab_size=WIDTH,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.endoftext,
        max_position_embeddings=context,
    )
    model = GlmModel(config)
    model.init_weights(0)
    chain = [i for text in script for i in tokenizer.encode_raw(text)]
    assert len(set(chain)) == len(chain), "a token occurs twice in the script, so its successor would be ambiguous"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        model.embed_tokens.copy_(torch.eye(WIDTH))
        model.mtp.eh_proj.weight[:, :WIDTH] = torch.eye(WIDTH)
        model.lm_head.weight[tokenizer.user] = GAIN
        for token, following in [*zip(chain, [*chain[1:], tokenizer.user], strict=True), (tokenizer.user, chain[0])]:
            model.lm_head.weight[:, token] = 0.0
            model.lm_head.weight[following, token] = GAIN
        if stuck_at is not None:
            (stuck,) = tokenizer.encode_raw(stuck_at)
            model.lm_head.weight[:, stuck] = 0.0
            model.lm_head.weight[stuck, stuck] = GAIN
    save_model(model, directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), "utf-8")
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 1.0, "eos_token_id": list(tokenizer.stop_ids)}), "utf-8")
    return tokenizer


def _tokenizer_definition(script: tuple[str, ...]) -> dict:
    """Bytes, the script's words as whole tokens (but not 🙂, whose bytes come one by one), and GLM's added tokens."""
    added = {token for token, _ in ADDED_TOKENS}
    words = [word for word in script if word not in added and len(word) > 1 and word != "🙂"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in words:
        pieces = list(byte_level.pre_tokenize_str(word)[0][0])
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocab.setdefault(pieces[0], len(vocab))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, list(dict.fromkeys(merges)), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(r"[\p{L}_]+|."), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    definition = json.loads(tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition["added_tokens"] = [
        {"id": len(vocab) + i, "content": token, **flags, "special": special} for i, (token, special) in enumerate(ADDED_TOKENS)
    ]
    return definition
