"""Steps of a model over KV pages: a ragged prefill, decode, verify rows, drafts. The same for every set of kernels."""

from itertools import pairwise

import torch

from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE


class Steps:
    """Two requests on shuffled pages, the longer one over a page's end."""

    def __init__(self, model: GlmModel, kv_dtype: torch.dtype) -> None:
        self.model = model
        self.kv = allocate_kv(model.config, 5, kv_dtype)
        self.table = torch.tensor([[3, 1], [4, 0]])

    def context(self, first: list[int], counts: list[int], *, static: bool = False) -> ForwardContext:
        positions = torch.cat([torch.arange(f, f + n) for f, n in zip(first, counts, strict=True)])
        owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        slots = self.table[owners, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
        starts = (0, *torch.tensor(counts).cumsum(0).tolist())
        lengths = tuple(f + n for f, n in zip(first, counts, strict=True))
        if static:
            batch = PagedBatch.static(
                offsets=torch.tensor((*starts, *lengths)),
                max_query_len=max(b - a for a, b in pairwise(starts)),
                max_kv_len=128,
                page_table=self.table,
                slots=slots,
                kv=self.kv,
            )
        else:
            batch = PagedBatch(starts, lengths, self.table, slots, self.kv)
        return ForwardContext(positions, batch)


@torch.inference_mode()
def run_steps(model: GlmModel, *, kv_dtype: torch.dtype = torch.float32, length: int = 66, static: bool = False) -> list[torch.Tensor]:
    """Logits of prefill, decode and verify rows, and of the MTP layer."""
    steps = Steps(model, kv_dtype)
    vocabulary = model.config.vocab_size
    tokens = (torch.arange(2 * length + 40) * 37 + 5) % vocabulary
    out, hidden = [], torch.empty(0)
    at = [0, 0]
    for counts in ([length, 5], [1, 1], [3, 2]):
        count = sum(counts)
        ctx = steps.context(at, counts, static=static)
        hidden = model(tokens[:count], ctx)
        out.append(model.logits(hidden))
        model.mtp_write_kv(tokens[1 : count + 1], hidden, ctx)
        at = [a + n for a, n in zip(at, counts, strict=True)]
    ctx = steps.context([at[0] - 3, at[1] - 2], [3, 2], static=static)
    out.append(model.logits(model.mtp_forward(tokens[7:12], hidden, ctx)))
    return out
