"""A small tokenizer and architecture with which a whole run takes seconds."""

from dataclasses import replace

import pytest

from openglm.config import variant
from openglm.synth import corpus_sample
from openglm.text.tokenizer import Tokenizer
from openglm.train.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer(corpus_sample(1, 400), num_tokens=512), "utf-8")
    return Tokenizer.from_file(path)


@pytest.fixture(scope="session")
def architecture(tokenizer):
    ids = {"eos_token_id": tuple(tokenizer.stop_ids), "pad_token_id": tokenizer.endoftext}
    return replace(variant("tiny-355b"), vocab_size=512, num_hidden_layers=3, first_k_dense_replace=1, **ids)
