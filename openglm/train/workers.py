"""Data parallelism over processes: every worker takes every n-th document of a batch and gradients are summed.

Several single-threaded workers use a CPU better than one process with several threads, because they wait for each other
once per step instead of once per operation. Works under `torchrun`; alone, every method is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """This process's place among the workers."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, rank: int, count: int) -> Workers:
        """Meet the other workers (their address is in torchrun's environment); `count` 1 needs nobody."""
        if count > 1:
            dist.init_process_group("gloo", rank=rank, world_size=count)
        return cls(rank, count)

    @property
    def is_first(self) -> bool:
        """Whether this worker keeps the log and the checkpoints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over workers, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over workers, in one transfer. Missing gradients count as zero."""
        if self.count == 1:
            return
        parameters = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        self.sum(flat)
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def meet(self) -> None:
        """Wait until every worker is here."""
        self.sum(torch.zeros(1))

    def leave(self) -> None:
        """Part from the other workers, once all of them are here.

        They meet in the launcher's key-value store, not by a collective: who has left a collective may still owe its
        neighbour bytes, and gloo can end a process whose connection is closed under its last read (pytorch/gloo#155).
        """
        group = dist.group.WORLD
        if self.count > 1 and group is not None:
            store = group.get_group_store()
            if store.add("openglm/leaving", 1) == self.count:
                store.set("openglm/all_leaving", "yes")
            store.wait(["openglm/all_leaving"])
            dist.destroy_process_group()
