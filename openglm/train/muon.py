"""Muon: momentum whose matrix updates are orthogonalised, for many small matrices at once.

Muon wants one matrix per linear map, so fused parameters are cut the way the checkpoint cuts them (q | k | v, gate | up) and
stacked experts count as separate matrices. Matrices of one shape, across all layers, are orthogonalised in one batch.
Source: Keller Jordan's Muon (Newton-Schulz quintic); update scale 0.2 * sqrt(max(rows, columns)) from Moonlight, arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: [B, m, n] -> [B, m, n] fp32 with singular values near 1 (0.7 to 1.2).

    Five Newton-Schulz steps in bf16, on the side with fewer rows.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.transpose(1, 2).contiguous() if tall else x
    x = x / (x.float().flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7).bfloat16()
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).float()


@dataclass(frozen=True)
class MatrixParameter:
    """A parameter under Muon and the row blocks into which it is cut: [rows, n] or stacked [E, rows, n]."""

    parameter: nn.Parameter
    row_blocks: tuple[int, ...]

    def cut(self, values: Tensor) -> list[Tensor]:
        """The separate matrices of `values` (shaped like the parameter) as batches [B, m, n] that share its memory."""
        stacked = values if values.dim() == 3 else values.unsqueeze(0)
        return list(torch.split(stacked, list(self.row_blocks), dim=1))


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised update of fixed RMS, decoupled weight decay."""

    def __init__(self, matrices: Sequence[MatrixParameter], *, lr: float, momentum: float, update_rms: float, weight_decay: float) -> None:
        self.matrices = tuple(matrices)
        defaults = {"lr": lr, "momentum": momentum, "update_rms": update_rms, "weight_decay": weight_decay}
        super().__init__([m.parameter for m in self.matrices], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix once; parameters without a gradient stay untouched."""
        del closure
        group = self.param_groups[0]
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for matrix in self.matrices:
            parameter = matrix.parameter
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            buffer = state["momentum"]
            buffer.lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(buffer, group["momentum"])
            for target, piece in zip(matrix.cut(parameter.data), matrix.cut(update), strict=True):
                by_shape.setdefault((piece.shape[1], piece.shape[2]), []).append((target, piece))
        for shape, pairs in by_shape.items():
            updates = orthogonalise(torch.cat([piece for _, piece in pairs]))
            scale = group["lr"] * group["update_rms"] * max(shape) ** 0.5
            for (target, _), update in zip(pairs, updates.split([len(target) for target, _ in pairs]), strict=True):
                target.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)
