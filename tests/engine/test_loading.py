"""From a model directory to an engine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openglm.checkpoint import save_model
from openglm.config import variant
from openglm.config.engine import QUANTIZATIONS, EngineConfig, Machine, resolve
from openglm.engine.llm import LLM
from openglm.engine.loading import load_engine
from openglm.engine.request import SamplingParams
from openglm.errors import CheckpointError, ConfigError
from openglm.model import GlmModel
from openglm.ops import cpu
from openglm.text.tokenizer import Tokenizer
from openglm.train.tokenizer import train_tokenizer

PROMPTS = [[5, 6, 7], [8] * 70]
PARAMS = SamplingParams(max_tokens=10, temperature=0.8, seed=4, ignore_eos=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    config = variant("tiny-355b")
    save_model(GlmModel(config).init_weights(3), directory)
    (directory / "tokenizer.json").write_text(train_tokenizer(["some text to learn from"] * 3, num_tokens=300), "utf-8")
    return directory


@pytest.fixture
def directory(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def load(directory: Path, **settings) -> LLM:
    return LLM(str(directory), max_model_len=256, threads=1, seed=0, **settings)


def test_a_saved_model_generates_what_it_generated_in_memory(original):
    llm = load(original)
    config, _ = resolve(EngineConfig(max_model_len=256, seed=0), variant("tiny-355b"), Machine("cpu", 2, 4 << 30))
    in_memory = LLM.from_model(GlmModel(variant("tiny-355b")).init_weights(3), Tokenizer.from_dir(original), config)
    results = llm.generate(PROMPTS, PARAMS)
    assert [r.token_ids for r in results] == [r.token_ids for r in in_memory.generate(PROMPTS, PARAMS)]
    assert llm.core.num_tokens == llm.tokenizer.num_tokens == 300
    assert all(token < 300 for r in results for token in r.token_ids), "rows of the head behind the tokenizer are padding"


def test_every_source_of_stop_ids_counts(directory):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [17, 18]}), "utf-8")
    llm = load(directory)
    assert {17, 18, *llm.tokenizer.stop_ids, *variant("tiny-355b").eos_token_id} == llm.core.stop_ids


def test_stop_strings_are_found_in_real_text(original):
    llm = load(original)
    (plain,) = llm.generate(PROMPTS[:1], PARAMS)
    text = llm.tokenizer.decode(plain.token_ids[:4])
    (stopped,) = llm.generate(PROMPTS[:1], [SamplingParams(max_tokens=10, temperature=0.8, seed=4, ignore_eos=True, stop=(text[-2:],))])
    assert stopped.finish_reason == "stop" and stopped.stop_reason == text[-2:]
    assert llm.tokenizer.decode(stopped.token_ids).endswith(text[-2:])


def test_bfloat16_on_request(original):
    llm = load(original, dtype="bfloat16")
    assert next(llm.core.runner.model.parameters()).dtype == torch.bfloat16
    assert [len(r.token_ids) for r in llm.generate(PROMPTS, PARAMS)] == [10, 10]


@pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")
@pytest.mark.parametrize("to", QUANTIZATIONS)
def test_every_format_generates_and_says_how_far_loading_is(original, to):
    phases: list[str] = []
    loaded = load_engine(EngineConfig(model=str(original), max_model_len=256, quantization=to, seed=0), on_phase=phases.append)
    llm = LLM.from_core(loaded.core, loaded.tokenizer)
    assert [len(r.token_ids) for r in llm.generate(PROMPTS, PARAMS)] == [10, 10]
    assert loaded.core.runner.model.layers[-1].self_attn.o_proj.packed.format == to
    head = {"fp8": "float32", "w8a8": "w8a8"}.get(to, "int8")
    assert loaded.core.runner.model.lm_head.packed.format == head
    shares = [int(phase.split()[-2]) for phase in phases if phase.endswith("%")]
    assert shares == sorted(set(shares)) and shares[-1] == 100 and len(shares) <= 21


def test_an_unknown_quantization_is_refused_by_name():
    with pytest.raises(ConfigError, match="fp8, int8, int4, w8a8; got 'int3'"):
        EngineConfig(quantization="int3")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(directory):
    save_model(GlmModel(replace(variant("tiny-355b"), vocab_size=299, eos_token_id=(1,), pad_token_id=1)).init_weights(3), directory)
    with pytest.raises(CheckpointError, match=r"300 tokens.*299"):
        load(directory)


def test_a_checkpoint_without_its_mtp_layer_runs_only_without_speculation(directory):
    plain = GlmModel(replace(variant("tiny-355b"), num_nextn_predict_layers=0)).init_weights(3)
    save_model(plain, directory)
    assert load(directory).core.proposer is None
    config = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}), "utf-8")
    with pytest.raises(CheckpointError, match=r"MTP|model\.layers\.5"):
        load(directory)
    assert len(load(directory, num_speculative_tokens=0).generate(PROMPTS, PARAMS)[0].token_ids) == 10


@pytest.mark.parametrize("text", ["[1]", "{", '{"eos_token_id": ["x"]}', '{"eos_token_id": 100000}'])
def test_a_broken_generation_config_is_named(directory, text):
    (directory / "generation_config.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        load(directory)


@pytest.mark.parametrize("max_model_len", [2, 10])
def test_a_context_shorter_than_the_warm_up_can_be_used(original, max_model_len):
    llm = LLM(str(original), max_model_len=max_model_len, threads=1, seed=0)
    assert llm.generate([[5]], PARAMS)[0].finish_reason == "length"


def test_an_unusable_device_is_named(original):
    with pytest.raises(ConfigError, match="tpu"):
        load(original, device="tpu")
