"""Native CPU kernels (`csrc/cpu`): weights packed once for streaming, and the ops of a decoder layer on them.

Everything that can be wrong about a tensor is checked here, because behind the border there are only addresses. Results differ
from `ops.reference` in rounding alone (sums run in fp32 from the first to the last input, activations between fused steps
stay fp32). They are **batch invariant by construction**: no sum depends on how many rows, queries or threads there are.

Why a plain C module and not an extension against torch: it builds in seconds with any C++20 compiler, needs no torch headers,
survives torch updates, and a call costs well under a microsecond. Where it was not built, or the processor has no AVX2,
`available()` is None and the reference runs.

Shape legend: T tokens, K inputs, N outputs, Hq / Hkv query and KV heads, D head dim, R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from openglm.config.engine import NATIVE_MAX_GROUP, NATIVE_MAX_HEAD_DIM
from openglm.ops.cpu.tensors import CODES, address_like, address_of, check_batch, code_of, dense_address, dense_rows, heads_of, pages_of
from openglm.ops.draft_chains import check_chains
from openglm.ops.paged_batch import PagedBatch
from openglm.ops.reference.attention import KVLayer

if TYPE_CHECKING:
    from openglm.ops.cpu import _native
else:
    try:
        from openglm.ops.cpu import _native
    except ImportError:  # built without a C++ compiler
        _native = None

WeightFormat = Literal["float32", "bfloat16", "fp8", "int8", "int4", "w8a8"]
_FP8 = 2
_TARGETS: dict[WeightFormat, int] = {"float32": 0, "bfloat16": 1, "fp8": _FP8, "int8": 3, "int4": 4, "w8a8": 5}
_SCALED = ("fp8", "int8", "w8a8")


def available() -> str | None:
    """The instruction set in use ("amx", "avx512_bf16", "avx512", "avx2"), or None when there are no kernels for this machine."""
    return None if _native is None else _native.active()


def supported() -> list[str]:
    """Every instruction set this processor can run, best first."""
    return [] if _native is None else _native.supported()


def select(name: str) -> None:
    """Use the kernels of one instruction set of `supported()`; for tests and comparisons."""
    _native.select(name)


def set_num_threads(count: int) -> None:
    """Size of the kernels' own thread pool, the calling thread included."""
    if _native is not None:
        _native.set_threads(count)


def num_threads() -> int:
    """Size of the kernels' thread pool, the calling thread included."""
    return _native.threads()


def read_bandwidth(num_bytes: int) -> float:
    """Bytes per second at which all threads together read memory of this size; measured now."""
    return num_bytes / _native.measure_reading(num_bytes)


def peak_flops(weight: WeightFormat, activation: torch.dtype) -> float:
    """Operations per second of all threads when nothing but the multiply-adds of such a product runs; measured now.

    The formats that become bf16 are multiplied like bf16; those of w8a8 are whole numbers.
    """
    name = available()
    at_once = 1
    if name in ("amx", "avx512_bf16"):
        at_once = 4 if weight == "w8a8" else 2 if weight != "float32" and activation == torch.bfloat16 else 1
    steps = 24_000_000 if name == "amx" else 3_000_000  # some milliseconds
    seconds = _native.measure_multiplying(steps, _TARGETS[weight], CODES[activation])
    return num_threads() * steps * 12 * 16 * 2 * at_once / seconds


class PackedLinear:
    """A weight [N, K] with its bias in panel order. bf16 where that loses nothing, so an fp32 model may stream half the bytes.

    "fp8" (e4m3), "int8" and "w8a8" keep a scale for every output; rows are divided by theirs and rounded to nearest. "w8a8" rounds the rows
    of the left operand to int8 as well, each by its own largest element. "int4" keeps, for 128 inputs of an output at a time, their
    lowest value and one sixteenth of their range, both in bf16: no element moves by more than half a step.
    """

    __slots__ = ("format", "handle", "in_features", "out_features")
    format: WeightFormat
    handle: _native.CapsuleType

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, to: WeightFormat | None = None, scale: Tensor | None = None) -> None:
        """Copies; the originals may be dropped. `to` names the format, None chooses between "bfloat16" and "float32".

        `scale` [N] fp32 are the scales of an 8-bit format, by default those that make each row's largest element the largest number. So a
        weight that *is* code * scale gives its codes back.
        """
        self.out_features, self.in_features = weight.shape
        if scale is not None and (to not in _SCALED or scale.shape != (self.out_features,)):
            raise ValueError(f"scales {tuple(scale.shape)} do not fit a weight {tuple(weight.shape)} in {to}")
        targets: tuple[WeightFormat, ...] = ("bfloat16", "float32") if to is None else (to,)
        for target in targets:
            self.restart(target)
            if self.fill(0, weight, scale, with_all_threads=True):
                break
        else:
            raise ValueError("this weight does not fit bf16 without a loss")
        if bias is not None:
            self.set_bias(bias)

    @classmethod
    def empty(cls, out_features: int, in_features: int, to: WeightFormat) -> PackedLinear:
        """A weight whose rows are still to come, by `fill`."""
        packed = cls.__new__(cls)
        packed.out_features, packed.in_features = out_features, in_features
        packed.restart(to)
        return packed

    def restart(self, to: WeightFormat) -> None:
        """Forget all rows and the bias; what comes is kept in another format."""
        self.format = to
        self.handle = _native.new_linear(self.out_features, self.in_features, _TARGETS[to])

    def fill(self, first: int, rows: Tensor, scale: Tensor | None = None, *, with_all_threads: bool = False) -> bool:
        """Round rows [count, K] and store them from row `first` on; different rows may come from several threads.

        `rows` are fp32 or bf16; for a weight in "fp8" also e4m3 codes, which stay as they are, with their `scale` [count] fp32. False
        says that the format is bf16 and would lose bits: `restart` in another one.
        """
        rows = dense_rows(rows.detach(), self.in_features)
        codes = rows.dtype == torch.float8_e4m3fn
        if scale is not None:
            scale = scale.detach().float().contiguous()
        if first < 0 or first + rows.shape[0] > self.out_features or (scale is not None and scale.shape != rows.shape[:1]):
            raise ValueError(f"rows {tuple(rows.shape)} from {first} on do not fit a weight of {self.out_features} rows")
        if codes and (scale is None or self.format != "fp8"):
            raise ValueError(f"e4m3 codes need their scales and a weight in fp8, not {self.format}")
        code = _FP8 if codes else code_of(rows)
        return _native.pack_rows(self.handle, first, rows.shape[0], rows.data_ptr(), code, address_of(scale), int(with_all_threads))

    def rounded(self, to: WeightFormat) -> PackedLinear:
        """A copy of all rows, without the bias, in another format; this weight must be in fp32 or bf16."""
        copy = PackedLinear.empty(self.out_features, self.in_features, to)
        if not _native.pack_again(copy.handle, self.handle):
            raise ValueError(f"a weight in {self.format} cannot be packed again in {to}")
        return copy

    def set_bias(self, bias: Tensor) -> None:
        """Keep a copy of bias [N] in fp32."""
        wide = bias.detach().float().contiguous()
        if wide.shape != (self.out_features,):
            raise ValueError(f"a bias {tuple(wide.shape)} does not fit {self.out_features} outputs")
        _native.set_bias(self.handle, wide.data_ptr())

    @property
    def num_bytes(self) -> int:
        """Memory of the packed weight, with scales and bias."""
        return _native.num_bytes(self.handle)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, K] -> [T, N] in the dtype of x: `x @ weight.T + bias (+ residual)`."""
        x = dense_rows(x, self.in_features)
        out = x.new_empty(x.shape[0], self.out_features)
        _native.linear(self.handle, x.data_ptr(), x.shape[0], address_like(residual, out), out.data_ptr(), code_of(x))
        return out

    def logits(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N] fp32."""
        x = dense_rows(x, self.in_features)
        out = torch.empty(x.shape[0], self.out_features)
        _native.linear_f32(self.handle, x.data_ptr(), x.shape[0], out.data_ptr(), code_of(x))
        return out


class PackedMLP:
    """A gated MLP: `down(silu(gate(x)) * up(x))`."""

    __slots__ = ("down", "gate", "up")

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear) -> None:
        """gate and up [M, H], down [H, M]."""
        if (gate.out_features, gate.in_features) != (up.out_features, up.in_features) or down.in_features != gate.out_features:
            raise ValueError(f"projections to {gate.out_features} and {up.out_features} and from {down.in_features} are no gated MLP")
        self.gate, self.up, self.down = gate, up, down

    @classmethod
    def of(cls, gate_up: Tensor, down: Tensor, *, to: WeightFormat | None = None) -> PackedMLP:
        """Pack gate_up [2M, H], the gate rows first, and down [H, M]; `to` as in `PackedLinear`."""
        gate, up = gate_up.chunk(2)
        return cls(PackedLinear(gate, to=to), PackedLinear(up, to=to), PackedLinear(down, to=to))

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [T, H] -> [T, H]: `residual + mlp(x)`."""
        x = dense_rows(x, self.gate.in_features)
        out = torch.empty_like(x)
        parts = self.gate.handle, self.up.handle, self.down.handle
        _native.mlp(*parts, x.data_ptr(), x.shape[0], address_like(residual, out), out.data_ptr(), code_of(x))
        return out


class PackedExperts:
    """A whole mixture of experts: fp32 router with selection-only bias, routed experts, shared expert."""

    __slots__ = ("handle", "hidden_size", "only_fp32")

    def __init__(
        self,
        experts: Sequence[PackedMLP],
        *,
        router: Tensor,
        router_bias: Tensor,
        shared: PackedMLP | None,
        num_experts_per_tok: int,
        norm_topk_prob: bool,
        scaling: float,
    ) -> None:
        """router [E, H], router_bias [E]. The experts read their rows in one form, so their formats must agree in it."""
        self.hidden_size = router.shape[1]
        every = [*experts, *([shared] if shared is not None else [])]
        if len(experts) != router.shape[0] or any(expert.gate.in_features != self.hidden_size for expert in every):
            raise ValueError(f"{len(experts)} experts do not fit a router {tuple(router.shape)}")
        forms = {_form(weight.format) for expert in every for weight in (expert.gate, expert.up, expert.down)}
        if len(forms) > 1 and forms != {"fp32", "narrow"}:
            raise ValueError(f"experts in different formats cannot share their rows: {', '.join(sorted(forms))}")
        self.only_fp32 = len(forms) > 1
        parts = (
            tuple(expert.gate.handle for expert in every),
            tuple(expert.up.handle for expert in every),
            tuple(expert.down.handle for expert in every),
            PackedLinear(router.float(), to="float32").handle,
        )
        bias = router_bias.detach().float().contiguous()
        self.handle = _native.pack_experts(
            parts, bias.data_ptr(), router.shape[0], num_experts_per_tok, int(norm_topk_prob), float(scaling)
        )

    @staticmethod
    def pack(gate_up: Tensor, down: Tensor, *, to: WeightFormat | None = None) -> list[PackedMLP]:
        """The routed experts from gate_up [E, 2M, H], the gate rows first, and down [E, H, M]."""
        return [PackedMLP.of(*one, to=to) for one in zip(gate_up, down, strict=True)]

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [T, H] -> [T, H]: `residual + moe(x)`."""
        x = dense_rows(x, self.hidden_size)
        if self.only_fp32 and x.dtype != torch.float32:
            raise ValueError(f"experts of which some keep fp32 weights compute in fp32, not in {x.dtype}")
        out = torch.empty_like(x)
        _native.moe(self.handle, x.data_ptr(), x.shape[0], address_like(residual, out), out.data_ptr(), code_of(x))
        return out

    @property
    def hits(self) -> tuple[int, int]:
        """Calls so far, and routed experts that had tokens in them, summed over the calls."""
        return _native.experts_hit(self.handle)


class PackedLayer:
    """A whole decoder layer, one call: norm, attention over pages, norm, MLP or experts, both residuals."""

    __slots__ = ("_norms", "handle", "head_dim", "hidden_size", "mlp", "num_kv_heads", "rotary_dim")

    def __init__(
        self,
        *,
        qkv: PackedLinear,
        o: PackedLinear,
        mlp: PackedMLP | PackedExperts,
        input_norm: Tensor,
        post_norm: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rotary_dim: int,
    ) -> None:
        """Norm weights [H] or [D] are kept as they are and must have the dtype of the activations."""
        self.hidden_size, self.num_kv_heads, self.head_dim, self.rotary_dim = o.out_features, num_kv_heads, head_dim, rotary_dim
        self.mlp = mlp
        if (
            qkv.out_features != (num_heads + 2 * num_kv_heads) * head_dim
            or o.in_features != num_heads * head_dim
            or head_dim > NATIVE_MAX_HEAD_DIM
            or head_dim % 16
            or num_heads // num_kv_heads > NATIVE_MAX_GROUP
        ):
            raise ValueError(f"projections to {qkv.out_features} and from {o.in_features} do not fit {num_heads} heads of {head_dim}")
        if isinstance(mlp, PackedExperts) and mlp.only_fp32 and input_norm.dtype != torch.float32:
            raise ValueError(f"experts of which some keep fp32 weights compute in fp32, not in {input_norm.dtype}")
        rest = (mlp.handle,) if isinstance(mlp, PackedExperts) else (mlp.gate.handle, mlp.up.handle, mlp.down.handle)
        self._norms = tuple(None if norm is None else norm.detach().contiguous() for norm in (input_norm, post_norm, q_norm, k_norm))
        addresses = tuple(address_of(norm) for norm in self._norms)
        sizes = self.hidden_size, num_heads, rotary_dim
        self.handle = _native.pack_layer((qkv.handle, o.handle, *rest), *sizes, eps, head_dim**-0.5, *addresses)

    def __call__(self, x: Tensor, batch: PagedBatch, *, rope: Tensor, kv: KVLayer) -> Tensor:
        """x [T, H] is overwritten by the layer's output and returned; rope [T, 2, rotary_dim / 2] and kv as in `rope_and_write`."""
        num_tokens, hidden = x.shape
        slots, offsets, page_table = batch.slots, batch.offsets, batch.page_table
        if hidden != self.hidden_size or not x.is_contiguous() or heads_of(kv) != (self.num_kv_heads, self.head_dim):
            raise ValueError(f"a tensor {tuple(x.shape)} with pages of {heads_of(kv)} heads and dims is not for this layer")
        if 2 * rope.shape[2] != self.rotary_dim or rope.shape[0] != num_tokens or slots.shape[0] != num_tokens:
            raise ValueError(f"rope {tuple(rope.shape)} and slots {tuple(slots.shape)} do not fit {num_tokens} tokens")
        if self._norms[0] is None or self._norms[0].dtype != x.dtype:
            raise ValueError(f"the layer computes in the dtype of its norms, not in {x.dtype}")
        check_batch(offsets, batch.num_requests, page_table)
        starts = dense_address(offsets, torch.int64)
        _native.decoder_layer(
            self.handle,
            x.data_ptr(),
            num_tokens,
            dense_address(rope, torch.float32),
            dense_address(slots, torch.int64),
            *pages_of(kv),
            batch.num_requests,
            starts,
            starts + 8 * (batch.num_requests + 1),
            page_table.data_ptr(),
            page_table.stride(0),
            code_of(x),
        )
        return x


class PackedTrunk:
    """Everything from tokens to hidden states, one call: embedding, all decoder layers, final norm."""

    __slots__ = ("_kept", "handle", "layers")

    def __init__(self, layers: Sequence[PackedLayer], *, embedding: Tensor, norm: Tensor, rope: Tensor) -> None:
        """embedding [V, H] and norm [H] have the dtype of the activations; rope [positions, 2, rotary_dim / 2] fp32 is the whole table."""
        self.layers = tuple(layers)
        if any(layer.hidden_size != embedding.shape[1] or layer.rotary_dim != 2 * rope.shape[2] for layer in layers):
            raise ValueError(f"layers do not fit an embedding {tuple(embedding.shape)} and a rope table {tuple(rope.shape)}")
        self._kept = embedding.detach(), norm.detach(), rope
        table, last = (address_like(t, t, dtype=embedding.dtype) for t in self._kept[:2])
        handles = tuple(layer.handle for layer in layers)
        self.handle = _native.pack_trunk(handles, table, embedding.shape[0], last, dense_address(rope, torch.float32), rope.shape[0])

    def __call__(self, tokens: Tensor, batch: PagedBatch, *, positions: Tensor) -> Tensor:
        """tokens [T] at positions [T] -> hidden states [T, H] after the final norm."""
        count, embedding = tokens.shape[0], self._kept[0]
        slots, offsets, page_table, kv = batch.slots, batch.offsets, batch.page_table, batch.kv[: len(self.layers)]
        if positions.shape[0] != count or slots.shape[0] != count:
            raise ValueError(f"{positions.shape[0]} positions and {slots.shape[0]} slots do not fit {count} tokens")
        if any(heads_of(pages) != (layer.num_kv_heads, layer.head_dim) for layer, pages in zip(self.layers, kv, strict=True)):
            raise ValueError("the KV pages are not for these layers")
        check_batch(offsets, batch.num_requests, page_table)
        out = embedding.new_empty(count, embedding.shape[1])
        starts = dense_address(offsets, torch.int64)
        _native.trunk(
            self.handle,
            dense_address(tokens, torch.int64),
            count,
            dense_address(positions, torch.int64),
            dense_address(slots, torch.int64),
            tuple(number for pages in kv for number in pages_of(pages)),
            batch.num_requests,
            starts,
            starts + 8 * (batch.num_requests + 1),
            page_table.data_ptr(),
            page_table.stride(0),
            out.data_ptr(),
            code_of(out),
        )
        return out


class PackedMTP:
    """The MTP layer: its KV entries, and a chain of drafts for several sequences as one call."""

    __slots__ = ("_kept", "embedding", "handle", "head", "layer", "rope")

    def __init__(
        self,
        *,
        eh: PackedLinear,
        layer: PackedLayer,
        head: PackedLinear,
        embedding: Tensor,
        enorm: Tensor,
        hnorm: Tensor,
        norm: Tensor,
        rope: Tensor,
    ) -> None:
        """embedding [V, H] and norms [H] have the dtype of the activations; rope [positions, 2, rotary_dim / 2] fp32 is the whole table."""
        hidden = layer.hidden_size
        if eh.in_features != 2 * hidden or head.in_features != hidden or 2 * rope.shape[2] != layer.rotary_dim:
            raise ValueError(f"projections from {eh.in_features} and {head.in_features} do not fit a layer of width {hidden}")
        self.layer, self.head = layer, head
        self.embedding, self.rope = embedding.detach(), rope
        self._kept = tuple(t.detach() for t in (enorm, hnorm, norm))
        table, first, second, last = (address_like(t, t, dtype=embedding.dtype) for t in (self.embedding, *self._kept))
        self.handle = _native.pack_mtp(
            (eh.handle, layer.handle, head.handle), table, first, second, last, dense_address(rope, torch.float32)
        )

    def write_kv(self, tokens: Tensor, hidden: Tensor, positions: Tensor, slots: Tensor, kv: KVLayer) -> None:
        """Store keys and values of hidden [T, H] with the token [T] behind each, at positions [T] and slots [T]."""
        hidden = dense_rows(hidden, self.layer.hidden_size)
        rows = hidden.shape[0]
        if tokens.shape[0] != rows or positions.shape[0] != rows or slots.shape[0] != rows:
            raise ValueError(f"{tokens.shape[0]} tokens and {positions.shape[0]} positions do not fit {rows} hidden states")
        ids, at, places = (dense_address(x, torch.int64) for x in (tokens, positions, slots))
        _native.mtp_write_kv(self.handle, ids, self._states(hidden), rows, at, places, *pages_of(kv), code_of(hidden))

    def draft(
        self,
        hidden: Tensor,
        *,
        tokens: Sequence[int],
        first_rows: Sequence[int],
        counts: Sequence[int],
        positions: Sequence[int],
        depths: Sequence[int],
        page_table: Tensor,
        kv: KVLayer,
        num_tokens: int,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Drafts of R sequences and the logit of each: the arg max at depth 1, and from then on of the layer chained on its own output.

        Sequence r has counts[r] new states, hidden [T, H] from first_rows[r] on, at positions[r] and behind; `tokens` are those that
        follow each of these states, sequence after sequence. All states get their KV entry, and drafting goes on from the last.
        `depths` must fall. page_table [R, pages] must have pages for all positions, drafts included. Ids from `num_tokens` on
        are never drafted.
        """
        rows, most = len(counts), depths[0]
        check_chains(
            hidden,
            tokens=tokens,
            first_rows=first_rows,
            counts=counts,
            positions=positions,
            depths=depths,
            page_table=page_table,
            embedding=self.embedding,
            num_positions=self.rope.shape[0],
        )
        if num_tokens > self.head.out_features:
            raise ValueError(f"{num_tokens} ids are more than the head has")
        given = torch.tensor((*first_rows, *counts, *positions, *depths, *tokens))
        drafted, logits = torch.zeros(rows, most, dtype=torch.int64), torch.zeros(rows, most)
        hidden = hidden.contiguous()
        start, row = given.data_ptr(), 8 * rows
        _native.mtp_draft(
            self.handle,
            start + 4 * row,
            self._states(hidden),
            rows,
            start,
            start + row,
            start + 2 * row,
            start + 3 * row,
            num_tokens,
            *pages_of(kv),
            page_table.data_ptr(),
            page_table.stride(0),
            drafted.data_ptr(),
            logits.data_ptr(),
            code_of(hidden),
        )
        return drafted.tolist(), logits.tolist()

    def _states(self, hidden: Tensor) -> int:
        if hidden.dtype != self.embedding.dtype:
            raise ValueError(f"the layer computes in {self.embedding.dtype}, not in {hidden.dtype}")
        return hidden.data_ptr()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`: x [T, D], weight [D] of the same dtype -> [T, D]."""
    x = dense_rows(x, weight.shape[0])
    out = torch.empty_like(x)
    _native.rms_norm(x.data_ptr(), address_like(weight, weight, dtype=x.dtype), eps, x.shape[0], x.shape[1], out.data_ptr(), code_of(x))
    return out


def highest(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.highest.highest`: x [N, V] fp32 with dense rows -> values [N] fp32, places [N] int64."""
    rows, width = x.shape
    values, places = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
    if x.stride(1) != 1:
        x = x.contiguous()
    if x.dtype != torch.float32 or code_of(x):
        raise ValueError(f"expected fp32 rows, got {x.dtype}")
    _native.highest(x.data_ptr(), rows, x.stride(0), width, values.data_ptr(), places.data_ptr())
    return values, places


def rope_and_write(
    qkv: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    rope: Tensor,
    slots: Tensor,
    kv: KVLayer,
) -> Tensor:
    """As `reference.rope_and_write`: qkv [T, (Hq + 2 Hkv) D], rope [T, 2, rotary_dim / 2] fp32 -> queries [T, Hq, D]."""
    num_kv_heads, head_dim = heads_of(kv)
    qkv = dense_rows(qkv, (num_heads + 2 * num_kv_heads) * head_dim)
    num_tokens = qkv.shape[0]
    rotary_dim = 2 * rope.shape[2]
    if rope.shape[0] != num_tokens or slots.shape[0] != num_tokens or rotary_dim > head_dim or head_dim > NATIVE_MAX_HEAD_DIM:
        raise ValueError(f"rope {tuple(rope.shape)} and slots {tuple(slots.shape)} do not fit {num_tokens} tokens of head dim {head_dim}")
    out = qkv.new_empty(num_tokens, num_heads, head_dim)
    _native.rope_and_write(
        qkv.data_ptr(),
        num_tokens,
        num_heads,
        0 if q_norm is None else address_like(q_norm, q_norm, dtype=qkv.dtype),
        0 if k_norm is None else address_like(k_norm, k_norm, dtype=qkv.dtype),
        eps,
        dense_address(rope, torch.float32),
        rotary_dim,
        dense_address(slots, torch.int64),
        *pages_of(kv),
        out.data_ptr(),
        code_of(qkv),
    )
    return out


def paged_attention(queries: Tensor, kv: KVLayer, *, offsets: Tensor, num_requests: int, page_table: Tensor, scale: float) -> Tensor:
    """As `reference.paged_attention`: queries [T, Hq, D] -> [T, Hq, D].

    offsets [R + 1 + R] int64 holds the query starts and then the KV lengths; page_table [R, pages] int64.
    """
    if not queries.is_contiguous():
        queries = queries.contiguous()
    num_kv_heads, head_dim = heads_of(kv)
    num_heads = queries.shape[1]
    fits = queries.shape[2] == head_dim and not head_dim % 16 and not num_heads % num_kv_heads
    if not fits or head_dim > NATIVE_MAX_HEAD_DIM or num_heads // num_kv_heads > NATIVE_MAX_GROUP:
        raise ValueError(f"queries {tuple(queries.shape)} do not fit pages of {heads_of(kv)} heads and dims")
    check_batch(offsets, num_requests, page_table)
    out = torch.empty_like(queries)
    starts = dense_address(offsets, torch.int64)
    _native.attention(
        queries.data_ptr(),
        num_heads,
        *pages_of(kv),
        num_requests,
        starts,
        starts + 8 * (num_requests + 1),
        page_table.data_ptr(),
        page_table.stride(0),
        scale,
        out.data_ptr(),
        code_of(queries),
    )
    return out


def _form(format: WeightFormat) -> str:
    """What a weight makes of its left operand, where that is not a matter of the activations alone."""
    return {"float32": "fp32", "w8a8": "w8a8", "int4": "int4"}.get(format, "narrow")


__all__: Sequence[str] = [
    "PackedExperts",
    "PackedLayer",
    "PackedLinear",
    "PackedMLP",
    "PackedMTP",
    "PackedTrunk",
    "available",
    "highest",
    "num_threads",
    "paged_attention",
    "peak_flops",
    "read_bandwidth",
    "rms_norm",
    "rope_and_write",
    "select",
    "set_num_threads",
    "supported",
]
