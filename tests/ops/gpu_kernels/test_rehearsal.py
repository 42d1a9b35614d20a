"""Rehearsals of `glm bench gpu`: every row's script takes its whole way, on small shapes in the interpreter.

The rows `mtp` and `prefill` need a minute each and are marked slow; of `kernels` one operation of each kind runs here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openglm.bench.gpu import kernels
from openglm.bench.gpu.place import RehearsalPlace
from openglm.cli.main import main

PROBES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from openglm.bench.gpu import probes
target = GPUTarget("cuda", 90, 32)
for early in (False, True):
    signature = {"x": "*i32", "EARLY": "constexpr"}
    made = compile(ASTSource(fn=probes._next_kernel, signature=signature, constexprs={(1,): early}), target=target)
    assert ("griddepcontrol.wait" in made.asm["ptx"]) == early
signature = {"x": "*i32", "out": "*i32", "count": "i64", "BLOCK": "constexpr", "BLOCKS": "constexpr"}
made = compile(ASTSource(fn=probes._read_kernel, signature=signature, constexprs={(3,): 4096, (4,): 16}), target=target)
assert made.asm["ptx"].count("ld.global") >= 1
print("compiled")
"""


def rehearse(row, tmp_path, capsys):
    try:
        code = main(["bench", "gpu", row, "--rehearse", "--out", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    report = json.loads((tmp_path / f"{row}-rehearsal.json").read_text())
    assert not code and not report["failures"] and not report["left"] and report["setting"]["rehearsal"], shown.err
    assert "MEAN NOTHING" in " ".join(shown.out.split())
    assert all(mark["value"] is None and mark["holds"] is None for mark in report["marks"])
    assert all(values for values in report["cases"].values())
    return report["cases"]


def test_ceilings(tmp_path, capsys):
    cases = rehearse("ceilings", tmp_path, capsys)
    assert cases["read bandwidth"]["gb_per_s"] > 0 and len(cases) == 13
    assert rehearse("ceilings", tmp_path, capsys) == cases, "a second run measures nothing again"


def test_decode(tmp_path, capsys):
    cases = rehearse("decode", tmp_path, capsys)
    one, two = cases["1 x 70, fp8 KV, uniform"], cases["2 x 70, fp8 KV, uniform"]
    assert one["experts_hit"] == 3 < two["experts_hit"] <= 6
    assert one["gb"] == one["expected_gb"] and two["gb_per_s"] == pytest.approx(two["gb"] / two["s"])


@pytest.mark.slow
@pytest.mark.parametrize("row", ["mtp", "prefill", "transformers", "kernels"])
def test_the_longer_rows(row, tmp_path, capsys):
    cases = rehearse(row, tmp_path, capsys)
    if row == "mtp":
        assert cases["greedy tokens with drafts and without"]["equal_share"] == 1
        assert cases["verify 2 rows, 1 x 70"]["over_byte_model"] > 0 and cases["projected: one draft, 1 x 1K"]["speedup_at_1.85"] > 0
    if row == "transformers":
        assert cases["air, logits"]["difference"] < 5e-2 and "transformers batched_mm: s" in cases["air, decode 2"]


@pytest.fixture(scope="module")
def operations():
    return {case.name: case for case in kernels.cases(RehearsalPlace(), {})}


@pytest.mark.parametrize(
    "name",
    [
        "experts, fp8",
        "experts of a chunk, fp8",
        "o, fp8",
        "head, bf16",
        "attention, 2 new, 70 tokens, fp8 KV",
        "RoPE and fp8 KV",
        "router",
        "sampling",
    ],
)
def test_a_kernel_is_checked_and_timed(operations, name):
    values = operations[f"4.5: {name}"].measure()
    rows = 20 if "chunk" in name else 1
    assert 0 <= values["error"] <= 2e-2 and values[f"s_{rows}"] > 0 and values[f"gb_per_s_{rows}"] > 0


def test_a_wrong_kernel_is_not_timed(operations, monkeypatch):
    from openglm.ops.triton import norm

    right = norm.rms_norm
    monkeypatch.setattr(norm, "rms_norm", lambda x, weight, eps: right(x, weight, eps) * 1.05)
    with pytest.raises(ValueError, match="wrong with 1 rows"):
        operations["air: RMSNorm"].measure()


def test_a_kernel_that_leaves_memory_unwritten_is_seen(operations, monkeypatch):
    import torch

    from openglm.ops.triton import norm

    monkeypatch.setattr(norm, "rms_norm", lambda x, weight, eps: torch.empty_like(x))
    with pytest.raises(ValueError, match="error is inf"):
        operations["air: RMSNorm"].measure()


def test_probes_compile_for_a_gpu_that_is_not_here(tmp_path):
    root = Path(__file__).parents[3]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROBES], env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "compiled\n", done.stderr[-2000:]
