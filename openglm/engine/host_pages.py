"""The tensors of the host tier: copies of KV pages in host memory. Carries out what `openglm.engine.host_tier` decided.

All tensors of a layer are copied as they are (with fp8 KV the numbers and their scales), so a page that comes back is bit for bit the
page that left. On a GPU the host side is pinned, and the copies run on the stream of the steps, hence in order with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openglm.engine.host_tier import Transfer
from openglm.ops import KVLayer, kv_tensors


class HostPages:
    """`num_slots` page slots behind the pages of `kv`."""

    def __init__(self, kv: Sequence[KVLayer], num_slots: int) -> None:
        self._device = [tensor for layer in kv for tensor in kv_tensors(layer)] if num_slots else []
        self._host = [torch.empty(num_slots, *t.shape[1:], dtype=t.dtype, pin_memory=t.is_cuda) for t in self._device]

    def apply(self, transfers: Sequence[Transfer]) -> None:
        """Copy pages in the given order."""
        for kind, page, slot in transfers:
            for device, host in zip(self._device, self._host, strict=True):
                if kind == "store":
                    host[slot].copy_(device[page], non_blocking=True)
                else:
                    device[page].copy_(host[slot], non_blocking=True)
