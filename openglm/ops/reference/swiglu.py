"""The gated activation between the two matrix products of an MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor, *, exact: bool = False) -> Tensor:
    """`silu(gate) * up` for gate_up [..., 2M] (gate columns first) -> [..., M].

    `exact` takes the sigmoid in double precision, so that a value does not depend on its place in the loop.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if exact:
        return (gate.double() * gate.double().sigmoid()).to(gate.dtype) * up
    return F.silu(gate) * up
