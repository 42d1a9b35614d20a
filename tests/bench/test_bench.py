"""The measurements run and say what they promise to; their figures are not judged here."""

import json

import pytest

from openglm.bench.recovery import READY_WITHIN_S, TOLD_WITHIN_S, measure_recovery
from openglm.cli.main import main
from openglm.ops import cpu


def _run(*arguments: str) -> int:
    try:
        code = main(["bench", *arguments])
    except SystemExit as stop:
        code = stop.code
    return int(code or 0)


def test_quick_offline_run_prints_figures_beside_the_marks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert _run("offline", "--quick", "--json", str(tmp_path / "figures.json")) == 0
    shown = capsys.readouterr().out
    assert "adaptive" in shown and "not measured" in shown and "warm over cold" in shown
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {(speed["variant"], speed["streams"]) for speed in figures["speeds"]} == {
        (v, n) for v in ("adaptive", "off", "2") for n in (1, 2)
    }
    assert all(rate > 0 for speed in figures["speeds"] for rate in speed["tokens_per_second"])
    assert figures["step_ms"]["forward"] > 0 and figures["prefix_tokens"] == 256
    assert [mark["value"] is None for mark in figures["marks"]] == [True, True, False, False, False]
    assert figures["machine"]["torch"]


@pytest.mark.skipif(cpu.available() is None, reason="this machine has no native kernels")
def test_quick_kernel_run_compares_every_op_with_both_ceilings(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert _run("kernels", "--quick", "--json", str(tmp_path / "figures.json")) == 0
    assert "of reading" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["read_bytes_per_second"] > 1e8 and all(one["peak_flops"] > 1e8 for one in figures["figures"])
    ops = {one["op"] for one in figures["figures"]}
    assert ops == {"qkv", "o", "head", "mlp", "experts", "attention, 128 tokens"}
    weights = 2 * 3072 * 256
    assert all(one["num_bytes"] == weights and one["flops"] == one["rows"] * weights for one in figures["figures"] if one["op"] == "head")
    assert all(one["seconds"] > 0 for one in figures["figures"])


def test_an_unknown_measurement_is_named(capsys):
    assert _run("ofline") == 2
    assert "server, streaming, offline, recovery, kernels, peers, gpu" in capsys.readouterr().err


@pytest.mark.slow
def test_kill_9_under_32_streams_tells_everyone_within_a_second_and_is_ready_within_ten_20_of_20():
    figures = measure_recovery([], streams=32, rounds=20, progress=print)
    assert [(r.num_told, r.port_open) for r in figures.rounds] == [(32, True)] * 20
    assert max(r.last_told_s for r in figures.rounds) <= TOLD_WITHIN_S
    assert max(r.ready_s for r in figures.rounds) <= READY_WITHIN_S
    assert figures.num_good == 20


def test_bursts_are_told_apart_and_their_width_is_measured():
    from openglm.bench.streaming import _spreads

    assert _spreads([0.0, 0.001, 0.003, 0.020, 0.021, 0.050], pause=0.01) == pytest.approx([0.003, 0.001, 0.0])


async def test_the_stream_client_counts_events_however_the_bytes_are_cut():
    from openglm.bench.stream_client import StreamClient
    from openglm.errors import EngineError

    class Transport:
        def write(self, data):
            self.sent = data

        def close(self):
            pass

    text = b'HTTP/1.1 200 OK\r\n\r\n9\r\ndata: {"a":1}\n\n\r\n9\r\ndata: {"completion_tokens":7}\n\n\r\ndata: [DONE]\n\n'
    for size in (1, 2, 7, len(text)):
        spoke, ended, transport = [], [], Transport()
        client = StreamClient(b"ask", lambda spoke=spoke: spoke.append(1), lambda ended=ended: ended.append(1))
        client.connection_made(transport)
        for start in range(0, len(text), size):
            client.data_received(text[start : start + size])
        await client.wait()
        assert transport.sent == b"ask"
        assert (len(client.arrivals), client.num_tokens, len(spoke), len(ended)) in ((3, 7, 1, 1), (2, 7, 1, 1))
    broken = StreamClient(b"ask", lambda: None, lambda: None)
    broken.connection_made(Transport())
    broken.data_received(b"HTTP/1.1 503 No\r\n")
    broken.connection_lost(None)
    with pytest.raises(EngineError, match="503"):
        await broken.wait()


@pytest.mark.slow
def test_a_streaming_run_measures_all_three_marks(tmp_path):
    assert _run("streaming", "--streams", "8", "--rounds", "1", "--tokens", "32", "--json", str(tmp_path / "figures.json")) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["server_us_per_event"] > 0 and figures["jitter_p99_ms"] > 0 and figures["http_tokens_per_second"] > 0
    assert [mark["value"] is None for mark in figures["marks"]] == [False] * 3
