"""`--config`: the flags of a file, under those of the environment and of the line."""

import json

import pytest
import typer.main

from openglm.cli.main import _verb
from openglm.config.server import ConnectionLimits, RequestLimits, ServerConfig, read_key_file
from openglm.errors import ConfigError


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """What `glm serve` would run with, given the text of a file, a line and variables."""

    def parse(text, *line, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "glm.yaml").write_text(text)
        return typer.main.get_command(_verb("serve")).make_context("serve", ["--config", str(tmp_path / "glm.yaml"), *line]).params

    return parse


def test_a_file_mirrors_the_flags_of_every_server(parsed):
    params = parsed(
        """
        model: some/dir
        served-model-name: [a, b]
        max_model_len: 4096
        max-running-requests: 7            # SGLang's name
        enable-prefix-caching: false
        trust-remote-code: false
        deterministic: true
        api-key: "12345"
        allowed-origins: ["https://a.example"]
        speculative-config: {method: mtp, num_speculative_tokens: 2}
        override-generation-config: {temperature: 0.5}
        request-timeout: 1.5
        seed:
        limit-body-bytes: 1000
        """
    )
    assert params["model"] == "some/dir"
    assert params["served_model_name"] == ["a", "b"]
    assert (params["max_model_len"], params["max_num_seqs"], params["num_speculative_tokens"]) == (4096, 7, 2)
    assert (params["enable_prefix_caching"], params["deterministic"], params["seed"]) == (False, True, None)
    assert (params["api_key"], params["allowed_origins"]) == (["12345"], ["https://a.example"])
    assert json.loads(params["override_generation_config"]) == {"temperature": 0.5}
    assert (params["request_timeout"], params["limit_body_bytes"]) == (1.5, 1000)


def test_the_line_wins_over_the_environment_and_that_over_the_file(parsed):
    file = "model: from-file\nport: 1\nmax-model-len: 1\ncontext-length: 1\nenable-prefix-caching: true\napi-key: [x, y]\nseed: 5\n"
    params = parsed(file, "-c", "3", "--no-enable-prefix-caching", GLM_PORT="2", GLM_MAX_MODEL_LEN="2", GLM_API_KEY="z")
    assert (params["max_model_len"], params["port"], params["seed"]) == (3, 2, 5)
    assert (params["enable_prefix_caching"], params["api_key"], params["model"]) == (False, ["z"], "from-file")
    assert parsed(file, "from-line", GLM_MODEL="from-env")["model"] == "from-line"
    assert parsed(file)["model"] == "from-env"


def test_a_variable_may_name_the_file(tmp_path, monkeypatch):
    (tmp_path / "glm.yaml").write_text("port: 77")
    monkeypatch.setenv("GLM_CONFIG", str(tmp_path / "glm.yaml"))
    assert typer.main.get_command(_verb("serve")).make_context("serve", []).params["port"] == 77


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: [", "line 1: not valid YAML"),
        ("- port", "one flag per line"),
        ("prot: 80", "did you mean --port"),
        ("tensor-parallel-size: 8", "one device"),
        ("1: 2", "no name of a flag"),
        ("seed: 2020-01-01", "quote it"),
        ("x: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("api-key: s3cret: oops", "not valid YAML"),
        ("a: " + "x" * (1 << 20), "larger than"),
    ],
)
def test_a_wrong_file_is_one_clear_error_that_quotes_no_key(parsed, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parsed(text)
    assert "s3cret" not in str(caught.value)


def test_a_missing_file_is_told():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        typer.main.get_command(_verb("serve")).make_context("serve", ["--config", "nowhere.yaml"])


def test_every_limit_has_a_flag_that_reaches_the_configuration(monkeypatch):
    """Each flag is set to a value of its own, and `glm serve` is stopped where it would start."""
    seen = []

    def run_server(config, engine, model, *, announce):
        del engine, model, announce
        seen.append(config)
        return 0

    monkeypatch.setattr("openglm.server.serve.run_server", run_server)
    monkeypatch.setattr("openglm.log.set_up_logging", lambda *_, **__: None)
    fields = [(cls, name) for cls in (RequestLimits, ConnectionLimits) for name in vars(cls())]
    words = [word for i, (_, name) in enumerate(fields) for word in (f"--limit-{name.replace('_', '-')}", str(100 + i))]
    words += [
        "--admin-api-key",
        "boss",
        "--allowed-host",
        "box",
        "--allowed-origins",
        '["https://a", "https://b"]',
        "--max-queued-tokens",
        "9",
    ]
    with pytest.raises(SystemExit):
        _verb("serve")(words, prog_name="glm serve")
    (config,) = seen
    for i, (cls, name) in enumerate(fields):
        holder = config.limits if cls is RequestLimits else config.connection_limits
        assert getattr(holder, name) == 100 + i, name
    assert (config.admin_api_keys, config.allowed_hosts, config.max_queued_tokens) == (("boss",), ("box",), 9)
    assert config.allowed_origins == ("https://a", "https://b")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RequestLimits(body_bytes=-1), "--limit-body-bytes must be a number of at least 0"),
        (lambda: ConnectionLimits(head_read_s=0), "--limit-head-read-s"),
        (lambda: ConnectionLimits(idle_s=float("nan")), "--limit-idle-s"),
        (lambda: ServerConfig(admin_api_keys=("a",), api_keys=("a",)), "must differ"),
        (lambda: ServerConfig(admin_api_keys=("",)), "--admin-api-key"),
        (lambda: ServerConfig(api_keys=("schlüssel",)), "printable ASCII"),
        (lambda: ServerConfig(allowed_origins=("example.org",)), "--allowed-origins takes origins"),
        (lambda: ServerConfig(allowed_origins=("https://example.org/page",)), "--allowed-origins takes origins"),
        (lambda: ServerConfig(max_queued_tokens=0), "--max-queued-tokens"),
        (lambda: ServerConfig(keep_alive_s=0), "--keep-alive"),
    ],
)
def test_a_value_with_which_nothing_works_names_its_flag(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_keys_come_from_a_file_without_being_quoted(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n  second  \n")
    assert read_key_file(str(file)) == ("first", "second")
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_key_file(str(file))
    file.write_bytes(b"\xff\xfesecret")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        read_key_file(str(file))
    assert "secret" not in str(caught.value)
