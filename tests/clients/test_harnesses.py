"""lm-eval with tasks of our own: generation over the chat route, log-likelihoods over the completions route with the remote tokenizer."""

import json
from pathlib import Path

import pytest

from .installed import programs
from .offline import run
from .scripted_server import NAME

pytestmark = pytest.mark.clients

TASKS = Path(__file__).parent / "lm_eval_tasks"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture
def evaluate(tmp_path):
    """Run lm-eval; the results of the task and its samples in order."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for file in TASKS.iterdir():  # a task names its data by an absolute path
        (tasks / file.name).write_text(file.read_text("utf-8").replace("DATA/", f"{tasks}/"), "utf-8")

    def run_task(task: str, kind: str, url: str, *words: str):
        command = [
            *(str(programs("lm-eval") / "lm-eval"), "run", "--model", kind, "--tasks", task, "--include_path", str(tasks)),
            *("--model_args", f"model={NAME},base_url={url},num_concurrent=2,max_retries=1,max_length=4096", "--log_samples"),
            *("--output_path", str(tmp_path / "results"), *words),
        ]
        finished = run(command, home=tmp_path / "home", **OFFLINE)
        finished.succeeded()
        (results,) = (tmp_path / "results").rglob("results_*.json")
        (samples,) = (tmp_path / "results").rglob("samples_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
        scores = json.loads(results.read_text("utf-8"))["results"][task]
        return scores, sorted(lines, key=lambda sample: sample["doc_id"]), finished.errors + finished.output

    return run_task


def test_lm_eval_generation(server, evaluate, requests):
    scores, samples, _ = evaluate("openglm_say", "local-chat-completions", f"{server.url}/chat/completions", "--apply_chat_template")
    assert [sample["resps"][0][0] for sample in samples] == ["river", "stone", "cloud", "Zürich"]
    assert scores["exact_match,none"] == 0.75
    assert requests.paths()["POST /v1/chat/completions"] == 4
    assert not requests.refused()


def test_lm_eval_loglikelihood_through_the_remote_tokenizer(server, model_dir, evaluate, requests):
    scores, samples, log = evaluate("openglm_choose", "local-completions", f"{server.url}/completions")
    assert "Using tokenizer remote" in log
    measured = [[(float(value), greedy == "True") for ((value, greedy),) in sample["resps"]] for sample in samples]
    expected = _reference(model_dir)
    for row, reference in zip(measured, expected, strict=True):
        assert [value for value, _ in row] == pytest.approx([value for value, _ in reference], abs=2e-3)
        assert [greedy for _, greedy in row] == [greedy for _, greedy in reference]
    best = [max(range(3), key=lambda i: row[i][0]) for row in expected]
    answers = [json.loads(line)["answer"] for line in (TASKS / "choose.jsonl").read_text("utf-8").splitlines()]
    assert scores["acc,none"] == pytest.approx(sum(a == b for a, b in zip(best, answers, strict=True)) / 3)
    assert requests.paths()["POST /tokenize"] > 0
    assert not requests.refused()


def _reference(model_dir) -> list[list[tuple[float, bool]]]:
    """Log-likelihood and greediness of every ending, by transformers on the same checkpoint."""
    import torch
    from transformers import Glm4MoeForCausalLM

    from openglm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_dir(model_dir)
    model = Glm4MoeForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    rows = []
    for line in (TASKS / "choose.jsonl").read_text("utf-8").splitlines():
        document = json.loads(line)
        row = []
        for choice in document["choices"]:
            context = tokenizer.encode_text(document["question"])
            whole = tokenizer.encode_text(f"{document['question']} {choice}")
            with torch.inference_mode():
                logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            ending = torch.tensor(whole[len(context) :])
            before = logprobs[len(context) - 1 : -1]
            value = before.gather(1, ending[:, None]).sum().item()
            row.append((value, bool((before.argmax(-1) == ending).all())))
        rows.append(row)
    return rows
