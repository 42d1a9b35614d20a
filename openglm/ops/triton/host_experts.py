"""Experts in host memory, computed there by the native CPU kernels while the device computes the rest of the layer.

    device:  route -> copy out (own stream) .... local experts, shared expert ......... add
    host:                              wait -> experts that were hit -> copy in

What crosses the bus is activations: a few kilobytes per token and layer, where an expert of GLM-4.5-Air has 17 MB. The host waits for
the copy, so a layer with host experts cannot be part of a CUDA graph.

Shape legend: T tokens, H hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openglm.ops.cpu import PackedMLP


class HostExperts:
    """The experts `first`, `first` + 1, ... of one layer, as packed CPU weights. Not for several threads at once."""

    def __init__(self, experts: Sequence[PackedMLP], *, first: int) -> None:
        self._experts, self._first = tuple(experts), first
        self._hidden_size = experts[0].gate.in_features
        self._buffers: tuple[Tensor, ...] = ()
        self._stream: torch.cuda.Stream | None = None

    @property
    def num_bytes(self) -> int:
        """Host memory of the weights."""
        return sum(weight.num_bytes for expert in self._experts for weight in (expert.gate, expert.up, expert.down))

    def start(self, x: Tensor, weights: Tensor, ids: Tensor) -> PendingExperts:
        """Begin to copy x [T, H], weights [T, K] and ids [T, K] to the host; the device may go on meanwhile."""
        count = x.shape[0]
        if x.device.type != "cuda":
            return PendingExperts(self, (x.float(), weights.float(), ids), x, None)
        buffers = tuple(buffer[:count] for buffer in self._pinned(x, weights, ids))
        if self._stream is None:
            self._stream = torch.cuda.Stream(x.device)
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._stream):
            for buffer, source in zip(buffers, (x, weights, ids), strict=False):
                buffer.copy_(source, non_blocking=True)
                source.record_stream(self._stream)  # its memory may not be given away before it is copied
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return PendingExperts(self, buffers, x, arrived)

    def compute(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """All in host memory: the weighted sum of those chosen experts that live here, [T, H] fp32; added in the order of expert ids."""
        total = torch.zeros(x.shape[0], self._hidden_size)
        here = (ids >= self._first) & (ids < self._first + len(self._experts))
        for expert in ids[here].unique().tolist():
            rows, places = (ids == expert).nonzero(as_tuple=True)
            taken = x[rows].float()
            out = self._experts[expert - self._first](taken, torch.zeros_like(taken))
            total.index_add_(0, rows, out * weights[rows, places].float().unsqueeze(1))
        return total

    def _pinned(self, x: Tensor, weights: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Page-locked buffers for x, weights, ids and the result, wide enough; they grow and stay."""
        if not self._buffers or self._buffers[0].shape[0] < x.shape[0]:
            rows = max(16, 1 << (x.shape[0] - 1).bit_length())
            shapes = [(x.shape[1:], x.dtype), (weights.shape[1:], weights.dtype), (ids.shape[1:], ids.dtype), (x.shape[1:], torch.float32)]
            with torch.inference_mode(False):  # else they could be written in inference mode only
                self._buffers = tuple(torch.empty((rows, *shape), dtype=dtype, pin_memory=True) for shape, dtype in shapes)
        return self._buffers


class PendingExperts:
    """What `HostExperts.start` began."""

    def __init__(self, experts: HostExperts, buffers: tuple[Tensor, ...], x: Tensor, arrived: torch.cuda.Event | None) -> None:
        self._experts, self._buffers, self._x, self._arrived = experts, buffers, x, arrived

    def finish(self) -> Tensor:
        """Compute on the host and send the result [T, H] fp32 to where x came from."""
        if self._arrived is not None:
            self._arrived.synchronize()
        total = self._experts.compute(*self._buffers[:3])
        if self._arrived is None:
            return total
        # The buffer was last read by the copy of the step before, which the copies to the host, just waited for, stood behind.
        return self._buffers[3].copy_(total).to(self._x.device, non_blocking=True)
