"""What kernels and graphs ask of a batch over pages."""

import pytest
import torch

from openglm.model import PagedBatch


def test_lengths_lie_beside_the_page_table_and_have_bounds():
    batch = PagedBatch((0, 3, 4), (70, 9), torch.tensor([[0, 1], [2, 0]]), torch.arange(4), [])
    assert batch.offsets.tolist() == [0, 3, 4, 70, 9] and batch.offsets.dtype == torch.int64
    assert (batch.num_requests, batch.max_query_len, batch.max_kv_len) == (2, 3, 70)


def test_a_static_batch_reads_what_its_buffer_holds_later():
    offsets = torch.tensor([0, 1, 2, 5, 6])
    table = torch.zeros(2, 4, dtype=torch.int64)
    batch = PagedBatch.static(offsets=offsets, max_query_len=1, max_kv_len=256, page_table=table, slots=torch.tensor([4, 5]), kv=[])
    offsets[3] = 80
    assert batch.offsets is offsets and (batch.num_requests, batch.max_query_len, batch.max_kv_len) == (2, 1, 256)


def test_offsets_must_fit_the_page_table():
    table = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="do not belong"):
        PagedBatch.static(offsets=torch.zeros(4), max_query_len=1, max_kv_len=1, page_table=table, slots=table[0], kv=[])
