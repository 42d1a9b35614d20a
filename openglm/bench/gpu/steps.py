"""Steps of a model over full pages, without an engine: decode and verify graphs, chunks of a prompt, and which experts they hit.

Every sequence has pages of its own, in shuffled order. What they hold is random, as is what is asked; positions are a context's last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openglm.bench.gpu.place import CalledAgain, Place
from openglm.bench.gpu.weights import random_kv
from openglm.config import ModelConfig
from openglm.engine.graphs import GraphDevice, Shape, StepGraph, StepInputs
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE

if TYPE_CHECKING:
    from openglm.ops.triton.experts import Choice, DeviceExperts


class Steps:
    """A model and KV pages for `tokens` tokens in all."""

    def __init__(self, model: GlmModel, place: Place, *, tokens: int, kv_dtype: torch.dtype) -> None:
        self.model, self.place = model, place
        self._pages = -(-tokens // PAGE_SIZE)
        self.kv = allocate_kv(model.config, self._pages, kv_dtype, place.device)
        random_kv(self.kv, torch.Generator(place.device).manual_seed(1))
        self._random = torch.Generator().manual_seed(2)

    def table(self, sequences: int, context: int) -> Tensor:
        """[sequences + 1, pages]: pages of every sequence, and the row that nobody owns."""
        width = -(-context // PAGE_SIZE)
        if sequences * width > self._pages:
            raise ValueError(f"{sequences} sequences of {context} tokens do not fit {self._pages} pages")
        order = torch.randperm(self._pages, generator=self._random)[: sequences * width].view(sequences, width)
        return torch.cat([order, torch.zeros(1, width, dtype=torch.int64)]).to(self.place.device)

    def inputs(self, table: Tensor, rows_each: int, context: int) -> StepInputs:
        """The last `rows_each` tokens of every sequence."""
        sequences = table.shape[0] - 1
        pages = table.tolist()
        here = range(context - rows_each, context)
        tokens = torch.randint(self.model.config.vocab_size, (sequences * rows_each,), generator=self._random)
        return StepInputs(
            tokens=tokens.tolist(),
            positions=[*here] * sequences,
            slots=[pages[s][p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for s in range(sequences) for p in here],
            query_starts=range(0, sequences * rows_each + 1, rows_each),
            kv_lengths=[context] * sequences,
            table_rows=range(sequences),
            new_pages=(),
        )

    def graph(self, table: Tensor, rows_each: int, context: int, *, eager: bool = False) -> StepGraph:
        """A step of all sequences of the table, captured, or (`eager`) called kernel by kernel."""
        sequences = table.shape[0] - 1
        rows, config = sequences * rows_each, self.model.config
        outputs = (
            torch.zeros(rows, config.hidden_size, dtype=torch.bfloat16, device=self.place.device),
            torch.zeros(rows, config.vocab_size, device=self.place.device),
        )
        device: GraphDevice = CalledAgain() if eager else self.place.graphs
        return StepGraph(self.model, device, Shape(sequences, rows_each, context), outputs, table=table, kv=self.kv, row_tile=None)

    def hits(self, table: Tensor, rows_each: int, context: int, inputs: StepInputs) -> float:
        """Distinct routed experts per layer that a step hits, on average over the layers."""
        with counted(self.model) as counts:
            step = self.graph(table, rows_each, context, eager=True)  # which runs on nothing but padding
            counts.clear()
            step.run(inputs)
        return sum(counts) / max(1, len(counts))

    def chunk(self, table: Tensor, first: int, count: int, tokens: Tensor, *, beside: int = 0, every_row: bool = False) -> Tensor:
        """`count` tokens of the first sequence from position `first` on, and one more of each of `beside` others.

        Returns logits [1 + beside, V] of each one's last token, or with `every_row` of all rows.
        """
        positions = torch.arange(first, first + count, device=self.place.device)
        last = table.shape[1] * PAGE_SIZE - 1
        places = torch.cat([positions, torch.full((beside,), last, device=self.place.device)])
        owners = torch.cat([torch.zeros_like(positions), torch.arange(1, beside + 1, device=self.place.device)])
        batch = PagedBatch(
            query_starts=(0, *range(count, count + beside + 1)),
            kv_lengths=(first + count, *(last + 1,) * beside),
            page_table=table[: beside + 1],
            slots=table[owners, places // PAGE_SIZE] * PAGE_SIZE + places % PAGE_SIZE,
            kv=self.kv,
        )
        hidden = self.model(tokens, ForwardContext(places, batch, native=True))
        return self.model.logits(hidden if every_row else hidden[count - 1 :])


class UniformChoice:
    """In place of a router: for every row K experts at random, the same each time, and the shared ones."""

    def __init__(self, rows: int, config: ModelConfig, generator: torch.Generator) -> None:
        device, count = generator.device, config.n_routed_experts
        chosen, shared = config.num_experts_per_tok, config.n_shared_experts
        ids = torch.rand(rows, count, generator=generator, device=device).topk(chosen, dim=1).indices.sort(dim=1).values
        own = torch.arange(count, count + shared, device=device).expand(rows, shared)
        self._ids = torch.cat([ids, own], 1).int()
        self._weights = torch.full((rows, chosen + shared), 1.0 / chosen, device=device)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, H] -> ids [T, K + S] and weights."""
        return self._ids[: x.shape[0]], self._weights[: x.shape[0]]


@contextmanager
def uniform_routing(model: GlmModel, rows: int) -> Iterator[None]:
    """Every layer chooses by a table of its own, for up to `rows` rows, so that hits are those of random and independent choices."""
    generator = torch.Generator(model.embed_tokens.device).manual_seed(3)
    layers = _experts(model)
    before = [layer.choose for layer in layers]
    for layer in layers:
        layer.choose = UniformChoice(rows, model.config, generator)
    try:
        yield
    finally:
        for layer, choose in zip(layers, before, strict=True):
            layer.choose = choose


@contextmanager
def counted(model: GlmModel) -> Iterator[list[int]]:
    """A list that every layer appends to when it runs: how many distinct routed experts its rows chose. Waits for the host."""
    counts: list[int] = []
    layers = _experts(model)
    before = [layer.choose for layer in layers]
    for layer in layers:
        layer.choose = _Counting(layer.choose, model.config.num_experts_per_tok, counts)
    try:
        yield counts
    finally:
        for layer, choose in zip(layers, before, strict=True):
            layer.choose = choose


class _Counting:
    """A choice that is counted."""

    def __init__(self, inner: Choice, chosen: int, counts: list[int]) -> None:
        self._inner, self._chosen, self._counts = inner, chosen, counts

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ids, weights = self._inner(x)
        self._counts.append(ids[:, : self._chosen].unique().numel())
        return ids, weights


def _experts(model: GlmModel) -> list[DeviceExperts]:
    """`DeviceExperts` of the trunk's layers and of the MTP layer."""
    from openglm.ops.triton.experts import DeviceExperts
    from openglm.ops.triton.layer import DeviceMTP, DeviceTrunk

    trunk, mtp = model.packed, None if model.mtp is None else model.mtp.packed
    assert isinstance(trunk, DeviceTrunk)
    layers = [*trunk.layers, mtp.layer] if isinstance(mtp, DeviceMTP) else trunk.layers
    return [layer.mlp for layer in layers if isinstance(layer.mlp, DeviceExperts)]
