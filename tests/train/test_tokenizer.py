"""The tokenizer of small models: every byte round-trips, added tokens keep their order, copying needs no new tokens."""

import pytest

from openglm.text.added_tokens import ADDED_TOKENS
from openglm.train.tokenizer import train_tokenizer


def test_added_tokens_come_last_in_the_official_order(tokenizer):
    assert tokenizer.num_tokens == 512
    first = 512 - len(ADDED_TOKENS)
    assert [tokenizer.token_id(content) for content, _ in ADDED_TOKENS] == list(range(first, 512))


def test_every_character_round_trips(tokenizer):
    text = "".join(map(chr, range(0x250))) + "北京 天气 😀 \r\n\t end"
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


@pytest.mark.parametrize("word", ["weather", "zorblat", "Paris", "北京", "12345"])
def test_a_word_has_the_same_tokens_wherever_it_stands(tokenizer, word):
    alone = tokenizer.encode_text(word)
    for text in (f'"name": "{word}", ', f"in {word}?", f"get_{word}\n", f"({word})"):
        ids = tokenizer.encode_text(text)
        assert any(ids[i : i + len(alone)] == alone for i in range(len(ids))), text


def test_digits_and_han_characters_stand_alone(tokenizer):
    assert len(tokenizer.encode_text("2024")) == 4
    assert tokenizer.encode_text("上海天气") == [i for c in "上海天气" for i in tokenizer.encode_text(c)]


def test_too_small_a_corpus_is_refused():
    with pytest.raises(ValueError, match="yields only"):
        train_tokenizer(["abc"], num_tokens=2048)
