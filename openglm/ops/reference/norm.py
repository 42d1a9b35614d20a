"""RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dim: x [..., D], weight [D] -> [..., D] in the dtype of x.

    Computed in fp32 and cast back **before** the weight is applied, as transformers' Glm4MoeRMSNorm does.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight
