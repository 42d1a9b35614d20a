"""`ForwardContext`: everything a forward pass needs besides weights and tokens.

A step processes T tokens of several requests or documents, concatenated. Whether they attend to KV pages (inference) or
to each other (training, scoring without a cache) is the only difference; the model code is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.ops import FP8, PAGE_SIZE, Bucket, Fp8KV, KVLayer, PagedBatch, Routing

OnRouting = Callable[[int, Routing], None]


@dataclass(frozen=True)
class DenseBatch:
    """Whole documents, one after another, attending causally within themselves."""

    lengths: Sequence[int]
    device: torch.device | str = "cpu"
    buckets: tuple[Bucket, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Group documents by length, rounded up to 1.25-fold steps, so that little of the attention is padding."""
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("a dense batch needs at least one document and no empty one")
        lengths = torch.tensor(self.lengths)
        starts = lengths.cumsum(0) - lengths
        by_width: dict[int, list[int]] = {}
        for document, length in enumerate(self.lengths):
            by_width.setdefault(_bucket_width(length), []).append(document)
        buckets = []
        for documents in by_width.values():
            width = max(self.lengths[d] for d in documents)
            rows, columns = (torch.arange(width) < lengths[documents].unsqueeze(1)).nonzero(as_tuple=True)
            tokens, cells = starts[documents][rows] + columns, rows * width + columns
            buckets.append(Bucket(tokens.to(self.device), cells.to(self.device), len(documents), width))
        object.__setattr__(self, "buckets", tuple(buckets))


@dataclass(frozen=True)
class ForwardContext:
    """One step. `row_tile` asks for results that do not depend on batch company (see `ops.reference`); `native` for `ops.cpu`."""

    positions: Tensor  # [T] int64
    attention: PagedBatch | DenseBatch
    row_tile: int | None = None
    on_routing: OnRouting | None = None  # called by every MoE layer with its index; not with packed weights
    native: bool = False  # the model's weights are packed: norms, rotation and attention run in native kernels as well

    @property
    def pages(self) -> PagedBatch:
        """The requests over KV pages, the only batch that a packed model runs; `ValueError` for documents."""
        if not isinstance(self.attention, PagedBatch):
            raise ValueError("a packed model only runs over KV pages")
        return self.attention

    @classmethod
    def dense(
        cls,
        lengths: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        row_tile: int | None = None,
        on_routing: OnRouting | None = None,
    ) -> ForwardContext:
        """Context for whole documents of these lengths, each starting at position 0."""
        batch = DenseBatch(lengths, device)
        positions = torch.cat([torch.arange(n, device=device) for n in lengths])
        return cls(positions, batch, row_tile, on_routing)


def allocate_kv(
    config: ModelConfig, num_pages: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> list[KVLayer]:
    """Zeroed KV pages for every layer and, last, the MTP layer: each [num_pages, 2, kv_heads, 64, head_dim], with scales if in fp8."""
    shape = (num_pages, 2, config.num_key_value_heads, PAGE_SIZE, config.head_dim)
    layers: list[KVLayer] = []
    for _ in range(config.num_kv_layers):
        data = torch.zeros(shape, dtype=dtype, device=device)
        layers.append(Fp8KV(data, torch.zeros(shape[:-1], device=device)) if dtype == FP8 else data)
    return layers


def _bucket_width(length: int) -> int:
    width = 16
    while width < length:
        width += max(8, width // 4 // 8 * 8)
    return width
