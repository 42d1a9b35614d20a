"""A client that goes away gives its pages back. Real server, real engine, whose own counters are the witness."""

import httpx
import pytest

# With the stop ids ignored the scripted chain goes round and round until the context is full.
ENDLESS = {"model": "scripted", "messages": [{"role": "user", "content": "Go on"}], "ignore_eos": True}


TOKENS = {"max_tokens": 100_000, "ignore_eos": True}
DIALECTS = {
    "/v1/messages": {**ENDLESS, **TOKENS},
    "/v1/responses": {"input": "Go on", "ignore_eos": True},
    "/v1/completions": {"prompt": "Go on", "n": 2, **TOKENS},
    "/generate": {"text": "Go on", "sampling_params": {"max_new_tokens": 100_000, "ignore_eos": True}},
    "/api/paas/v4/chat/completions": ENDLESS,
}


@pytest.mark.parametrize("path", DIALECTS)
def test_leaving_frees_the_pages_in_every_dialect(live, path):
    with httpx.Client(base_url=live.root) as client:
        with client.stream("POST", path, json={**DIALECTS[path], "stream": True}) as response:
            assert response.status_code == 200
            next(response.iter_lines())
        with pytest.raises(httpx.TimeoutException):
            client.post(path, json=DIALECTS[path], timeout=0.15)
    live.wait_until_idle()
    assert live.stats().pages_held == 0
    assert live.service.traffic.num_in_flight == 0


@pytest.mark.parametrize("num_events", [0, 1, 5, 40])
def test_leaving_a_stream_frees_its_pages(live, num_events):
    aborted = live.stats().num_finished.get("abort", 0)
    with (
        httpx.Client(base_url=live.url) as client,
        client.stream("POST", "/chat/completions", json={**ENDLESS, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        for _ in range(num_events):
            next(lines)
    live.wait_until_idle()
    stats = live.stats()
    assert stats.num_finished["abort"] == aborted + 1
    assert stats.pages_held == 0
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    assert stats.kv_accounting_errors == 0


def test_leaving_while_a_whole_answer_is_made_frees_its_pages(live):
    aborted = live.stats().num_finished.get("abort", 0)
    with httpx.Client(base_url=live.url, timeout=0.15) as client, pytest.raises(httpx.TimeoutException):
        client.post("/chat/completions", json=ENDLESS)
    live.wait_until_idle()
    assert live.stats().num_finished["abort"] == aborted + 1
    assert live.stats().pages_held == 0
    assert live.service.traffic.num_in_flight == 0


def test_leaving_does_not_disturb_others(live):
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "seed": 1}
    with httpx.Client(base_url=live.url, timeout=60) as client:
        alone = client.post("/chat/completions", json=body).json()["choices"]
        with client.stream("POST", "/chat/completions", json={**ENDLESS, "stream": True}) as response:
            next(response.iter_lines())
            beside = client.post("/chat/completions", json=body).json()["choices"]
        after = client.post("/chat/completions", json=body).json()["choices"]
    assert alone == beside == after
    live.wait_until_idle()
