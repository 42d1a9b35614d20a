"""/metrics: vLLM's names, figures that are true, a dashboard that asks for nothing else."""

import json
import re
from pathlib import Path

import httpx
from canned_engine import CannedEngine
from prometheus_client.parser import text_string_to_metric_families
from test_surface import BODY, client_of, service_of

from openglm.server.metrics import Histogram, token_count_edges

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "openglm.json"
LABELS = {"model_name": "test-model", "engine": "0"}

# What dashboards, autoscalers and load generators of others read.
VLLM = """
    num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info prefix_cache_queries_total prefix_cache_hits_total
    prompt_tokens_total prompt_tokens_cached_total generation_tokens_total num_preemptions_total request_success_total
    time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket request_time_per_output_token_seconds_bucket
    e2e_request_latency_seconds_bucket request_queue_time_seconds_bucket request_prefill_time_seconds_bucket
    request_decode_time_seconds_bucket request_inference_time_seconds_bucket request_prompt_tokens_bucket
    request_generation_tokens_bucket request_params_max_tokens_bucket iteration_tokens_total_bucket
    spec_decode_num_drafts_total spec_decode_num_draft_tokens_total spec_decode_num_accepted_tokens_total
"""


def samples_of(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scraped:
    """Samples by name and some of their labels."""

    def __init__(self, text) -> None:
        self._samples = samples_of(text)
        self.names = {name for name, _ in self._samples}

    def __call__(self, name, **labels):
        found = [value for (each, had), value in self._samples.items() if each == name and labels.items() <= dict(had).items()]
        assert len(found) == 1, (name, labels, found)
        return found[0]


async def scrape(client):
    response = await client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain; version=")
    return Scraped(response.text)


def test_an_observation_belongs_to_the_first_edge_that_is_not_below_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 8.0)
    assert token_count_edges(300) == (1, 2, 5, 10, 20, 50, 100, 200)


async def test_the_names_and_labels_are_those_of_vllm():
    async with client_of(service_of()) as client:
        await client.post("/v1/chat/completions", json=BODY)
        scraped = await scrape(client)
    missing = [name for name in VLLM.split() if f"vllm:{name}" not in scraped.names]
    assert not missing
    assert scraped("vllm:num_requests_running", **LABELS) == 0
    assert scraped("vllm:time_to_first_token_seconds_bucket", le="2560.0") == 1
    assert scraped("vllm:kv_cache_usage_perc") == 0.1


async def test_every_ended_turn_is_counted_once_under_what_ended_it():
    engine = CannedEngine([[65], [66], [67]])
    service = service_of(engine)
    async with client_of(service) as client:
        for _ in range(3):
            await client.post("/v1/chat/completions", json={**BODY, "max_tokens": 9})
        engine.ending, engine.failure = "error", ("not_finite", "x")
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 500
        engine.ending = "length"
        await client.post("/v1/chat/completions", json={**BODY, "stream": True})
        assert (await client.post("/v1/chat/completions", json={})).status_code == 400
        await client.get("/not/a/route")
        scraped = await scrape(client)
    reasons = {reason: scraped("vllm:request_success_total", finished_reason=reason) for reason in ("stop", "length", "abort", "error")}
    assert reasons == {"stop": 3, "length": 1, "abort": 0, "error": 1}
    assert scraped("vllm:time_to_first_token_seconds_count") == 5
    assert scraped("vllm:inter_token_latency_seconds_count") == 10
    assert scraped("vllm:request_generation_tokens_sum") == 15
    assert scraped("vllm:e2e_request_latency_seconds_count") == 5
    assert scraped("vllm:request_params_max_tokens_bucket", le="10.0") == 3
    assert scraped("http_requests_total", handler="/v1/chat/completions", method="POST", status="200") == 4
    assert scraped("http_requests_total", handler="/v1/chat/completions", status="400") == 1
    assert scraped("http_requests_total", handler="none", status="404") == 1


async def test_a_model_name_of_any_letters_survives_the_text_format():
    name = 'a"b\\c\nd é'
    async with client_of(service_of(names=(name,))) as client:
        assert (await scrape(client))("openglm:engine_up", model_name=name) == 1


async def test_while_the_engine_is_down_its_last_figures_stand():
    engine = CannedEngine([[65]])
    async with client_of(service_of(engine)) as client:
        assert (await scrape(client))("openglm:engine_up") == 1
        engine.state = "restarting"
        scraped = await scrape(client)
    assert scraped("openglm:engine_up") == 0
    assert scraped("openglm:kv_pages", state="held") == 10
    assert scraped("openglm:stats_age_seconds") >= 0


async def test_labels_never_come_from_what_a_client_made_up():
    async with client_of(service_of()) as client:
        for i in range(50):
            await client.request(f"MADE{i}", f"/invented/{i}", headers={"x-request-id": f"id{i}"})
            await client.get(f"/v1/models/{i}")
        text = (await client.get("/metrics")).text
    assert "MADE" not in text and "invented" not in text
    assert len([line for line in text.splitlines() if line.startswith("http_requests_total")]) <= 6


def test_the_real_engine_counts_what_clients_saw(live):
    def scraped():
        return Scraped(httpx.get(f"{live.root}/metrics").text)

    before = scraped()
    answer = httpx.post(
        f"{live.url}/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}, timeout=60
    )
    usage = answer.json()["usage"]
    live.wait_until_idle()
    after = scraped()

    def grown(name, **labels):
        return after(name, **labels) - before(name, **labels)

    assert grown("vllm:generation_tokens_total") == usage["completion_tokens"] == 12
    assert grown("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("vllm:spec_decode_num_draft_tokens_total") == usage["completion_tokens_details"]["draft_tokens"]
    assert grown("openglm:thinking_tokens_total") == usage["completion_tokens_details"]["reasoning_tokens"]
    assert grown("vllm:request_success_total", finished_reason="length") == 1
    assert grown("vllm:request_queue_time_seconds_count") == 1
    assert grown("openglm:steps_total") == grown("vllm:iteration_tokens_total_count") > 0
    assert after("vllm:num_requests_running") == after("openglm:requests_in_flight") == after("vllm:kv_cache_usage_perc") == 0
    assert after("openglm:kv_pages", state="held") == 0


def test_the_dashboard_asks_for_metrics_that_exist(live):
    httpx.post(f"{live.url}/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}, timeout=60)
    httpx.post(f"{live.url}/chat/completions", content=b"\x00")
    text = httpx.get(f"{live.root}/metrics").text
    # A metric whose only label is what it counts by has no sample before its first event, but is announced.
    exported = Scraped(text).names | {f"{line.split()[2]}" for line in text.splitlines() if line.startswith("# TYPE")}
    board = json.loads(DASHBOARD.read_text("utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    queries += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"\b(?:(?:vllm|openglm):\w+|http_\w+|process_\w+)", query)}
    assert len(asked) > 40
    assert not asked - exported
    boxes = [panel["gridPos"] for panel in board["panels"]]
    cells = [(x, y) for box in boxes for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])]
    assert len(cells) == len(set(cells)), "panels overlap"


async def test_prompts_that_wait_are_bounded_in_tokens():
    service = service_of(max_queued_requests=5, max_queued_tokens=100)
    service.engine_loaded(max_model_len=4000, max_num_seqs=1, kv_tokens=50)
    with service.traffic.holding(149):
        async with client_of(service) as client:
            response = await client.post("/v1/chat/completions", json=BODY)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_full")
            assert int(response.headers["retry-after"]) >= 1
            scraped = await scrape(client)
            assert scraped("openglm:requests_shed_total") == 1
            assert scraped("vllm:e2e_request_latency_seconds_count") == 0  # it was no turn
    async with client_of(service) as client:  # one alone fits whatever its length
        long = {"messages": [{"role": "user", "content": "x" * 300}]}
        assert (await client.post("/v1/chat/completions", json=long)).status_code == 200


async def test_ignored_fields_are_counted_under_known_names_only():
    bodies = [
        ("/v1/chat/completions", {**BODY, "metadata": {}, "x" * 50: 1, "y": 2, "z": None}),
        ("/tokenize", {"messages": BODY["messages"], "temperature": 1, "metadata": {}}),
        ("/v1/messages/count_tokens", {"messages": BODY["messages"], "service_tier": "auto"}),
        ("/detokenize", {"tokens": [65], "y": 1}),
    ]
    async with client_of(service_of()) as client:
        for path, body in bodies:
            assert (await client.post(path, json=body)).status_code == 200
        scraped = await scrape(client)
    name = "openglm:ignored_request_fields_total"
    assert [scraped(name, field=field) for field in ("metadata", "service_tier", "other")] == [2, 1, 3]


async def test_the_names_of_sglang_come_on_request_and_besides():
    service = service_of(metrics_compat="sglang")
    async with client_of(service) as client:
        await client.post("/v1/chat/completions", json=BODY)
        await scrape(client)
        scraped = await scrape(client)
    labels = {"model_name": "test-model", "engine_type": "unified", "tp_rank": "0"}
    assert scraped("sglang:num_queue_reqs", **labels) == 3
    assert scraped("sglang:token_usage", **labels) == 0.1
    assert scraped("sglang:gen_throughput", **labels) == 0
    assert scraped("sglang:time_to_first_token_seconds_bucket", le="2560.0") == 1
    assert "vllm:num_requests_waiting" in scraped.names
    async with client_of(service_of()) as client:
        assert not any(name.startswith("sglang:") for name in (await scrape(client)).names)
