import pytest
import typer.main

from openglm.cli import chat, flags, generate, serve
from openglm.cli.main import _verb
from openglm.errors import ConfigError


def own_flags(verb):
    command = typer.main.get_command(_verb(verb))
    options = [param for param in command.params if param.param_type_name == "option"]
    return {name: not option.is_flag for option in options for name in (*option.opts, *option.secondary_opts)}


SERVE = own_flags("serve")
README_SERVED = "--served-model-name glm-4.5-air --host 0.0.0.0 --port 8000"


def translate(line, own=None):
    return flags.translate(line.split(), SERVE if own is None else own)


# The commands of the zai-org/GLM-4.5 README and its history, with only the program's name changed. They ask for several GPUs,
# which is the one thing this build must refuse; with one GPU every other flag is understood.
README = {
    "vllm 2025": "zai-org/GLM-4.5-Air --tensor-parallel-size 8 --tool-call-parser glm45 --reasoning-parser glm45 --enable-auto-tool-choice"
    " --served-model-name glm-4.5-air",
    "vllm 2026": "zai-org/GLM-4.5-Air --tensor-parallel-size 8 --tool-call-parser glm45 --reasoning-parser glm45 --enable-auto-tool-choice"
    " --served-model-name glm-4.5-air --speculative-config.method mtp --speculative-config.num_speculative_tokens 1",
    "sglang bf16": "--model-path zai-org/GLM-4.5-Air --tp-size 8 --tool-call-parser glm45 --reasoning-parser glm45"
    " --speculative-algorithm EAGLE --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4"
    f" --mem-fraction-static 0.7 {README_SERVED}",
    "sglang fp8": "--model-path zai-org/GLM-4.5-Air-FP8 --tp-size 4 --tool-call-parser glm45 --reasoning-parser glm45"
    " --speculative-algorithm EAGLE --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4"
    f" --mem-fraction-static 0.7 --disable-shared-experts-fusion {README_SERVED}",
}


@pytest.mark.parametrize("line", README.values(), ids=README.keys())
def test_readme_commands_need_only_another_program_name(line):
    with pytest.raises(ConfigError, match=r"-size [48]: this build runs on one device; leave the flag out or give 1"):
        translate(line)
    result = translate(line.replace("-size 8", "-size 1").replace("-size 4", "-size 1"))
    assert result.arguments[0].startswith("zai-org/GLM-4.5-Air")
    assert result.num_positionals == 1
    assert set(result.flags) <= set(SERVE)
    if "speculative" in line:
        wanted = "1" if "mtp" in line else "3"
        assert result.arguments[-2:] == ["--num-speculative-tokens", wanted]


def test_a_flag_without_effect_says_so_in_one_line():
    no_ops = "--tool-call-parser glm45 --enable-auto-tool-choice --disable-shared-experts-fusion --async-scheduling --trust-remote-code"
    result = translate(no_ops)
    assert result.arguments == []
    assert len(result.notes) == 5
    assert all(note.startswith("--") and "\n" not in note for note in result.notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-tp 2", "one device"),
        ("--tp 2", "one device"),
        ("--dp-size 2", "one device"),
        ("--n-cpu-moe 16", "--cpu-offload-gb"),
        ("--hicache-ratio 2", "--kv-offloading-size"),
        ("--cache-ram 8192", "--kv-offloading-size"),
        ("--schedule-policy random", "by priority"),
        ("--speculative-algorithm EAGLE3", "--num-speculative-tokens"),
        ("--speculative-config.method suffix", "--num-speculative-tokens"),
        ("--tool-call-parser hermes", "GLM has one format"),
        ("--enable-lora", "merge the adapter"),
        ("--disaggregation-mode prefill", "not here yet"),
        ("--tokenizer somewhere", "model directory"),
        ("--base-gpu-id 4", "--device"),
    ],
)
def test_a_value_that_cannot_be_honoured_names_the_way_out(line, words):
    with pytest.raises(ConfigError, match=words) as caught:
        translate(line)
    assert str(caught.value).startswith(line.split()[0])


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("dir --context-length 8192", "dir --max-model-len 8192"),
        ("dir -c 8192", "dir --max-model-len 8192"),
        ("dir --max_model_len=8192", "dir --max-model-len 8192"),
        ("--model dir", "dir"),
        ("-m dir --max-running-requests 4 -t 2", "dir --max-num-seqs 4 --threads 2"),
        ("--disable-radix-cache", "--no-enable-prefix-caching"),
        ("-q fp8", "--quantization fp8"),
        ("--disable-cuda-graph --mem_fraction_static=0.8", "--enforce-eager --mem-fraction-static 0.8"),
        ("--enforce-eager --device-memory-utilization 0.8", "--enforce-eager --gpu-memory-utilization 0.8"),
        ("--cpu-offload-gb 16", "--cpu-offload-gb 16"),
        ("--kv_cache_dtype fp8 --enable-hierarchical-cache --hicache-size 30", "--kv-cache-dtype fp8 --kv-offloading-size 30"),
        ("--scheduling-policy priority", ""),
        ("--no-enable-prefix-caching", "--no-enable-prefix-caching"),
        ("--enable-deterministic-inference --random-seed 7", "--deterministic --seed 7"),
        ("--seed -1", "--seed -1"),
        ("--served-model-name a b --port 1", "--served-model-name a --served-model-name b --port 1"),
        ("-- --odd", "-- --odd"),
        ("--speculative-num-draft-tokens 4", "--num-speculative-tokens 3"),
        ("--speculative-num-draft-tokens 4 --speculative-num-steps 2", "--num-speculative-tokens 2"),
        ("--speculative-num-steps 2 --speculative-num-draft-tokens 4", "--num-speculative-tokens 2"),
        ("--spec-method mtp --spec-tokens 2", "--num-speculative-tokens 2"),
        ("--num-speculative-tokens 0 --speculative-num-steps 3", "--num-speculative-tokens 0"),
        ("--speculative_config.num_speculative_tokens=2", "--num-speculative-tokens 2"),
        ("--speculative-algorithm NEXTN", ""),
        ("--speculative-algorithm NGRAM", "--speculative-method ngram"),
        ("--speculative-config.method ngram --speculative-config.prompt_lookup_max 5", "--speculative-method ngram --prompt-lookup-max 5"),
        ("-tp 1 --pp-size=1", ""),
    ],
)
def test_other_spellings_become_ours(line, arguments):
    assert translate(line).arguments == arguments.split()


def test_the_speculative_config_may_be_json():
    result = flags.translate(["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}'], SERVE)
    assert result.arguments == ["--num-speculative-tokens", "2"]
    lookup = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 5, "prompt_lookup_min": 2}'
    result = flags.translate(["--speculative-config", lookup], SERVE)
    assert " ".join(result.arguments) == (
        "--speculative-method ngram --prompt-lookup-max 5 --prompt-lookup-min 2 --num-speculative-tokens 5"
    )
    with pytest.raises(ConfigError, match="glm serve takes ngram"):
        flags.translate(["--spec-type", "ngram"], {"--num-speculative-tokens": True})
    for wrong in ("{", "[]", '{"prompt_lookup_max": "many"}', '{"model": "x"}', '{"num_speculative_tokens": "many"}'):
        with pytest.raises(ConfigError, match="--speculative-config"):
            flags.translate(["--speculative-config", wrong], SERVE)


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("--max-model-length 5", "--max-model-len"),
        ("--prot 80", "--port"),
        ("--tool-parser x", "--tool-call-parser"),
        ("--tp-sizes 8", "--tp-size"),
    ],
)
def test_an_unknown_flag_names_the_nearest(line, near):
    with pytest.raises(ConfigError, match=rf"unknown option .* did you mean {near}\?"):
        translate(line)


def test_an_unknown_flag_that_is_near_to_none_leads_to_the_help():
    with pytest.raises(ConfigError, match=r"^unknown option --xyzzy; --help lists all options$"):
        translate("--xyzzy 1")


def test_a_flag_without_its_value_is_told():
    for line in ("--port", "--tp-size", "--speculative-num-steps"):
        with pytest.raises(ConfigError, match=f"{line} needs a value"):
            translate(line)
    with pytest.raises(ConfigError, match="takes no value"):
        translate("--deterministic=yes")


def test_every_alias_leads_to_a_flag_of_the_server():
    for alias, meaning in flags.ALIASES.items():
        assert alias not in SERVE, f"{alias} is ours already"
        if isinstance(meaning, flags.Rename) and meaning.to != flags.POSITIONAL:
            assert meaning.to in SERVE, alias
            assert SERVE[meaning.to] is not meaning.switch, alias


def test_other_verbs_take_the_aliases_of_flags_they_have():
    generate_flags = own_flags("generate")
    assert translate("--model-path dir hello -c 100", generate_flags).arguments == ["--model", "dir", "hello", "--max-model-len", "100"]
    assert translate("-m dir", own_flags("chat")).arguments == ["dir"]
    with pytest.raises(ConfigError, match="unknown option"):
        translate("--max-running-requests 4", generate_flags)
    assert {module.COMMAND_CLASS for module in (chat, generate, serve)} == {flags.TranslatedCommand}


def parsed(arguments, monkeypatch, verb="serve", **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = typer.main.get_command(_verb(verb))
    return command.make_context(verb, list(arguments)).params


def test_every_flag_can_be_set_by_a_variable_which_a_flag_overrides(monkeypatch):
    variables = {"GLM_MAX_MODEL_LEN": "77", "GLM_API_KEY": "a, b", "GLM_ENABLE_PREFIX_CACHING": "0", "GLM_MODEL": "dir", "GLM_PORT": ""}
    params = parsed([], monkeypatch, **variables)
    assert params["max_model_len"] == 77
    assert params["api_key"] == ["a", "b"]
    assert params["enable_prefix_caching"] is False
    assert params["model"] == "dir"
    assert params["port"] == 8000
    params = parsed(["other", "-c", "5", "--enable-prefix-caching"], monkeypatch)
    assert (params["model"], params["max_model_len"], params["enable_prefix_caching"]) == ("other", 5, True)
    with pytest.raises(ConfigError, match="GLM_DETERMINISTIC must be 1 or 0"):
        parsed([], monkeypatch, GLM_DETERMINISTIC="maybe")
