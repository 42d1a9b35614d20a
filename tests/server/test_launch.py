"""`glm launch`: what each agent is told, that the user's own settings stay out of it, and what is said when something is missing."""

import json
import sys
import tomllib
from pathlib import Path

import pytest

from openglm.cli.agents import AGENTS
from openglm.cli.main import main

# Stands in for an agent: writes down how it was called and what it could read, then ends with 7.
AGENT = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
log = Path(os.environ["AGENT_LOG"])
seen = json.loads(log.read_text()) if log.exists() else []
config = os.environ.get("OPENCODE_CONFIG") or os.environ.get("CLINE_GLOBAL_SETTINGS_PATH")
text = Path(config).read_text() if config else ""
mode = oct(Path(config).parent.stat().st_mode & 0o777) if config else ""
log.write_text(json.dumps(seen + [{{"arguments": sys.argv[1:], "environment": dict(os.environ), "config": text, "mode": mode}}]))
sys.exit(0 if sys.argv[1:2] == ["auth"] and "BROKEN" not in os.environ else 7)
"""


@pytest.fixture
def agents(tmp_path, monkeypatch):
    """Programs of the agents' names on the path; returns how they were run."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for agent in AGENTS.values():
        (programs / agent.program).write_text(AGENT)
        (programs / agent.program).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("AGENT_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the user's own")
    return lambda: json.loads((tmp_path / "log").read_text())


def launch(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(["launch", *arguments])
    output = capsys.readouterr()
    return left.value.code, output.out, output.err


def test_claude_is_led_by_its_environment(live, agents, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    code, _, _ = launch(capsys, "claude", "--url", live.url, "--api-key-env", "MY_KEY", "--model", "alias", "-p", "read the file")
    (run,) = agents()
    assert code == 7  # the agent's own
    assert run["arguments"] == ["-p", "read the file"]
    environment = run["environment"]
    assert environment["ANTHROPIC_BASE_URL"] == live.root
    assert environment["ANTHROPIC_AUTH_TOKEN"] == "s3cret"
    assert environment["ANTHROPIC_MODEL"] == environment["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "alias"
    assert environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "2048"
    assert "ANTHROPIC_API_KEY" not in environment


def test_opencode_gets_a_file_in_a_private_folder_that_goes_away(live, agents, capsys):
    code, _, _ = launch(capsys, "opencode", "--url", live.root, "--", "run", "hello")
    (run,) = agents()
    assert (code, run["arguments"], run["mode"]) == (7, ["run", "hello"], "0o700")
    config = json.loads(run["config"])
    provider = config["provider"]["openglm"]
    assert config["model"] == "openglm/scripted"
    assert provider["options"] == {"baseURL": live.url, "apiKey": "{env:OPENGLM_AGENT_KEY}"}
    assert provider["models"]["scripted"]["limit"] == {"context": 2048, "output": 512}
    assert run["environment"]["OPENGLM_AGENT_KEY"] == "none"
    assert run["environment"]["OPENCODE_DISABLE_MODELS_FETCH"] == "1"
    assert not Path(run["environment"]["OPENCODE_CONFIG"]).exists()


def test_codex_gets_overrides_that_are_toml(live, agents, capsys):
    launch(capsys, "codex", "--url", live.root, "exec", "hello")
    (run,) = agents()
    words = run["arguments"]
    assert words[-2:] == ["exec", "hello"]
    settings = tomllib.loads("\n".join(words[i + 1] for i, word in enumerate(words) if word == "-c"))
    assert settings["model_provider"] == "openglm" and settings["model"] == "scripted"
    provider = settings["model_providers"]["openglm"]
    assert (provider["base_url"], provider["wire_api"], provider["env_key"]) == (live.url, "responses", "OPENGLM_AGENT_KEY")
    assert settings["analytics"]["enabled"] is settings["check_for_update_on_startup"] is settings["features"]["plugins"] is False


def test_cline_signs_in_first_in_a_folder_of_its_own(live, agents, capsys, monkeypatch):
    launch(capsys, "cline", "--url", live.root, "hello")
    sign_in, run = agents()
    assert sign_in["arguments"] == ["auth", "-p", "openai", "-b", live.url, "-k", "none", "-m", "scripted"]
    assert run["arguments"] == ["hello"]
    assert sign_in["environment"]["CLINE_DIR"] == run["environment"]["CLINE_DIR"] != ""
    assert json.loads(run["config"]) == json.loads(sign_in["config"]) == {"telemetryOptOut": True, "autoUpdateEnabled": False}
    assert run["environment"]["CLINE_SESSION_BACKEND_MODE"] == "local"
    monkeypatch.setenv("BROKEN", "1")
    code, _, errors = launch(capsys, "cline", "--url", live.root)
    assert code == 2 and "could not be set up" in errors


@pytest.mark.parametrize("agent", AGENTS)
def test_print_shows_everything_but_the_key_and_runs_nothing(live, capsys, monkeypatch, tmp_path, agent):
    monkeypatch.setenv("MY_KEY", "s3cret")
    monkeypatch.setenv("PATH", str(tmp_path))
    main_exit = None
    try:
        main(["launch", agent, "--print", "--url", live.root, "--api-key-env", "MY_KEY"])
    except SystemExit as left:
        main_exit = left.code
    output = capsys.readouterr().out
    assert not main_exit
    assert live.root in output and "s3cret" not in output and "KEY" in output
    assert output.splitlines()[-1].startswith(AGENTS[agent].program)


def test_a_context_too_small_for_the_agent_is_said_before_it_starts(live, agents, capsys):
    code, _, errors = launch(capsys, "opencode", "--url", live.root, "run", "hello")
    assert code == 7 and len(agents()) == 1  # it runs all the same: its prompt may have been cut down
    assert errors.startswith("glm: warning: scripted has room for 2048 tokens, and the instructions of opencode alone take some 7000")


def test_what_is_missing_is_said_in_one_line(live, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments, words in (
        (("claude", "--url", live.root), "claude is not installed; get it with: npm install"),
        (("clod",), "no agent is called clod"),
        (("claude", "--url", "http://127.0.0.1:1"), "glm serve starts one"),
        (("claude", "--url", live.root, "--model", "gpt-9"), "serves no model gpt-9; it has: scripted, alias"),
        (("claude", "--url", "ftp://x"), "give an address such as"),
        (("claude", "--url", live.root + "/nowhere"), "lists no model (status 404)"),
        (("claude", "--url", live.root, "--api-key-env", "NOT_SET"), "NOT_SET is not set"),
    ):
        code, _, errors = launch(capsys, *arguments)
        assert code == 2 and words in errors and len(errors.splitlines()) == 1, errors
