"""Memory of a weight on the device takes rows as they come: codes as they are, other rows rounded once."""

import pytest
import torch

from openglm.ops import FP8, quantize_kv
from openglm.ops.triton.matrix import DeviceMatrix

CPU = torch.device("cpu")


def test_rows_are_rounded_by_their_largest_element():
    weight = torch.randn(5, 12)
    weight[3] = 0
    matrix = DeviceMatrix.empty(5, 12, FP8, CPU)
    for first, last in ((3, 5), (0, 3)):
        assert matrix.fill(first, weight[first:last])
    codes, scales = quantize_kv(weight)
    assert torch.equal(matrix.data.view(torch.uint8), codes.view(torch.uint8)) and torch.equal(matrix.scales, scales)
    assert ((codes.float() * scales.unsqueeze(1) - weight).abs() <= weight.abs() / 16 + 1e-3 * scales.unsqueeze(1)).all()


def test_codes_and_scales_of_a_checkpoint_stay_what_they_are():
    codes, scales = torch.arange(255, dtype=torch.uint8).view(5, 51).view(FP8), torch.rand(5)
    matrix = DeviceMatrix.empty(8, 51, FP8, CPU)
    matrix.part(2, 8).fill(1, codes, scales)
    assert torch.equal(matrix.data[3:].view(torch.uint8), codes.view(torch.uint8)) and torch.equal(matrix.scales[3:], scales)


@pytest.mark.parametrize(
    ("dtype", "rows", "scale"),
    [
        (FP8, torch.zeros(2, 7), None),
        (FP8, torch.zeros(4, 8), None),
        (FP8, torch.zeros(2, 8), torch.ones(3)),
        (FP8, torch.zeros(2, 8, dtype=FP8), None),
        (torch.bfloat16, torch.zeros(2, 8, dtype=FP8), torch.ones(2)),
        (torch.bfloat16, torch.zeros(2, 8), torch.ones(2)),
        (torch.bfloat16, torch.zeros(8), None),
    ],
)
def test_rows_that_do_not_fit_are_refused(dtype, rows, scale):
    with pytest.raises(ValueError):
        DeviceMatrix.empty(3, 8, dtype, CPU).fill(0, rows, scale)
