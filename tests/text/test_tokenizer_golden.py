"""The full GLM vocabulary: ids published by the reference tokenizer."""

import json

import pytest

from openglm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def glm(shared):
    return Tokenizer.from_file(shared / "tokenizer/tokenizer.json")


def test_golden_ids_and_back(shared, glm):
    for case in json.loads((shared / "golden/tokenizer_cases.json").read_text())["cases"]:
        assert glm.encode_raw(case["text"]) == case["ids"], case["text"]
        assert glm.decode(case["ids"]) == case["text"]


def test_named_ids_and_size(glm):
    assert glm.num_tokens == 151365
    assert glm.stop_ids == (151329, 151336, 151338)
    assert (glm.think, glm.end_think, glm.nothink) == (151350, 151351, 151360)


def test_user_text_never_becomes_a_control_token(glm):
    text = "".join(glm.added_tokens) + " /nothink </think>"
    ids = glm.encode_text(text)
    assert max(ids) < 151329
    assert glm.decode(ids) == text


def test_whole_pretoken_is_taken_from_the_vocabulary(glm):
    assert glm.encode_text(" 参考") == [99855]
