"""Which text may become a control token, on a tokenizer of our own making."""

import copy
import json

import pytest
import tokenizers
from conversations import any_text, hostile_text
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.errors import CheckpointError
from openglm.text.added_tokens import ADDED_TOKENS
from openglm.text.segments import Segment
from openglm.text.tokenizer import Tokenizer


def test_ids_are_found_by_string(small):
    assert small.num_tokens == small.token_id("<|video|>") + 1
    assert [small.token_id(token) for token, _ in ADDED_TOKENS] == list(range(small.endoftext, small.num_tokens))
    assert small.stop_ids == (small.endoftext, small.user, small.observation)
    assert small.token_id("<|nobody|>") is None
    assert small.token_bytes(small.end_arg_value) == b"</arg_value>"


def test_text_never_becomes_a_control_token_and_round_trips(small):
    @settings(max_examples=500, deadline=None)
    @given(any_text | st.text(max_size=20))
    def check(text):
        ids = small.encode_text(text)
        assert all(i < small.endoftext for i in ids)
        assert small.decode(ids) == text

    check()


def test_added_tokens_in_the_base_vocabulary_stay_out_of_text(small_definition):
    """Trainers list special tokens among the base tokens; `/nothink` is one pre-token, so it would be found whole."""
    definition = copy.deepcopy(small_definition)
    for entry in definition["added_tokens"]:
        definition["model"]["vocab"][entry["content"]] = entry["id"]
    tokenizer = Tokenizer(definition)
    assert tokenizer.nothink not in tokenizer.encode_text("a/nothink /nothink")
    assert tokenizer.encode_raw("/nothink") == [tokenizer.nothink]


def test_text_across_segments_is_encoded_jointly(small, small_definition):
    library = tokenizers.Tokenizer.from_str(json.dumps(small_definition))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["\n", "<think>", "a\n</think>", "", "x<|user|>\n"]), st.text("ab \n天1'", max_size=6))))
    def check(pairs):
        segments = [Segment(text, control) for marker, plain in pairs for text, control in ((marker, True), (plain, False))]
        joined = "".join(segment.text for segment in segments)
        assert small.encode_segments(segments) == library.encode(joined, add_special_tokens=False).ids

    check()


def test_only_control_segments_yield_control_tokens(small):
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.builds(Segment, hostile_text, st.booleans()), max_size=4))
    def check(segments):
        ids = small.encode_segments(segments)
        wanted = [i for s in segments if s.control for i in small.encode_raw(s.text) if i >= small.endoftext]
        assert [i for i in ids if i >= small.endoftext] == wanted
        assert small.decode(ids) == "".join(segment.text for segment in segments)

    check()


def test_lone_surrogates_become_replacement_characters(small):
    assert small.decode(small.encode_text("a\ud800b")) == "a\ufffdb"
    assert small.decode(small.encode_text("\ud83d\ude42")) == "🙂"


def test_padding_rows_decode_to_nothing_and_negative_ids_are_a_mistake(small):
    assert small.decode([small.num_tokens, small.num_tokens + 500]) == ""
    with pytest.raises(ValueError, match="negative"):
        small.token_bytes(-1)


def test_skip_special_keeps_markup(small):
    ids = small.encode_raw("<|user|>a<think>b</think>/nothink")
    assert small.decode(ids, skip_special=True) == "a<think>b</think>"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("added_tokens"), "added_tokens"),
        (lambda d: d["added_tokens"].pop(21), "<think>"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "lstrip"),
        (lambda d: d["model"].update(type="Unigram"), "BPE"),
        (lambda d: d["model"].update(merges=[["x", "yy"]]), "not a usable tokenizer"),
        (lambda d: d.update(pre_tokenizer={"type": "nonsense"}), "not a usable tokenizer"),
    ],
)
def test_damaged_definitions_are_named(small_definition, damage, message):
    definition = copy.deepcopy(small_definition)
    damage(definition)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer(definition, origin="x/tokenizer.json")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot read"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a JSON file"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        Tokenizer.from_dir(tmp_path)
