"""The tensors of the host tier: copies of KV pages in host memory. Carries out what `openglm.engine.host_tier` decided.

All tensors of a layer are copied as they are (with fp8 KV the numbers and their scales), so a page that comes back is bit for bit the
page that left. On a GPU the host side is pinned, and copies run on the stream of the steps, hence in order with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from openglm.engine.host_tier import Transfer
from openglm.ops import KVLayer, kv_tensors


class HostPages:
    """`num_slots` page slots behind the pages of `kv`."""

    def __init__(self, kv: Sequence[KVLayer], num_slots: int) -> None:
        self._device = [tensor for layer in kv for tensor in kv_tensors(layer)]
        pinned = bool(self._device) and self._device[0].is_cuda
        self._host = [torch.empty(num_slots, *t.shape[1:], dtype=t.dtype, pin_memory=pinned) for t in self._device] if num_slots else []

    def apply(self, transfers: Sequence[Transfer]) -> None:
        """Copy pages in the given order. Neighbours of one kind go together, since none of them writes what another reads."""
        for kind, run in groupby(transfers, key=lambda transfer: transfer.kind):
            # Of two writes to one place in a run only the last counts.
            if kind == "store":
                page_of = {transfer.slot: transfer.page for transfer in run}
                self._copy(self._device, list(page_of.values()), self._host, list(page_of))
            else:
                slot_of = {transfer.page: transfer.slot for transfer in run}
                self._copy(self._host, list(slot_of.values()), self._device, list(slot_of))

    @staticmethod
    def _copy(sources: Sequence[torch.Tensor], taken: list[int], targets: Sequence[torch.Tensor], places: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            pages = source[torch.tensor(taken, device=source.device)]
            target[torch.tensor(places, device=target.device)] = pages.to(target.device)
