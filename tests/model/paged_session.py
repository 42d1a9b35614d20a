"""Drives a model over KV pages the way an engine does: several requests per step, pages handed out in shuffled order."""

import torch
from torch import Tensor

from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE


class PagedSession:
    """KV pages of a few requests. Unused slots hold large finite numbers: whatever reads them shows up in the logits."""

    def __init__(self, model: GlmModel, *, num_requests: int, max_length: int, seed: int = 0, row_tile: int | None = None) -> None:
        self.model, self.row_tile = model, row_tile
        pages_each = -(-max_length // PAGE_SIZE)
        order = torch.randperm(num_requests * pages_each + 3, generator=torch.Generator().manual_seed(seed))
        self.page_table = order[: num_requests * pages_each].view(num_requests, pages_each)
        self.kv = [layer.fill_(1e4) for layer in allocate_kv(model.config, len(order))]

    def context(self, spans: dict[int, tuple[int, int]]) -> ForwardContext:
        """A step in which request r gets the positions [first, last) of spans[r]."""
        requests = list(spans)
        positions = [torch.arange(first, last) for first, last in spans.values()]
        slots = [self.page_table[r][p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for r, p in zip(requests, positions, strict=True)]
        starts = [0]
        for p in positions:
            starts.append(starts[-1] + len(p))
        batch = PagedBatch(
            query_starts=tuple(starts),
            kv_lengths=tuple(last for _, last in spans.values()),
            page_table=self.page_table[requests],
            slots=torch.cat(slots),
            kv=self.kv,
        )
        return ForwardContext(torch.cat(positions), batch, self.row_tile)

    def trunk(self, tokens: dict[int, Tensor], firsts: dict[int, int]) -> dict[int, Tensor]:
        """Run `tokens[r]` at positions from `firsts[r]`; hidden states [n, H] by request."""
        context = self.context({r: (firsts[r], firsts[r] + len(t)) for r, t in tokens.items()})
        hidden = self.model(torch.cat(list(tokens.values())), context)
        return dict(zip(tokens, hidden.split([len(t) for t in tokens.values()]), strict=True))

    def mtp(self, next_tokens: Tensor, hidden: Tensor, first: int, *, request: int = 0) -> Tensor:
        """Run the MTP layer of one request at positions from `first`; its outputs [n, H]."""
        return self.model.mtp_forward(next_tokens, hidden, self.context({request: (first, first + len(next_tokens))}))
