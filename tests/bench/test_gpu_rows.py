"""What of `glm bench gpu` needs neither a GPU nor Triton: byte model, marks, the loop over cases, its file and its table."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from openglm.bench.gpu import byte_model, checks, figures, plan, run, weights
from openglm.bench.gpu.mtp import equal_share
from openglm.bench.gpu.place import RehearsalPlace
from openglm.bench.machine import this_machine
from openglm.cli.main import main
from openglm.config import variant
from openglm.errors import ConfigError
from openglm.ops import FP8, Fp8KV
from openglm.ops.triton.matrix import DeviceMatrix

AIR, LARGE = variant("glm-4.5-air"), variant("glm-4.5")
MEASURED_H200, SHEET_H200, H100 = 4.3e12, 4.8e12, 3.35e12


@pytest.mark.parametrize(
    ("config", "weight", "sequences", "gigabytes"),
    [
        (AIR, 1, 1, (13.6, 16.6, 25.8)),
        (AIR, 1, 8, (48.3, 72.2, 146)),
        (AIR, 1, 32, (97.7, 193, 490)),
        (AIR, 1, 128, (121, 504, 1689)),
        (AIR, 2, 1, (25.8, 31.8, 50.3)),
        (AIR, 2, 8, (95.2, 143, 291)),
        (AIR, 2, 32, (194, 385, 978)),
        (AIR, 2, 128, (239, 1004, 3375)),
        (LARGE, 1, 1, (33.9, 39.9, 58.4)),
        (LARGE, 1, 8, (132, 180, 328)),
        (LARGE, 1, 32, (295, 486, 1079)),
        (LARGE, 1, 128, (381, 1146, 3517)),
    ],
)
def test_bytes_of_a_step_are_those_of_the_published_table(config, weight, sequences, gigabytes):
    for context, expected in zip((1024, 32768, 131072), gigabytes, strict=True):
        found = byte_model.step_bytes(config, sequences=sequences, context=context, weight_bytes=weight, kv_element_bytes=weight)
        assert found / 1e9 == pytest.approx(expected, rel=0.02)


def test_floors_are_bytes_over_bandwidth():
    for sequences, floor in ((1, 3.15), (8, 11.23), (32, 22.7), (128, 28.1)):
        assert plan.predicted_ms(sequences, 1024, MEASURED_H200) == pytest.approx(floor, rel=0.02)
    for sequences, floor in ((1, 5.38), (8, 30.5), (32, 102)):
        assert plan.predicted_ms(sequences, 131072, SHEET_H200) == pytest.approx(floor, rel=0.02)
    assert plan.predicted_ms(8, 1024, H100, model="glm-4.5") == pytest.approx(39.3, rel=0.02)


def test_experts_hit_and_the_cost_of_drafts():
    hits = [byte_model.expected_hit(128, 8, n) for n in (1, 2, 4, 8, 16, 32, 64, 128)]
    assert hits == pytest.approx([8.0, 15.5, 29.1, 51.6, 82.4, 111.8, 125.9, 128.0], abs=0.06)
    for drafts, sequences, ratio in ((1, 1, 1.55), (3, 1, 2.58), (1, 8, 1.56), (3, 32, 1.24)):
        shape = {"sequences": sequences, "context": 1024, "weight_bytes": 1, "kv_element_bytes": 1}
        spent = byte_model.step_bytes(AIR, rows_each=drafts + 1, **shape)
        spent += drafts * byte_model.draft_bytes(AIR, sequences=sequences, weight_bytes=1)
        assert spent / byte_model.step_bytes(AIR, **shape) == pytest.approx(ratio, rel=0.02)


def test_weights_and_prompts_are_counted():
    assert byte_model.weight_bytes_total(AIR, 2) / 1e9 == pytest.approx(218.5, rel=0.005)
    assert byte_model.weight_bytes_total(AIR, 1) / 1e9 == pytest.approx(110.5, rel=0.005)
    assert byte_model.weight_bytes_total(LARGE, 1) / 1e9 == pytest.approx(358.3, rel=0.005)
    linear, attention = byte_model.prefill_flops(AIR, 131072)
    assert (linear / 1e12, attention / 1e12) == pytest.approx((3193, 19422), rel=0.01)


def test_a_mark_is_measured_on_its_gpu_with_the_whole_model_only():
    row, case = plan.find_row("decode"), plan.decode_case(1, 1024)
    values = {case: {"s": 4.5e-3}}
    held = {m.name: m.holds for m in plan.marks_of(row, values, gpu="NVIDIA H200", rehearsal=False) if m.value is not None}
    assert list(held.values()) == [True, True, False] and all(case in name for name in held)
    for cases, gpu, rehearsal in (
        (values, "NVIDIA H100 80GB HBM3", False),
        (values, "NVIDIA H200", True),
        ({plan.of_layers(case, 20, 46): {"s": 1e-9}}, "NVIDIA H200", False),
        ({}, "NVIDIA H200", False),
    ):
        marks = plan.marks_of(row, cases, gpu=gpu, rehearsal=rehearsal)
        assert len(marks) == 11 and all(m.value is None and m.holds is None for m in marks)


def test_every_row_takes_its_marks_from_cases_by_name():
    found = {
        plan.verify_case(1, 2, 1024): {"over_byte_model": 1.2},
        plan.engine_case(1): {"overhead": 0.06},
        plan.prefill_case(8192, 8192): {"tokens_per_s": 13_000.0},
        plan.beside_case("air", "decode 1"): {"speedup": 5.0},
        "qkv": {"error": 0.02},
    }
    holds = {row.name: [m.holds for m in plan.marks_of(row, found, gpu="H200", rehearsal=False)] for row in plan.ROWS}
    assert holds["mtp"] == [True, False, True, False, None, None]
    assert holds["prefill"] == [True, False, None] and holds["transformers"] == [True, False, None, None]
    assert holds["kernels"] == [False] and holds["ceilings"] == []
    with pytest.raises(ConfigError, match="ceilings, kernels, decode"):
        plan.find_row("decoed")


class Rows:
    """A module of cases that count how often they run."""

    def __init__(self, **measures):
        self.measures, self.ran = measures, []

    def cases(self, place, known):
        for name, measure in self.measures.items():
            yield run.Case(name, lambda name=name, measure=measure: self.ran.append(name) or measure())


def setting(source="a"):
    return figures.Setting("decode", "none", 1.0, "3.8", source, True, this_machine())


def measured(module, out, *, limit_s=100.0, clock=lambda: 0.0, source="a"):
    row = plan.find_row("decode")
    return run.run_cases(row, module, RehearsalPlace(), setting(source), out=out, limit_s=limit_s, progress=lambda _: None, clock=clock)


def interrupted():
    raise KeyboardInterrupt


def failing(message, kind=RuntimeError):
    def measure():
        raise kind(message)

    return measure


def test_an_interrupted_row_goes_on_where_it_stopped(tmp_path):
    first = Rows(a=lambda: {"s": 1.0}, b=interrupted, c=lambda: {"s": 3.0})
    report = measured(first, tmp_path)
    assert report.interrupted and report.cases == {"a": {"s": 1.0}} and "MEAN NOTHING" in report.note
    second = Rows(a=failing("measured twice"), b=lambda: {"s": 2.0}, c=lambda: {"s": 3.0})
    report = measured(second, tmp_path)
    assert second.ran == ["b", "c"] and report.cases == {"a": {"s": 1.0}, "b": {"s": 2.0}, "c": {"s": 3.0}}
    assert not report.interrupted and not report.failures
    changed = Rows(a=lambda: {"s": 9.0})
    assert measured(changed, tmp_path, source="b").cases == {"a": {"s": 9.0}}, "figures of other code do not count"


def test_a_line_that_was_cut_off_costs_that_figure_only(tmp_path):
    store = tmp_path / "decode-rehearsal.jsonl"
    measured(Rows(a=lambda: {"s": 1.0}, b=lambda: {"s": 2.0}), tmp_path)
    store.write_bytes(store.read_bytes()[:-20])
    again = Rows(a=lambda: {"s": 5.0}, b=lambda: {"s": 2.5})
    assert measured(again, tmp_path).cases == {"a": {"s": 1.0}, "b": {"s": 2.5}} and again.ran == ["b"]
    store.write_bytes(b"\xff\x00{}\n[1]\n" + store.read_bytes())
    assert measured(Rows(), tmp_path).cases == {}
    assert figures.read(store, setting()) == {"a": {"s": 1.0}, "b": {"s": 2.5}}


def test_a_store_that_cannot_be_written_is_told_before_anything_runs(tmp_path):
    (tmp_path / "decode-rehearsal.jsonl").mkdir()
    module = Rows(a=lambda: {"s": 1.0})
    with pytest.raises(IsADirectoryError):
        measured(module, tmp_path)
    assert not module.ran


def test_no_case_begins_after_the_limit(tmp_path):
    times = iter([0.0, 10.0, 41.0, 43.0, 50.0])
    module = Rows(a=lambda: {"s": 1.0}, b=lambda: {"s": 1.0}, c=lambda: {"s": 1.0})
    report = measured(module, tmp_path, limit_s=42.0, clock=lambda: next(times))
    assert module.ran == ["a", "b"] and report.left == ("c",) and report.seconds == 50.0
    assert plan.find_row("decode").limit_s() == pytest.approx(0.7 * 8 * 60) and plan.find_row("mtp").limit_s(1) == pytest.approx(42)


def test_a_failed_case_is_told_and_the_next_one_tried_unless_the_gpu_is_lost(tmp_path):
    module = Rows(
        a=failing("wrong with 3 rows\nmore"),
        b=lambda: {"s": float("nan")},
        c=failing("", torch.OutOfMemoryError),
        d=lambda: {"s": 1.0},
        e=failing("CUDA error: an illegal memory access was encountered"),
        f=lambda: {"s": 1.0},
    )
    report = measured(module, tmp_path)
    assert set(report.failures) == {"a", "b", "c", "e"} and report.cases == {"d": {"s": 1.0}} and report.left == ("f",)
    assert report.failures["a"] == "RuntimeError: wrong with 3 rows" and "memory" in report.failures["c"]


def _bench(*arguments):
    try:
        code = main(["bench", "gpu", *arguments])
    except SystemExit as stop:
        code = stop.code
    return int(code or 0)


@pytest.mark.parametrize("row", [row.name for row in plan.ROWS])
def test_without_a_gpu_every_row_refuses_with_one_line(row, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: name == "triton" or find(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _bench(row, "--out", str(tmp_path)) == 2
    said = capsys.readouterr()
    assert "needs a GPU" in said.err and "--rehearse" in said.err and len(said.err.strip().splitlines()) == 1 and not said.out
    assert not list(tmp_path.iterdir())


def test_without_triton_even_a_rehearsal_refuses(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: None if name == "triton" else find(name))
    assert _bench("decode", "--rehearse", "--out", str(tmp_path)) == 2
    assert "openglm[gpu]" in capsys.readouterr().err


def test_a_row_must_be_named(capsys):
    assert _bench() == 2 and "ceilings, kernels, decode, mtp, prefill, transformers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "offline", "decode"])
    assert "no further argument" in capsys.readouterr().err


def test_the_table_shows_figures_failures_and_marks_and_the_exit_status_tells(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    case = plan.decode_case(1, 1024)
    report = figures.GpuFigures(
        setting=replace_setting(gpu="NVIDIA H200", rehearsal=False),
        clocks="",
        cases={case: {"s": 5e-3, "tokens_per_s": 200.0, "of_ceiling": 0.63}},
        failures={"8 x 1K": "RuntimeError: no"},
        left=("64 x 1K",),
        interrupted=False,
        seconds=1.0,
        marks=plan.marks_of(plan.find_row("decode"), {case: {"s": 5e-3}}, gpu="NVIDIA H200", rehearsal=False),
        note="",
    )
    monkeypatch.setattr(run, "measure_row", lambda name, **_: report)
    assert _bench("decode", "--out", str(tmp_path), "--json", str(tmp_path / "copy.json")) == 1
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("5.000", "63%", "FAILED", "no time for 64 x 1K", "missed", "holds", "not measured"))
    assert json.loads((tmp_path / "decode.json").read_text()) == json.loads((tmp_path / "copy.json").read_text())


def replace_setting(**changes):
    import msgspec

    return msgspec.structs.replace(setting(), **changes)


def test_random_weights_hold_every_number_but_nan_and_keep_rows_at_length_one():
    generator = torch.Generator().manual_seed(0)
    matrix = DeviceMatrix.empty(64, 4096, FP8, torch.device("cpu"))
    weights.random_matrix(matrix, generator)
    codes = matrix.data.view(torch.uint8)
    assert not matrix.data.float().isnan().any() and len(codes.unique()) == 254
    length = (matrix.data.float() * matrix.scales[:, None]).norm(dim=1)
    assert float(length.min()) > 0.7 and float(length.max()) < 1.3
    kv = Fp8KV(torch.empty(2, 2, 2, 64, 16, dtype=FP8), torch.empty(2, 2, 2, 64))
    weights.random_kv([kv], generator)
    assert 0.9 < float((kv.data.float() * kv.scales[..., None]).std()) < 1.1


def test_a_gpu_that_is_too_small_gets_fewer_layers():
    trunk = replace(AIR, num_nextn_predict_layers=0)
    whole = weights.fitting(trunk, 149_000_000_000, weight_bytes=1, beside=30_000_000_000)
    part = weights.fitting(trunk, 84_000_000_000, weight_bytes=1, beside=30_000_000_000)
    assert whole == trunk and 15 < part.num_hidden_layers < 25
    with pytest.raises(ConfigError, match="not even a few layers"):
        weights.fitting(trunk, 16_000_000_000, weight_bytes=1, beside=15_000_000_000)


def test_errors_are_of_the_worst_row_and_nan_is_infinite():
    expected = torch.ones(3, 4)
    found = expected.clone()
    assert checks.row_error(found, expected) == 0
    found[1] *= 1.01
    assert checks.row_error(found, expected) == pytest.approx(0.01, rel=1e-3)
    found[2, 0] = float("nan")
    assert checks.row_error(found, expected) == float("inf") == checks.row_error(found[:2], expected)
    assert checks.row_error(torch.ones(1, 4), torch.zeros(1, 4)) == float("inf") and checks.row_error(expected[:0], expected[:0]) == 0
    assert checks.share_unequal(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [4, 4]])) == 0.5


def test_poisoned_memory_is_nan_until_written():
    with checks.poisoned():
        assert torch.empty(5).isnan().all() and torch.empty(5, dtype=torch.bfloat16).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_equal_tokens_count_up_to_the_first_difference():
    assert equal_share([1, 2, 3, 4], [1, 2, 3, 4]) == 1 and equal_share([1, 2, 3, 4], [1, 2, 9, 4]) == 0.5
    assert equal_share([1, 2], [1, 2, 3, 4]) == 0.5 and equal_share([], []) == 0
