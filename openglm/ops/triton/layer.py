"""`DeviceLayer`, `DeviceTrunk`, `DeviceMTP`: the model on a GPU, composed of the kernels of this package.

They stand where `ops.PackedLayer`, `PackedTrunk` and `PackedMTP` stand on the CPU. Nothing here copies to the host or takes a shape from
data, so a step can be captured in a CUDA graph, but for layers with experts in host memory (`DeviceTrunk.capturable`).

Shape legend: T tokens, H hidden, Hq / Hkv query and KV heads, D head dim, R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openglm.ops.copies import to_device
from openglm.ops.draft_chains import Chains, check_chains, rows_of
from openglm.ops.paged_batch import PagedBatch
from openglm.ops.reference.attention import PAGE_SIZE, KVLayer
from openglm.ops.reference.highest import highest
from openglm.ops.reference.swiglu import swiglu
from openglm.ops.triton.attention import paged_attention
from openglm.ops.triton.experts import DeviceExperts
from openglm.ops.triton.host_experts import HostExperts
from openglm.ops.triton.linear import DeviceLinear
from openglm.ops.triton.norm import add_rms_norm, rms_norm
from openglm.ops.triton.rope import rope_and_write
from openglm.ops.triton.router import route, tickets


class DeviceBlock(Protocol):
    """The second half of a layer: x [T, H] normed, residual [T, H] -> residual + block(x)."""

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """The block and its residual."""


class DeviceMLP:
    """A gated MLP: `down(silu(gate(x)) * up(x))`, the gate rows first in gate_up [2M, H]."""

    def __init__(self, gate_up: DeviceLinear, down: DeviceLinear) -> None:
        self.gate_up, self.down = gate_up, down

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [T, H] -> residual + mlp(x) [T, H]."""
        out: Tensor = self.down(swiglu(self.gate_up(x)), residual)
        return out


@dataclass(frozen=True)
class RouterSettings:
    """How experts are chosen and weighed."""

    num_experts_per_tok: int
    norm_topk_prob: bool
    scaling: float


class DeviceMoE:
    """Experts of which some, or the shared one, stand apart: `local` on the device [0, first host expert), `host`, `shared`.

    Where everything fits one stack, `DeviceExperts` alone is the block.
    """

    def __init__(
        self,
        local: DeviceExperts | None,
        *,
        host: HostExperts | None,
        shared: DeviceMLP | None,
        router: Tensor,
        router_bias: Tensor,
        settings: RouterSettings,
    ) -> None:
        """router [E, H] and router_bias [E] fp32 cover all experts, wherever they are."""
        self._local, self._host, self._shared = local, host, shared
        self._router, self._bias, self._settings, self._counters = router, router_bias, settings, tickets(router.device)

    @property
    def capturable(self) -> bool:
        """Whether nothing waits for the host."""
        return self._host is None

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [T, H] -> residual + moe(x) [T, H]."""
        s = self._settings
        ids, weights = route(
            x,
            self._router,
            self._bias,
            num_experts_per_tok=s.num_experts_per_tok,
            norm_topk_prob=s.norm_topk_prob,
            scaling=s.scaling,
            num_shared=0,
            counters=self._counters,
        )
        pending = None if self._host is None else self._host.start(x, weights, ids)
        total = None if self._local is None else self._local.routed(x, weights, ids).float()
        if self._shared is not None:
            residual = self._shared(x, residual)
        if pending is not None:
            theirs = pending.finish()
            total = theirs if total is None else total + theirs
        return residual if total is None else residual + total.to(x.dtype)


class DeviceLayer:
    """A whole decoder layer: norm, attention over pages, norm, MLP or experts, both residuals."""

    def __init__(
        self,
        *,
        qkv: DeviceLinear,
        qkv_bias: Tensor | None,
        o: DeviceLinear,
        mlp: DeviceMLP | DeviceExperts | DeviceMoE,
        input_norm: Tensor,
        post_norm: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        num_heads: int,
        head_dim: int,
    ) -> None:
        """Norm weights [H] or [D] have the dtype of the activations; qkv has no bias of its own, the kernel behind it adds qkv_bias."""
        self._qkv, self._qkv_bias, self._o, self.mlp = qkv, qkv_bias, o, mlp
        self._input_norm, self._post_norm, self._q_norm, self._k_norm = input_norm, post_norm, q_norm, k_norm
        self._eps, self._num_heads, self._scale = eps, num_heads, head_dim**-0.5

    @property
    def capturable(self) -> bool:
        """Whether the layer can be part of a CUDA graph."""
        return not isinstance(self.mlp, DeviceMoE) or self.mlp.capturable

    def __call__(self, x: Tensor, batch: PagedBatch, *, rope: Tensor, positions: Tensor, kv: KVLayer) -> Tensor:
        """x [T, H] -> [T, H]; rope [positions, 2, rotary_dim / 2] fp32 is the whole table, kv the layer's pages."""
        queries = self.write_kv(x, rope=rope, positions=positions, slots=batch.slots, kv=kv)
        return self.attend(x, queries, batch, kv)

    def attend(self, x: Tensor, queries: Tensor, batch: PagedBatch, kv: KVLayer) -> Tensor:
        """What is left of the layer for rows x [T, H] whose keys and values are stored: queries [T, Hq, D] -> [T, H]."""
        attended = paged_attention(queries, kv, batch, scale=self._scale).flatten(1)
        if self._o.rounds(attended.shape[0], attended.dtype):  # torch's product of rounded rows adds no residual; the norm does
            normed, x = add_rms_norm(self._o(attended), x, self._post_norm, self._eps)
        else:
            x = self._o(attended, x)
            normed = rms_norm(x, self._post_norm, self._eps)
        out: Tensor = self.mlp(normed, x)
        return out

    def write_kv(self, x: Tensor, *, rope: Tensor, positions: Tensor, slots: Tensor, kv: KVLayer) -> Tensor:
        """Store keys and values of x [T, H]; returns its queries [T, Hq, D]."""
        queries: Tensor = rope_and_write(
            self._qkv(rms_norm(x, self._input_norm, self._eps)),
            num_heads=self._num_heads,
            bias=self._qkv_bias,
            q_norm=self._q_norm,
            k_norm=self._k_norm,
            eps=self._eps,
            rope_table=rope,
            positions=positions,
            slots=slots,
            kv=kv,
        )
        return queries


class DeviceTrunk:
    """Everything from tokens to hidden states: embedding, all decoder layers, final norm."""

    def __init__(self, layers: Sequence[DeviceLayer], *, embedding: Tensor, norm: Tensor, eps: float, rope: Tensor) -> None:
        """embedding [V, H] and norm [H] have the dtype of the activations; rope [positions, 2, rotary_dim / 2] fp32 is the whole table."""
        self.layers = tuple(layers)
        self._embedding, self._norm, self._eps, self._rope = embedding.detach(), norm.detach(), eps, rope

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured in a CUDA graph: no layer waits for experts in host memory."""
        return all(layer.capturable for layer in self.layers)

    def __call__(self, tokens: Tensor, batch: PagedBatch, *, positions: Tensor) -> Tensor:
        """tokens [T] at positions [T] -> hidden states [T, H] after the final norm."""
        x = F.embedding(tokens, self._embedding)
        for layer, kv in zip(self.layers, batch.kv, strict=False):  # behind the trunk's pages come those of the MTP layer
            x = layer(x, batch, rope=self._rope, positions=positions, kv=kv)
        out: Tensor = rms_norm(x, self._norm, self._eps)
        return out


class DeviceMTP:
    """The MTP layer: one pass, its KV entries alone, and chains of drafts for several sequences."""

    def __init__(
        self,
        *,
        eh: DeviceLinear,
        layer: DeviceLayer,
        head: DeviceLinear,
        embedding: Tensor,
        enorm: Tensor,
        hnorm: Tensor,
        norm: Tensor,
        eps: float,
        rope: Tensor,
    ) -> None:
        """embedding [V, H] and norms [H] have the dtype of the activations; rope [positions, 2, rotary_dim / 2] fp32 is the whole table."""
        self._eh, self.layer, self._head = eh, layer, head
        self._embedding, self._rope, self._eps = embedding.detach(), rope, eps
        self._enorm, self._hnorm, self._norm = (t.detach() for t in (enorm, hnorm, norm))
        self.hidden_size, self.dtype = embedding.shape[1], embedding.dtype

    @property
    def capturable(self) -> bool:
        """Whether a chain can be captured in a CUDA graph."""
        return self.layer.capturable

    def __call__(self, tokens: Tensor, hidden: Tensor, batch: PagedBatch, *, positions: Tensor) -> Tensor:
        """tokens [T] that follow the states hidden [T, H] at positions [T] -> [T, H] after the layer's own norm; its pages come last."""
        out = self.layer(self._input(tokens, hidden), batch, rope=self._rope, positions=positions, kv=batch.kv[-1])
        normed: Tensor = rms_norm(out, self._norm, self._eps)
        return normed

    def write_kv(self, tokens: Tensor, hidden: Tensor, positions: Tensor, slots: Tensor, kv: KVLayer) -> None:
        """Store keys and values of hidden [T, H] with the token [T] behind each, at positions [T] and slots [T]."""
        self.layer.write_kv(self._input(tokens, hidden), rope=self._rope, positions=positions, slots=slots, kv=kv)

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
    ) -> tuple[Tensor, Tensor]:
        """As `ops.PackedMTP.draft`, but drafts [R, depth] int64 and their logits [R, depth] fp32 stay on the device."""
        rows = len(counts)
        last = check_chains(
            hidden,
            tokens=tokens,
            first_rows=first_rows,
            counts=counts,
            positions=positions,
            depths=depths,
            page_table=page_table,
            embedding=self._embedding,
            num_positions=self._rope.shape[0],
        )
        places, owners, sources = rows_of(first_rows, counts, positions)
        tips = [end - 1 for end in accumulate(counts)]
        given = to_device([*tokens, *places, *owners, *sources, *tips, *depths], torch.int64, hidden.device)
        ids, at, own, origin, last_rows, wanted = given.split([len(tokens)] * 4 + [rows] * 2)
        chains = Chains(ids, at, own, last_rows, wanted, page_table)
        kept = [sum(depth > step for depth in depths) for step in range(depths[0])]
        return self.chain(hidden.index_select(0, origin), chains, kept=kept, max_kv_len=last, kv=kv, num_tokens=num_tokens)

    def chain(
        self, states: Tensor, chains: Chains, *, kept: Sequence[int], max_kv_len: int, kv: KVLayer, num_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """All entries of states [T, H], and drafts [R, D] and logits [R, D] of `draft`, without the host.

        Step d of D computes the first kept[d] sequences, of which those that go no deeper write and see nothing.
        """
        table, depths, tips, device = chains.page_table, chains.depths, chains.tips, states.device
        place = table[chains.owners.clamp(min=0), chains.positions // PAGE_SIZE] * PAGE_SIZE + chains.positions % PAGE_SIZE
        slots = place.masked_fill(chains.owners < 0, -1)
        given = self._input(chains.tokens, states)
        queries = self.layer.write_kv(given, rope=self._rope, positions=chains.positions, slots=slots, kv=kv)
        # Everything that steps need beside states and ids: sequences that stop stay where they are, on pages that they have.
        steps = torch.arange(len(kept), device=device).unsqueeze(1)
        still = depths <= steps
        at = (chains.positions[tips] + torch.minimum(steps, depths - 1)).clamp(min=0)  # [D, R]
        place = table.gather(1, (at // PAGE_SIZE).t()).t() * PAGE_SIZE + at % PAGE_SIZE
        draft_slots = place.masked_fill(still, -1).contiguous()  # `place` lies as it was turned
        lengths = (at + 1).masked_fill(still, 0)
        starts = torch.arange(tips.shape[0] + 1, device=device)
        drafted = torch.zeros(tips.shape[0], len(kept), dtype=torch.int64, device=device)
        logits = torch.zeros(tips.shape[0], len(kept), device=device)
        ids = tips
        for step, count in enumerate(kept):
            batch = PagedBatch.static(
                offsets=torch.cat([starts[: count + 1], lengths[step, :count]]),
                max_query_len=1,
                max_kv_len=max_kv_len,
                page_table=table[:count],
                slots=draft_slots[step, :count],
                kv=(kv,),
            )
            if step:
                states = self(ids[:count], states[:count], batch, positions=at[step, :count])
            else:
                states = rms_norm(self.layer.attend(given[tips], queries[tips], batch, kv), self._norm, self._eps)
            values, ids = highest(self._head.logits(states)[:, :num_tokens])
            drafted[:count, step], logits[:count, step] = ids, values
        return drafted, logits

    def _input(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        embedded = F.embedding(tokens, self._embedding)
        normed = [rms_norm(embedded, self._enorm, self._eps), rms_norm(hidden, self._hnorm, self._eps)]
        joined: Tensor = self._eh(torch.cat(normed, dim=-1))
        return joined
