"""Settings for every test of the engine."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Bitwise comparisons hold for a fixed number of threads, and tiny products gain nothing from a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
