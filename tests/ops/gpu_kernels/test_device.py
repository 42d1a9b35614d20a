"""What is read of a GPU's properties."""

from types import SimpleNamespace

import pytest
import torch
import triton

from openglm.ops.triton.device import limits


@pytest.mark.parametrize(
    ("hip", "properties", "shared", "is_cuda", "fp8_dot"),
    [
        (None, {"name": "H200", "major": 9, "minor": 0}, 232448, True, True),
        (None, {"name": "L4", "major": 8, "minor": 9}, 101376, True, True),
        (None, {"name": "A100", "major": 8, "minor": 0}, 166912, True, False),
        ("7.0", {"name": "MI300X", "major": 9, "minor": 4, "gcnArchName": "gfx942:sramecc+:xnack-"}, 65536, False, False),
        ("7.0", {"name": "MI355X", "major": 9, "minor": 5, "gcnArchName": "gfx950:sramecc+:xnack-"}, 163840, False, True),
    ],
)
def test_limits_of_a_gpu(monkeypatch, hip, properties, shared, is_cuda, fp8_dot):
    asked = []

    def of_index(index):
        asked.append(index)
        return {"max_shared_mem": shared}

    driver = SimpleNamespace(active=SimpleNamespace(utils=SimpleNamespace(get_device_properties=of_index)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=104, **properties))
    monkeypatch.setattr(triton.runtime, "driver", driver)
    monkeypatch.setattr(torch.version, "hip", hip)
    found = limits.__wrapped__(torch.device("cuda", 3))
    assert (found.name, found.num_sms, found.shared_bytes, asked) == (properties["name"], 104, shared, [3])
    assert (found.is_cuda, found.is_hip, found.fp8_dot) == (is_cuda, hip is not None, fp8_dot)


def test_the_interpreter_is_no_gpu():
    found = limits(torch.device("cpu"))
    assert not found.is_cuda and not found.is_hip and not found.fp8_dot and found.shared_bytes > 0
