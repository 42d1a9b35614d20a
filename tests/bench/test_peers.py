"""`glm bench peers` on slices that are scaled down: files, order of measurement, going on after a stop, report. Figures are not judged."""

import io
import json
import os
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch

from openglm.bench.peers import cold_files, environments, gguf_file, job, run
from openglm.bench.peers.report import markdown, plot, ratios, shares_of_ceilings, tokens_per_second, write_report
from openglm.bench.peers.run import ENGINES, Figure, Load, PeerFigures, Plan, Setting, measure_peers
from openglm.bench.peers.slices import make_checkpoint, prefill_flops, slice_config, step_bytes
from openglm.checkpoint import load_model
from openglm.checkpoint.names import NameTable
from openglm.cli.main import main
from openglm.config.engine import num_parameters
from openglm.errors import ConfigError
from openglm.ops import cpu

TINY = 32
WORKLOADS = (job.Workload("prefill", 128), job.Workload("decode", 128, 2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("slice")
    make_checkpoint(slice_config("355b", TINY), directory, progress=lambda _: None)
    return directory


def test_the_slices_are_those_of_the_published_models():
    air, large = slice_config("air"), slice_config("355b")
    assert (air.num_hidden_layers, air.n_routed_experts, air.vocab_size, large.use_qk_norm) == (3, 128, 151552, True)
    assert round(num_parameters(air) / 1e9, 2) == 6.17
    assert 2 * num_parameters(large) < 12e9, "the weights in bf16 must leave room in 24 GB"
    for name, scale in (("water", 1), ("air", 0)):
        with pytest.raises(ConfigError, match="--slice"):
            slice_config(name, scale)


def test_one_token_reads_its_experts_and_many_read_nearly_all():
    config = slice_config("air")
    one, many = (step_bytes(config, 8, 8, batch, 0) for batch in (1, 256))
    layers = num_parameters(config) - 2 * config.vocab_size * config.hidden_size
    assert 1.3e9 < one < 1.6e9 and 0.95 * layers < many - config.vocab_size * config.hidden_size < layers
    assert step_bytes(config, 8, 8, 4, 1000) - step_bytes(config, 8, 8, 4, 0) == 1000 * 3 * 2 * 1024 * 2
    assert step_bytes(config, 8, 8, 4, 0, experts_hit=0) < step_bytes(config, 8, 8, 4, 0, experts_hit=1)


def test_a_slice_is_a_checkpoint_written_once(checkpoint):
    model = load_model(checkpoint)
    down = model.layers[1].mlp.experts.down_proj.detach().float()
    assert not model.has_mtp and 0.9 < float(down.std()) * model.config.moe_intermediate_size**0.5 < 1.1
    before = (checkpoint / "model.safetensors").stat().st_mtime_ns
    make_checkpoint(slice_config("355b", TINY), checkpoint, progress=lambda _: None)
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="another shape"):
        make_checkpoint(slice_config("air", TINY), checkpoint, progress=lambda _: None)


class FakeWriter:
    """What the writer of the gguf package was told."""

    made: ClassVar[list] = []

    def __init__(self, path, architecture):
        self.facts, self.infos, self.data, self.architecture = {}, {}, [], architecture
        self.made.append(self)

    def __getattr__(self, name):
        return lambda *values: self.facts.__setitem__(name, values)

    def add_tensor_info(self, name, shape, dtype, size, raw_dtype=None):
        assert name not in self.infos
        self.infos[name] = (tuple(shape), size, raw_dtype)

    def write_tensor_data(self, values):
        name, (_, size, _) = list(self.infos.items())[len(self.data)]
        assert values.nbytes == size, name
        self.data.append(values)


def test_gguf_holds_every_tensor_under_llama_cpps_name(checkpoint, tmp_path, monkeypatch):
    fake = types.SimpleNamespace(
        GGUFWriter=FakeWriter,
        ExpertGatingFuncType=types.SimpleNamespace(SIGMOID=2),
        GGMLQuantizationType=types.SimpleNamespace(BF16=30),
    )
    monkeypatch.setitem(sys.modules, "gguf", fake)
    gguf_file.write_gguf(checkpoint, tmp_path / "model.gguf")
    writer = FakeWriter.made[-1]
    config = slice_config("355b", TINY)
    assert writer.architecture == "glm4moe" and writer.facts["add_expert_count"] == (config.n_routed_experts,)
    written = dict(zip(writer.infos, writer.data, strict=True))
    total = sum(values.size for values in written.values())
    assert total == sum(int(np.prod(entry.shape)) for entry in NameTable(config).entries)
    model = load_model(checkpoint)
    down = torch.from_numpy(written["blk.1.ffn_down_exps.weight"].view(np.int16)).view(torch.bfloat16)
    assert torch.equal(down, model.layers[1].mlp.experts.down_proj)
    assert np.array_equal(written["blk.1.ffn_gate_inp.weight"], model.layers[1].mlp.gate.weight.detach().float().numpy())
    assert writer.infos["blk.0.attn_q.weight"][0] == (config.query_dim, 2 * config.hidden_size)
    assert writer.infos["blk.0.attn_q_norm.weight"] == ((config.head_dim,), 4 * config.head_dim, None)


def test_a_worker_reports_each_workload_and_goes_on_after_one_that_fails(capsys):
    steps = []

    def start(prompt, batch):
        if batch == 2:
            raise MemoryError("no room")
        return lambda index, tokens: steps.append((index, tuple(tokens)))

    workloads = (job.Workload("prefill", 8), job.Workload("decode", 8, 2), job.Workload("decode", 8, 3))
    job.measure(job.Job("m", "f", 1, 50, workloads), lambda prompt: None, start)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("error" in line, line["workload"]) for line in lines] == [(i == 1, w.name) for i, w in enumerate(workloads)]
    assert [index for index, _ in steps] == list(range(job.DECODE_STEPS)) and all(len(tokens) == 3 for _, tokens in steps)
    assert len({tokens for _, tokens in steps}) > 20, "every step has tokens of its own"


def test_a_job_survives_its_way(monkeypatch):
    sent = job.Job("m", "fp8", 2, 100, WORKLOADS)
    monkeypatch.setattr("sys.stdin", io.StringIO(sent.encode().decode()))
    assert job.read_job() == sent and (sent.most_batch, sent.most_context) == (2, 128 + job.DECODE_STEPS)


def answers(asked, *, dies_at=None):
    """A stand-in for worker processes; notes who was asked for what."""

    def start(engine, place, wanted):
        asked.append((engine, wanted.format, [w.name for w in wanted.workloads]))
        yield {"loaded_s": 1.0, "version": f"{engine} 1"}
        for number, workload in enumerate(wanted.workloads):
            if dies_at == (engine, wanted.format, number):
                raise run._WorkerFailed("the process ended with code -9: it said nothing")
            yield {"workload": workload.name, "seconds": 0.5, "runs": 1}

    return start


@pytest.fixture
def places(monkeypatch):
    found = {"openglm": environments.Environment(sys.executable), "llama.cpp": environments.Environment(None, "not installed")}
    monkeypatch.setattr(environments, "find", lambda engine, folder: found.get(engine, found["openglm"]))


def test_rounds_alternate_and_what_was_measured_is_kept(tmp_path, monkeypatch, places):
    plan = Plan("air", tmp_path, TINY, rounds=2, workloads=WORKLOADS, formats=("bf16", "int4", "Q4_0", "bf16 eager"))
    asked: list = []
    monkeypatch.setattr(run, "_run_worker", answers(asked, dies_at=("openglm", "int4", 1)))
    found = measure_peers(plan, progress=lambda _: None)
    forwards = [("openglm", "bf16"), ("openglm", "int4"), ("transformers", "bf16 eager")]
    assert [pair[:2] for pair in asked] == forwards + forwards[::-1]
    assert found.missing == {"llama.cpp": "not installed"} and len(found.failures) == 2 and "code -9" in found.failures[0]
    assert len(found.figures) == 2 * 5
    with (tmp_path / f"air-{TINY}" / "results.jsonl").open("ab") as store:
        store.write(b'{"setting":{"slice":"a')  # cut off
    asked.clear()
    monkeypatch.setattr(run, "_run_worker", answers(asked))
    found = measure_peers(plan, progress=lambda _: None)
    assert asked == [("openglm", "int4", [WORKLOADS[1].name])] * 2 and not found.failures
    assert {(load.engine, load.format, load.loaded_s) for load in found.loads} == {(*pair, 1.0) for pair in forwards}
    written = sum(path.stat().st_size for path in (tmp_path / f"air-{TINY}" / "checkpoint").glob("*.safetensors"))
    assert {load.file_bytes for load in found.loads} == {written}, "loads of an earlier run are kept as well"
    asked.clear()
    found = measure_peers(plan, progress=lambda _: None)
    assert not asked and len(found.figures) == 2 * 6
    measure_peers(Plan("air", tmp_path, TINY, threads=2, rounds=1, workloads=WORKLOADS, formats=("bf16",)), progress=lambda _: None)
    assert asked == [("openglm", "bf16", [w.name for w in WORKLOADS])], "other settings are another comparison"


def test_a_worker_that_dies_is_told_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setitem(run._WORKERS, "openglm", "no_such_module_at_all")
    with pytest.raises(run._WorkerFailed, match="No module named no_such_module_at_all"):
        list(run._run_worker("openglm", environments.find("openglm", tmp_path), job.Job("m", "f", 1, 9, ())))


def test_engines_that_are_not_there_say_why(tmp_path):
    assert "--install" in environments.find("llama.cpp", tmp_path).missing
    with pytest.raises(ConfigError, match="'vllm'"):
        Plan("air", tmp_path, engines=("vllm",))


@pytest.fixture
def figures() -> PeerFigures:
    setting = Setting("air", 1, 2, run.this_machine())
    seconds = {("openglm", "fp8"): (0.05, 1.0), ("openglm", "int4"): (0.03, 1.2), ("llama.cpp", "Q8_0"): (0.07, 2.0)}
    seconds |= {
        ("llama.cpp", "Q4_0"): (0.06, 2.4),
        ("transformers", "bf16 eager"): (0.14, 1.5),
        ("transformers", "bf16 grouped_mm"): (0.1, 9.0),
    }
    names = ("decode batch 4 context 512", "prefill 512")
    made = tuple(
        Figure(setting, *who, name, number, value * factor, 1, *((50e9, 1e12) if who == ("openglm", "fp8") else ()))
        for who, values in seconds.items()
        for name, value in zip(names, values, strict=True)
        for number, factor in enumerate((1.0, 50.0, 0.9))
    )
    load = Load(setting, "openglm", "fp8", 3.0, "openglm | x", 10**10, 4e9)
    return PeerFigures(setting, 3, names, made, (load,), {"vllm": "no"}, ("a | b",))


def test_medians_ratios_and_floors(figures):
    rates = tokens_per_second(figures)
    assert rates["openglm", "fp8"] == pytest.approx({"decode batch 4 context 512": 80, "prefill 512": 512})
    rows = {(own, other): by for own, other, by in ratios(figures)}
    assert rows["fp8", "llama.cpp Q8_0"] == pytest.approx({"decode batch 4 context 512": 1.4, "prefill 512": 2.0})
    assert rows["fp8", "transformers bf16 eager / bf16 grouped_mm"] == pytest.approx({"decode batch 4 context 512": 2, "prefill 512": 1.5})
    assert ("int4", "llama.cpp Q4_0") in rows and ("int4", "llama.cpp Q4_K_M") not in rows
    shares = shares_of_ceilings(figures)["fp8"]
    assert shares["decode batch 4 context 512"] == pytest.approx(step_bytes(slice_config("air"), 8, 16, 4, 512) / 0.05 / 50e9)
    assert shares["prefill 512"] == pytest.approx(prefill_flops(slice_config("air"), 512) / 1.0 / 1e12)


def test_the_report_is_a_page_a_plot_and_a_file(figures, tmp_path):
    page = markdown(figures)
    assert "| fp8 | llama.cpp Q8_0 | 1.40 | 2.00 |" in page and "openglm \\| x" in page and "vllm: no" in page
    assert plot(figures).count("<rect") == 1 + 2 * 6 + 6
    md, data, svg = write_report(figures, tmp_path / "new")
    assert md.read_text() == page and svg.read_text().startswith("<svg") and json.loads(data.read_bytes())["rounds"] == 3


@pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")
@pytest.mark.slow
def test_a_quick_run_measures_every_engine_that_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    arguments = ["bench", "peers", "--quick", "--scale", str(TINY), "--out", str(tmp_path), "--json", str(tmp_path / "all.json")]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    found = json.loads((tmp_path / "all.json").read_bytes())
    measured = {(one["engine"], one["format"]) for one in found["figures"]}
    assert {("openglm", format) for format in ENGINES["openglm"]} <= measured and not found["failures"]
    assert "llama.cpp" in found["missing"] and "openglm over its counterpart" in capsys.readouterr().out


def test_files_are_forgotten_and_the_disk_is_measured(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(40 << 20))
    assert cold_files.weight_files(tmp_path) == cold_files.weight_files(path) == [path]
    assert cold_files.forget([path]) == 40 << 20
    speed = cold_files.disk_bytes_per_second(path)
    assert speed is None or speed > 1e6, "a file system in memory may have no direct reads"
    (tmp_path / "small").write_bytes(b"x")
    assert cold_files.disk_bytes_per_second(tmp_path / "small") is None
    assert cold_files.disk_bytes_per_second(tmp_path / "absent") is None
