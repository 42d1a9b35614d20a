"""The full GLM vocabulary: ids of the reference tokenizer, and the library's own encoding as a second witness."""

import json

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.text.added_tokens import ADDED_TOKENS


def test_golden_ids_and_back(shared, glm):
    for case in json.loads((shared / "golden/tokenizer_cases.json").read_text())["cases"]:
        assert glm.encode_raw(case["text"]) == case["ids"], case["text"]
        assert glm.decode(case["ids"]) == case["text"]


def test_named_ids_and_size(shared, glm):
    assert glm.num_tokens == 151365
    assert glm.stop_ids == (151329, 151336, 151338)
    assert (glm.think, glm.end_think, glm.nothink) == (151350, 151351, 151360)
    official = json.loads((shared / "tokenizer/added_tokens.json").read_text())
    by_id = sorted(official.items(), key=lambda item: item[1]["id"])
    assert [(token, entry["special"]) for token, entry in by_id] == list(ADDED_TOKENS)


def test_whole_pretoken_is_taken_from_the_vocabulary(glm):
    assert glm.encode_text(" 参考") == [99855]


def test_raw_encoding_and_decoding_equal_the_librarys(shared, glm):
    library = tokenizers.Tokenizer.from_file(str(shared / "tokenizer/tokenizer.json"))
    pieces = [token for token, _ in ADDED_TOKENS] + ["hello world", "\n\n", "  ", "天气", "<thin", "k>", "12345", "é🙂", "/no"]

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.sampled_from(pieces) | st.text(max_size=8), max_size=8).map("".join))
    def check(text):
        ids = library.encode(text, add_special_tokens=False).ids
        assert glm.encode_raw(text) == ids
        assert glm.decode(ids) == library.decode(ids, skip_special_tokens=False) == text
        assert glm.decode(ids, skip_special=True) == library.decode(ids, skip_special_tokens=True)

    check()
