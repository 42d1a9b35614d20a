"""The engine process is killed under a running stream. Real server, real engine."""

import asyncio
import json
import os
import signal

import httpx

ENDLESS = {"messages": [{"role": "user", "content": "Go on"}], "ignore_eos": True, "stream": True}
SHORT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def test_a_killed_engine_ends_streams_with_an_error_and_comes_back(live):
    with httpx.Client(timeout=60) as client:
        with client.stream("POST", f"{live.url}/chat/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(live.client.pid, signal.SIGKILL)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        error = json.loads(rest[-2][6:])["error"]
        assert (error["type"], error["code"]) == ("service_unavailable_error", "engine_unavailable")

        # The port stays open all the time; until the engine is back, requests are told to come again.
        assert client.get(f"{live.root}/health").status_code == 200
        assert client.get(f"{live.root}/ready").status_code == 503
        refused = client.post(f"{live.url}/chat/completions", json=SHORT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(refused.headers["retry-after"]) >= 1

        asyncio.run_coroutine_threadsafe(live.client.wait_ready(), live.loop).result(120)
        assert client.get(f"{live.root}/ready").status_code == 200
        assert client.post(f"{live.url}/chat/completions", json=SHORT).status_code == 200
    assert live.service.traffic.num_in_flight == 0
