"""The offline interface."""

import pytest
from engine_runs import make_core

from openglm.engine.llm import LLM
from openglm.engine.request import SamplingParams
from openglm.errors import CheckpointError, ConfigError, RequestError

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
    assert "2/2" in capsys.readouterr().out


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
