from __future__ import annotations

import pytest
import torch

from openglm.ops import reference
from openglm.ops.triton.norm import add_rms_norm, rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 64), (5, 100)])
def test_norm_and_its_fused_addition_equal_the_reference(dtype: torch.dtype, rows: int, width: int) -> None:
    x, residual = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.linspace(0.5, 2, width).to(dtype)
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed, reference.norm.rms_norm(x + residual, weight, 1e-5))
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), reference.norm.rms_norm(x, weight, 1e-5))
