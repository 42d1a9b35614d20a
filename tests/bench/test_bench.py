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
    assert figures["read_bytes_per_second"] > 1e8 and figures["peak_flops"] > 1e8
    ops = {one["op"] for one in figures["figures"]}
    assert ops == {"qkv", "o", "head", "mlp", "experts", "attention, 128 tokens"}
    weights = 2 * 3072 * 256
    assert all(one["num_bytes"] == weights and one["flops"] == one["rows"] * weights for one in figures["figures"] if one["op"] == "head")
    assert all(one["seconds"] > 0 for one in figures["figures"])


def test_an_unknown_measurement_is_named(capsys):
    assert _run("ofline") == 2
    assert "server, streaming, offline, recovery, kernels" in capsys.readouterr().err


@pytest.mark.slow
def test_kill_9_under_32_streams_tells_everyone_within_a_second_and_is_ready_within_ten_20_of_20():
    figures = measure_recovery([], streams=32, rounds=20, progress=print)
    assert [(r.num_told, r.port_open) for r in figures.rounds] == [(32, True)] * 20
    assert max(r.last_told_s for r in figures.rounds) <= TOLD_WITHIN_S
    assert max(r.ready_s for r in figures.rounds) <= READY_WITHIN_S
    assert figures.num_good == 20
