"""The rows: what each measures, in which time, how its table reads, and its marks. Nothing here needs a GPU or Triton.

Marks are those set for one H200. They are taken only from figures of such a GPU at full size: whatever else ran leaves them unmeasured,
and an unmeasured mark never holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openglm.bench.gpu.byte_model import step_bytes
from openglm.bench.gpu.figures import Values
from openglm.bench.marks import Mark, mark
from openglm.config import variant
from openglm.errors import ConfigError

CEILING = "read bandwidth"
"""The case that every row begins with; all shares of reading are of its figure."""

DATASHEET_BYTES_PER_S = {"H200": 4.8e12, "H100": 3.35e12, "B200": 8.0e12, "MI300X": 5.3e12, "A100": 2.04e12}
_MARKED_GPU = "H200"
_SHARE_OF_BUDGET = 0.7
_ACCEPTANCE_LENGTHS = (1.5, 1.85, 2.0)


@dataclass(frozen=True)
class Column:
    """A column of a row's table: which value, and how it is written."""

    value: str
    header: str
    form: str = "{:.3g}"
    scale: float = 1.0


@dataclass(frozen=True)
class Row:
    """One script of the plan."""

    name: str
    module: str
    minutes: float
    columns: tuple[Column, ...]
    marks: Callable[[Mapping[str, Values]], tuple[Mark, ...]]
    note: str = ""

    def limit_s(self, minutes: float | None = None) -> float:
        """After so many seconds no further case begins; `minutes` replaces the row's time budget."""
        return 60 * (self.minutes if minutes is None else minutes) * _SHARE_OF_BUDGET


def find_row(name: str) -> Row:
    """The row called `name`."""
    row = next((row for row in ROWS if row.name == name), None)
    if row is None:
        raise ConfigError(f"no row is called {name!r:.40}; glm bench gpu takes {', '.join(row.name for row in ROWS)}")
    return row


def marks_of(row: Row, cases: Mapping[str, Values], *, gpu: str, rehearsal: bool) -> tuple[Mark, ...]:
    """The row's marks, measured only on the GPU that they are set for. Cases of a part of the model have other names (`of_layers`)."""
    return row.marks(cases if _MARKED_GPU in gpu and not rehearsal else {})


def of_layers(case: str, layers: int, all_layers: int) -> str:
    """The name of a case that ran with so many of the model's layers."""
    return case if layers == all_layers else f"{case}, {layers} of {all_layers} layers"


def decode_case(sequences: int, context: int, *, kv: str = "fp8", routing: str = "uniform") -> str:
    """The name of a decoding case."""
    return f"{sequences} x {_tokens(context)}, {kv} KV, {routing}"


def verify_case(sequences: int, rows_each: int, context: int) -> str:
    """The name of a verify step."""
    return f"verify {rows_each} rows, {sequences} x {_tokens(context)}"


def engine_case(sequences: int) -> str:
    """The name of a run of the whole engine."""
    return f"engine loop, {sequences} x 1K"


def draft_case(sequences: int) -> str:
    """The name of a pass of the MTP layer."""
    return f"draft pass, {sequences} x 1K"


def projected_case(sequences: int) -> str:
    """The name of what one draft gains."""
    return f"projected: one draft, {sequences} x 1K"


def mixed_case(chunk: int, beside: int) -> str:
    """The name of a prefill chunk among decoding sequences."""
    return f"{_tokens(chunk)} beside {beside} decoding"


def prefill_case(tokens: int, chunk: int) -> str:
    """The name of a prompt's case."""
    return f"{_tokens(tokens)} in chunks of {_tokens(chunk)}"


def beside_case(shape: str, what: str) -> str:
    """The name of a comparison with transformers: "decode 1", "prefill 2K"."""
    return f"{shape}, {what}"


EQUAL_TOKENS = "greedy tokens with drafts and without"


def _tokens(count: int) -> str:
    return f"{count // 1024}K" if count >= 1024 and count % 1024 == 0 else str(count)


def _value(cases: Mapping[str, Values], case: str, name: str, scale: float = 1.0) -> float | None:
    found = cases.get(case, {}).get(name)
    return None if found is None else found * scale


def _ms(cases: Mapping[str, Values], case: str, gate: float, target: float, stretch: float | None = None) -> tuple[Mark, ...]:
    value = _value(cases, case, "s", 1e3)
    aims = {"gate": gate, "target": target} | ({} if stretch is None else {"stretch": stretch})
    return tuple(mark(f"{case}: ms per step, {name}", value, at_most=aim) for name, aim in aims.items())


def _no_marks(cases: Mapping[str, Values]) -> tuple[Mark, ...]:
    return ()


def _kernel_marks(cases: Mapping[str, Values]) -> tuple[Mark, ...]:
    errors = [values["error"] for values in cases.values() if "error" in values]
    return (mark("largest relative error of a kernel", max(errors, default=None), at_most=1e-2),)


def _decode_marks(cases: Mapping[str, Values]) -> tuple[Mark, ...]:
    return (
        *_ms(cases, decode_case(1, 1024), 6.3, 4.85, 4.2),
        *_ms(cases, decode_case(8, 1024), 18, 15),
        *_ms(cases, decode_case(32, 1024), 34, 28),
        *_ms(cases, decode_case(64, 1024), 42, 33),
        *_ms(cases, decode_case(1, 131072), 10, 8),
    )


def _mtp_marks(cases: Mapping[str, Values]) -> tuple[Mark, ...]:
    verify = _value(cases, verify_case(1, 2, 1024), "over_byte_model")
    lone, many = (_value(cases, engine_case(count), "overhead") for count in (1, 32))
    equal = _value(cases, EQUAL_TOKENS, "equal_share")
    return (
        mark("two rows over one, against the byte model, batch 1, gate", verify, at_most=1.25),
        mark("two rows over one, against the byte model, batch 1, target", verify, at_most=1.15),
        mark("engine loop over bare graph replay, batch 1, gate", lone, at_most=0.08),
        mark("engine loop over bare graph replay, batch 1, target", lone, at_most=0.05),
        mark("engine loop over bare graph replay, batch 32", many, at_most=0.02),
        mark("greedy tokens equal with drafts and without", equal, at_least=1.0),
    )


def _prefill_marks(cases: Mapping[str, Values]) -> tuple[Mark, ...]:
    rate = _value(cases, prefill_case(8192, 8192), "tokens_per_s")
    longest = _value(cases, prefill_case(131072, 8192), "s")
    return (
        mark("prefill of 8K, tokens/s, gate", rate, at_least=12_000),
        mark("prefill of 8K, tokens/s, target", rate, at_least=20_000),
        mark("first token of 128K, s", longest, at_most=60),
    )


def _beside_marks(cases: Mapping[str, Values]) -> tuple[Mark, ...]:
    decode = _value(cases, beside_case("air", "decode 1"), "speedup")
    prefill = _value(cases, beside_case("air", "prefill 8K"), "speedup")
    return (
        mark("8 layers, decode at batch 1, over transformers, gate", decode, at_least=4),
        mark("8 layers, decode at batch 1, over transformers, target", decode, at_least=6),
        mark("8 layers, prefill of 8K, over transformers, gate", prefill, at_least=2),
        mark("8 layers, prefill of 8K, over transformers, target", prefill, at_least=3),
    )


_READING = (Column("gb_per_s", "GB/s", "{:.0f}"), Column("of_ceiling", "of ceiling", "{:.0%}"))
_MILLISECONDS = Column("s", "ms", "{:.3f}", 1e3)

ROWS = (
    Row(
        "ceilings",
        "ceilings",
        2,
        (Column("s", "us", "{:.2f}", 1e6), Column("gb_per_s", "GB/s", "{:.0f}"), Column("tflops", "TFLOP/s", "{:.0f}")),
        _no_marks,
    ),
    Row(
        "kernels",
        "kernels",
        4,
        (
            Column("error", "error", "{:.1e}"),
            *(Column(f"s_{rows}", f"us, {rows}", "{:.1f}", 1e6) for rows in (1, 8, 128, 2048)),
            *(Column(f"of_ceiling_{rows}", f"of ceiling, {rows}", "{:.0%}") for rows in (1, 8)),
            Column("gb_per_s_1", "GB/s, 1", "{:.0f}"),
            *(Column(f"tflops_{rows}", f"TFLOP/s, {rows}", "{:.1f}") for rows in (128, 2048)),
        ),
        _kernel_marks,
        "error: the worst row's distance from the reference, over its length; behind commas: rows, of attention sequences",
    ),
    Row(
        "decode",
        "decode",
        8,
        (
            _MILLISECONDS,
            Column("tokens_per_s", "tok/s", "{:.0f}"),
            Column("experts_hit", "experts", "{:.1f}"),
            Column("gb", "GB", "{:.1f}"),
            *_READING,
            Column("of_datasheet", "of datasheet", "{:.0%}"),
            Column("floor_s", "floor ms", "{:.2f}", 1e3),
            Column("expected_gb", "GB expected", "{:.1f}"),
        ),
        _decode_marks,
        "GB: what the step must read, with the experts that were hit; GB expected: of random choices; floor: the former at the ceiling",
    ),
    Row(
        "mtp",
        "mtp",
        6,
        (
            _MILLISECONDS,
            Column("experts_hit", "experts", "{:.1f}"),
            *_READING,
            Column("over_one_row", "over 1 row", "{:.2f}"),
            Column("bytes_over_one_row", "bytes over 1 row", "{:.2f}"),
            Column("over_byte_model", "over byte model", "{:.2f}"),
            Column("replay_s", "replay ms", "{:.3f}", 1e3),
            Column("overhead", "overhead", "{:.1%}"),
            Column("equal_share", "equal", "{:.0%}"),
            *(Column(f"speedup_at_{length:g}", f"x at {length:g}") for length in _ACCEPTANCE_LENGTHS),
        ),
        _mtp_marks,
        "speedups by acceptance length are projected: random weights say nothing about acceptance",
    ),
    Row(
        "prefill",
        "prefill",
        5,
        (_MILLISECONDS, Column("tokens_per_s", "tok/s", "{:.0f}"), Column("tflops", "TFLOP/s", "{:.0f}")),
        _prefill_marks,
    ),
    Row(
        "transformers",
        "beside_transformers",
        5,
        (
            _MILLISECONDS,
            Column("theirs_s", "transformers ms", "{:.3f}", 1e3),
            Column("speedup", "speedup", "{:.2f}"),
            Column("layer_s", "ms per layer", "{:.4f}", 1e3),
            Column("theirs_layer_s", "theirs", "{:.4f}", 1e3),
            Column("difference", "logit difference", "{:.1e}"),
            Column("largest_difference", "largest", "{:.1e}"),
        ),
        _beside_marks,
        "same slice, same GPU, same weights, best of the settings of transformers that were measured",
    ),
)


def projected_speedups(ratio: float) -> dict[str, float]:
    """What steps `ratio` times as long gain if so many tokens come out of each."""
    return {f"speedup_at_{length:g}": length / ratio for length in _ACCEPTANCE_LENGTHS}


def predicted_ms(sequences: int, context: int, bytes_per_s: float, *, model: str = "glm-4.5-air", kv_element_bytes: float = 1) -> float:
    """The byte model's floor of a step with FP8 weights, in milliseconds."""
    total = step_bytes(variant(model), sequences=sequences, context=context, weight_bytes=1, kv_element_bytes=kv_element_bytes)
    return 1e3 * total / bytes_per_s
