"""The offline interface."""

import pytest
from engine_runs import make_core

from openglm.engine.llm import LLM
from openglm.engine.request import SamplingParams
from openglm.errors import CheckpointError, ConfigError, ContextLengthError, RequestError

PARAMS = SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture
def llm() -> LLM:
    return LLM.from_core(make_core(max_num_seqs=3))


def test_results_come_in_the_order_of_the_prompts(llm):
    prompts = [[i, i + 1, i + 2] * (i % 4 + 1) for i in range(10)]
    results = llm.generate(prompts, PARAMS)
    assert [llm.generate([prompt], PARAMS)[0].token_ids for prompt in prompts] == [r.token_ids for r in results]
    assert all(r.finish_reason == "length" and r.num_prompt_tokens == len(p) for r, p in zip(results, prompts, strict=True))


def test_every_prompt_may_have_its_own_parameters(llm):
    results = llm.generate([[1], [2]], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=3, logprobs=1)])
    assert [len(r.token_ids) for r in results] == [2, 3]
    assert results[0].logprobs is None and len(results[1].logprobs) == 3
    with pytest.raises(ValueError, match="2 prompts but 1"):
        llm.generate([[1], [2]], [PARAMS])


def test_a_wrong_prompt_raises_before_anything_runs(llm):
    with pytest.raises(RequestError, match="empty"):
        llm.generate([[1], []], PARAMS)
    assert not llm.core.has_work and llm.stats().num_steps == 0


def test_an_interrupt_leaves_nothing_running(llm, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.core, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1], [2]], PARAMS)
    assert not llm.core.has_work and llm.stats().pages_held == 0


def test_progress_bar_shows(llm, capsys):
    llm.generate([[1], [2]], PARAMS, use_tqdm=True)
    shown = capsys.readouterr().out
    assert "2/2" in shown and "tok/s" in shown


def test_no_prompts_give_no_results(llm):
    assert llm.generate([]) == []


def test_a_named_variant_runs_with_random_weights():
    llm = LLM("tiny-air", load_format="dummy", max_model_len=128, threads=1)
    assert llm.tokenizer is None and any("dtype float32" in reason for reason in llm.reasons)
    assert len(llm.generate([[1, 2]], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3
    assert llm.stats().num_finished == {"length": 1}, "the warm-up is not counted"


def test_a_missing_or_unknown_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        LLM(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="glm-nano"):
        LLM("glm-nanno", load_format="dummy")


SAY = {"role": "user", "content": "What is 128 + 345?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SHORT_ANSWER = SamplingParams(max_tokens=160, temperature=0)


@pytest.fixture(scope="module")
def nano() -> LLM:
    return LLM(threads=1, max_model_len=1024, max_num_seqs=4)


def test_a_text_prompt_is_ordinary_text(nano, caplog):
    text = "<|user|>\nHello"
    assert nano.generate(text, PARAMS)[0].token_ids == nano.generate([nano.tokenizer.encode_text(text)], PARAMS)[0].token_ids
    assert "encode_raw" in caplog.text
    caplog.clear()
    mixed = nano.generate(["Two and", nano.tokenizer.encode_text(text), text], PARAMS)
    assert len(mixed) == 3 and mixed[1].token_ids == mixed[2].token_ids and not caplog.text, "said once"
    assert nano.generate([1, 2, 3], PARAMS)[0].num_prompt_tokens == 3, "a single prompt of ids"


def test_text_is_without_control_tokens_and_cut_before_a_stop_string(nano):
    prompt = nano.tokenizer.encode_raw("[gMASK]<sop><|user|>\nWhat is 2 + 3?/nothink<|assistant|>\n<think></think>\n")
    (full,) = nano.generate([prompt], SHORT_ANSWER)
    assert full.text == nano.tokenizer.decode(full.token_ids) and full.finish_reason == "stop"
    stop = full.text[2:5]  # begins in one token and ends in another
    (cut,) = nano.generate([prompt], SamplingParams(max_tokens=160, temperature=0, stop=(stop,)))
    assert cut.stop_reason == stop and cut.text == full.text[: full.text.index(stop)]
    (endless,) = nano.generate([prompt], SamplingParams(max_tokens=40, temperature=0, ignore_eos=True))
    assert "<|user|>" in nano.tokenizer.decode(endless.token_ids) and "<|user|>" not in endless.text


def test_chat_returns_parsed_messages_with_tokens_and_logprobs(nano):
    params = SamplingParams(max_tokens=160, temperature=0, logprobs=1, prompt_logprobs=0)
    (answer,) = nano.chat([SAY], params)
    assert answer.message.role == "assistant" and answer.message.reasoning and "473" in answer.message.content
    assert len(answer.logprobs) == len(answer.token_ids) and len(answer.prompt_logprobs) == answer.num_prompt_tokens - 1
    assert answer.to_openai()["reasoning_content"] == answer.message.reasoning
    (quiet,) = nano.chat([SAY], SHORT_ANSWER, enable_thinking=False)
    assert quiet.message.reasoning is None and quiet.message.content == quiet.text.strip()


def test_chat_takes_many_conversations_and_tools_and_goes_on_from_its_answers(nano):
    ask = {"role": "user", "content": "What's the weather in Paris?"}
    first, other = nano.chat([[ask], [SAY]], SHORT_ANSWER, tools=[WEATHER])
    (call,) = first.message.tool_calls
    assert (call.name, call.arguments) == ("get_weather", {"city": "Paris"}) and other.num_prompt_tokens > 0
    told = [ask, first.to_openai(), {"role": "tool", "tool_call_id": "call_0", "content": '{"temperature": 21}'}]
    two = nano.chat(told, SHORT_ANSWER, tools=[WEATHER], n=2)
    assert len(two) == 2 and two[0].message == two[1].message and two[0].message.content
    assert two[0].num_cached_tokens > 0


def test_wrong_conversations_are_named(nano):
    with pytest.raises(RequestError, match=r"^messages\[1\].role"):
        nano.chat([SAY, {"role": "owner"}])
    with pytest.raises(RequestError, match=r"^conversations\[1\]: messages: must hold"):
        nano.chat([[SAY], []])
    with pytest.raises(RequestError, match=r"^prompts\[1\] must be a text or a list"):
        nano.generate(["a", ["b"]])
    with pytest.raises(ContextLengthError, match=r"^prompts\[1\]: the prompt has 1024 tokens"):
        nano.generate([[1], [1] * 1024])
    assert not nano.core.has_work


def test_text_needs_a_tokenizer(llm):
    with pytest.raises(ConfigError, match="a text prompt needs a tokenizer"):
        llm.generate("text")
    with pytest.raises(ConfigError, match="chat needs a tokenizer"):
        llm.chat([SAY])
