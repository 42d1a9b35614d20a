"""Streaming text: whole characters only, and in the end the same text as decoding at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.text.detokenizer import IncrementalDetokenizer


def test_characters_wait_until_they_are_whole(small):
    ids = [i for byte in "é🙂".encode() for i in [next(k for k in range(256) if small.token_bytes(k) == bytes([byte]))]]
    detokenizer = IncrementalDetokenizer(small)
    assert [detokenizer.push([i]) for i in ids] == ["", "é", "", "", "", "🙂"]
    assert detokenizer.finish() == ""


def test_half_a_character_at_the_end_is_replaced(small):
    ids = small.encode_text("a🙂")[:-1]
    detokenizer = IncrementalDetokenizer(small)
    assert detokenizer.push(ids) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_markup_stays_and_special_tokens_go(small):
    ids = small.encode_raw("<think>a</think>/nothink<|user|>")
    assert IncrementalDetokenizer(small).push(ids) == "<think>a</think>"
    assert IncrementalDetokenizer(small, skip_special=False).push(ids) == "<think>a</think>/nothink<|user|>"


def test_any_ids_in_any_chunks_equal_decoding_at_once(small):
    chunks_of_ids = st.lists(st.lists(st.integers(0, small.num_tokens + 3), max_size=4), max_size=12)

    @settings(max_examples=300, deadline=None)
    @given(chunks_of_ids, st.booleans())
    def check(chunks, skip_special):
        detokenizer = IncrementalDetokenizer(small, skip_special=skip_special)
        text = "".join(map(detokenizer.push, chunks)) + detokenizer.finish()
        assert text == small.decode([i for chunk in chunks for i in chunk], skip_special)

    check()
