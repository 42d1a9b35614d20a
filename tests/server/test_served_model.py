import json

import msgspec
import pytest
from text_model import text_model

from openglm.config.server import SamplingDefaults, ServerConfig
from openglm.engine.protocol import EngineInfo
from openglm.errors import ConfigError
from openglm.server.banner import banner
from openglm.server.served_model import sampling_defaults

INFO = EngineInfo("m", 300, 1024, 16, 1, "float32", "cpu", ("dtype float32: because",))


def defaults(tmp_path, document, **overrides):
    path = tmp_path / "generation_config.json"
    if document is not None:
        path.write_text(document if isinstance(document, str) else json.dumps(document))
    return sampling_defaults(path, overrides)


def test_defaults_are_neutral_without_a_file_and_with_only_stop_ids(tmp_path):
    assert defaults(tmp_path, None) == defaults(tmp_path, {"eos_token_id": [1, 2], "pad_token_id": 1}) == SamplingDefaults()
    assert sampling_defaults(None, {}) == SamplingDefaults()


def test_the_models_own_defaults_hold_and_overrides_win(tmp_path):
    document = {"temperature": 0.6, "top_p": 0.95, "top_k": -1, "min_p": None, "do_sample": True}
    assert defaults(tmp_path, document, temperature=1) == SamplingDefaults(temperature=1, top_p=0.95)
    assert defaults(tmp_path, {"do_sample": False}).temperature == 0.0


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold an object"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_k": True}, "top_k must be a number"),
        ({"top_k": 1.5}, "top_k must be a number"),
        ({"top_p": 0}, "top_p must lie above 0"),
        ({"temperature": -1}, "temperature must lie between 0 and 2"),
    ],
)
def test_wrong_defaults_are_named(tmp_path, document, words):
    with pytest.raises(ConfigError, match=words):
        defaults(tmp_path, document)


def test_an_unknown_override_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no sampling default is called 'temprature'"):
        defaults(tmp_path, None, temprature=1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"port": 70_000}, "--port"),
        ({"max_queued_requests": -1}, "--max-queued-requests"),
        ({"drain_timeout_s": -1}, "--shutdown-timeout"),
        ({"api_keys": ("",)}, "--api-key"),
        ({"api_keys": ("a ",)}, "--api-key"),
        ({"served_model_names": ("",)}, "--served-model-name"),
    ],
)
def test_a_configuration_that_cannot_run_names_the_flag(fields, words):
    with pytest.raises(ConfigError, match=words):
        ServerConfig(**fields)


def test_keys_do_not_show_in_a_printed_configuration():
    assert "secret" not in repr(ServerConfig(api_keys=("secret",)))


def lines(**config):
    return banner(ServerConfig(**config), text_model(names=("m", "other")), INFO, port=8000, num_pages=64, seconds=1.5)


def test_the_banner_says_how_to_use_the_server_and_what_fits():
    text = lines()
    assert "m is ready (1.5 s) on cpu, float32, up to 1 draft token(s) per step" in text
    assert "http://127.0.0.1:8000/v1" in text and "curl http://127.0.0.1:8000/v1/chat/completions" in text
    assert "4,096 tokens: room for 4 session(s) of 1K tokens, each up to 1,024, 16 at once" in text
    assert "dtype float32: because" in text and "m, other" in text
    assert "WARNING" not in text


def test_the_banner_tells_of_a_narrow_cache_a_host_tier_and_a_time_limit():
    info = msgspec.structs.replace(INFO, kv_cache_dtype="fp8_e4m3", num_host_pages=10, request_timeout_s=2.5)
    text = banner(ServerConfig(), text_model(), info, port=8000, num_pages=64, seconds=1.5)
    assert "16 at once, fp8_e4m3" in text and "640 tokens of cached prefixes in host memory" in text and "2.5 s per request" in text
    assert "host tier" not in lines() and "time limit" not in lines()


@pytest.mark.parametrize(("host", "key", "warns"), [("0.0.0.0", "", True), ("::", "", True), ("0.0.0.0", "k", False), ("::1", "", False)])
def test_an_open_door_is_warned_about(host, key, warns):
    text = lines(host=host, api_keys=(key,) if key else ())
    assert ("WARNING: anyone who can reach" in text) == warns
    assert ("Authorization: Bearer KEY" in text) == bool(key)
    assert ("http://127.0.0.1:8000" in text) == (host == "0.0.0.0")
