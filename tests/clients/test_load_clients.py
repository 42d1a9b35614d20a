"""GuideLLM and AIPerf: a short load from prompts of our own; what they counted must be what the server answered."""

import json

import pytest

from .installed import programs
from .offline import run
from .scripted_server import NAME

pytestmark = pytest.mark.clients

COUNT = 8
OUTPUT_TOKENS = 24


def test_guidellm(server, model_dir, tmp_path, requests):
    prompts, report = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    lines = [{"prompt": f'Please say the word "river{i}".', "output_tokens_count": OUTPUT_TOKENS} for i in range(COUNT)]
    prompts.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    command = [
        *(str(programs("guidellm") / "guidellm"), "run", "--backend", f"kind=openai_http,target={server.root}"),
        *("--profile", "kind=concurrent,streams=3", "--constraint", f"kind=max_requests,count={COUNT}"),
        *("--data", f"kind=json_file,path={prompts}", "--tokenizer", f"kind=hf_auto,model={model_dir}"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
    ]
    run(command, home=tmp_path / "home", HF_HUB_OFFLINE="1").succeeded()
    (benchmark,) = json.loads(report.read_text("utf-8"))["benchmarks"]
    answered = benchmark["requests"]["successful"]
    assert len(answered) == COUNT and not benchmark["requests"]["errored"]
    for request in answered:
        assert request["reasoning_output"] == "Let me look."
        assert request["output"].startswith("river")  # and goes on: it sends ignore_eos with a length
    counted = benchmark["metrics"]["output_token_count"]["successful"]
    assert counted["mean"] == OUTPUT_TOKENS
    first = benchmark["metrics"]["time_to_first_token_ms"]["successful"]["mean"]
    first_of_answer = benchmark["metrics"]["time_to_first_output_token_ms"]["successful"]["mean"]
    assert 0 < first < first_of_answer  # thinking comes before
    assert requests.paths()["POST /v1/chat/completions"] == COUNT
    assert not requests.refused()


def test_aiperf(server, model_dir, tmp_path, requests):
    home = tmp_path / "home"
    tokenizer = home / "tokenizer"  # it takes a relative path for a local folder, an absolute one for a name at a hub
    tokenizer.mkdir(parents=True)
    for name in ("tokenizer.json", "config.json"):
        (tokenizer / name).write_bytes((model_dir / name).read_bytes())
    prompts = home / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"text": f'Please say the word "river{i}".'}) for i in range(COUNT)), "utf-8")
    command = [
        *(str(programs("aiperf") / "aiperf"), "profile", "--model", NAME, "--url", server.root, "--endpoint-type", "chat", "--streaming"),
        *("--input-file", str(prompts), "--custom-dataset-type", "single_turn", "--concurrency", "2", "--request-count", str(COUNT)),
        *("--tokenizer", "./tokenizer", "--use-server-token-count", "--ui", "none", "--no-gpu-telemetry"),
        *("--artifact-dir", str(tmp_path / "results")),
    ]
    run(command, home=home).succeeded()
    results = json.loads((tmp_path / "results" / "profile_export_aiperf.json").read_text("utf-8"))
    assert results["request_count"]["avg"] == COUNT and not results["error_summary"]
    assert results["total_usage_reasoning_tokens"]["avg"] == COUNT * results["usage_reasoning_tokens"]["avg"] > 0
    assert 0 < results["time_to_first_token"]["avg"] <= results["time_to_first_output_token"]["avg"]
    metrics = json.loads((tmp_path / "results" / "server_metrics_export.json").read_text("utf-8"))
    assert "vllm:generation_tokens" in json.dumps(metrics)
    assert requests.paths()["POST /v1/chat/completions"] == COUNT
    assert not requests.refused()
