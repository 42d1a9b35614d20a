"""`glm serve` as a process: the port before the model, the banner, signals, exit codes."""

import json
import signal

import httpx
import pytest
from serve_process import ServeProcess

from openglm.cli.main import main

ENDLESS = {"messages": [{"role": "user", "content": "Go on"}], "ignore_eos": True, "stream": True}
SHORT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}


@pytest.fixture
def serve(capfd, logging_restored):
    """Run a `glm serve` that is expected to refuse, in this process; (exit code, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["serve", *map(str, arguments)])
        return left.value.code, capfd.readouterr().err

    return run


def test_the_first_signal_lets_answers_finish(scripted_dir):
    with ServeProcess(scripted_dir, "--served-model-name", "mine") as server:
        assert server.banner.startswith("loading mine ...\nmine is ready")
        assert "curl http://127.0.0.1:" in server.banner
        assert "tokens: room for" in server.banner
        body = {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, "stream": True, "max_tokens": 150}
        with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert server.exit_code() == 0
        assert "1 running answer(s) may finish" in server.errors and "Traceback" not in server.errors


def test_the_second_signal_ends_answers_with_an_error_event(scripted_dir):
    with ServeProcess(scripted_dir, "--api-key", "secret") as server:
        assert "secret" not in server.banner
        headers = {"authorization": "Bearer secret"}
        with httpx.Client(headers=headers, timeout=60) as client:
            assert httpx.get(f"{server.url}/models").status_code == 401
            with client.stream("POST", f"{server.url}/chat/completions", json=ENDLESS) as response:
                lines = response.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                ready = server.url.removesuffix("/v1") + "/ready"
                while client.get(ready).status_code == 200:
                    pass
                refused = client.post(f"{server.url}/chat/completions", json=SHORT)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
                server.process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["error"]["code"] == "engine_unavailable"
        assert server.exit_code() == 1
        assert "Traceback" not in server.errors


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json: no such file"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: cannot read the tokenizer"),
        (lambda d: (d / "generation_config.json").write_text("{"), "generation_config.json: cannot be read as JSON"),
        (lambda d: (d / "generation_config.json").write_text('{"temperature": "hot"}'), "temperature must be a number"),
    ],
)
def test_a_model_directory_that_lacks_something_is_refused_with_one_line(serve, scripted_dir, tmp_path, spoil, words):
    for file in scripted_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.suffix == ".json" else b"")
    spoil(tmp_path)
    code, errors = serve(tmp_path)
    assert code == 2
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_a_missing_directory_is_refused(serve, tmp_path):
    code, errors = serve(tmp_path / "nowhere")
    assert code == 2
    assert errors.startswith("glm: ") and "no such model directory" in errors and len(errors.splitlines()) == 1


def test_a_hub_name_is_told_how_to_become_a_directory(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, errors = serve("zai-org/GLM-4.5-Air")
    assert code == 2 and "hf download zai-org/GLM-4.5-Air --local-dir GLM-4.5-Air" in errors
    (tmp_path / "weights").write_bytes(b"")
    assert "is a file" in serve(tmp_path / "weights")[1]


def test_a_checkpoint_that_does_not_fit_ends_the_start_with_its_mismatches(serve, scripted_dir, tmp_path):
    for file in scripted_dir.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    code, errors = serve(tmp_path, "--port", 0)
    assert code == 2
    assert errors.count("truncated") == 1 and "Traceback" not in errors and "Fatal" not in errors


def test_a_taken_port_is_told_before_the_model_is_loaded(serve, scripted_dir, live):
    code, errors = serve(scripted_dir, "--port", live.port)
    assert code == 2
    assert f"cannot listen on 127.0.0.1 port {live.port}" in errors
