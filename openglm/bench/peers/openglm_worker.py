"""This package as a peer: the packed model over KV pages, without scheduler and sampler, as the others are measured without theirs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from openglm import ops
from openglm.bench.peers.job import DECODE_STEPS, Job, Workload, answer, chunks, measure, read_job
from openglm.checkpoint import load_packed_model
from openglm.errors import ConfigError
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.model.layers import DecoderLayer
from openglm.ops import PAGE_SIZE, PackedExperts, WeightFormat, cpu

_READ_BYTES = 1 << 28  # more than a last-level cache
_FORMATS: dict[str, WeightFormat | None] = {"bf16": None, "fp8": "fp8", "int8": "int8", "w8a8": "w8a8", "int4": "int4"}


class _Session:
    """One model and pages for the widest workload: those of the common prompt, then one for each sequence."""

    def __init__(self, model: GlmModel, job: Job) -> None:
        self.model = model
        self.format = _FORMATS[job.format]
        self.prompt_pages = -(-job.most_context // PAGE_SIZE)
        self.kv = allocate_kv(model.config, self.prompt_pages + job.most_batch * self._own, torch.bfloat16)
        self.prompt: Sequence[int] = ()  # what the first pages hold
        packed = [layer.packed for layer in model.layers if isinstance(layer, DecoderLayer) and layer.packed is not None]
        self.experts = [layer.mlp for layer in packed if isinstance(layer.mlp, PackedExperts)]
        self.hits_before = (0, 0)

    _own = -(-DECODE_STEPS // PAGE_SIZE) + 1  # pages of a sequence behind the prompt's last full one

    def prefill(self, prompt: Sequence[int]) -> Tensor:
        self.prompt = prompt
        table = torch.arange(self.prompt_pages).unsqueeze(0)
        for first, part in chunks(prompt):
            positions = torch.arange(first, first + len(part))
            batch = PagedBatch((0, len(part)), (first + len(part),), table, positions, self.kv)
            hidden = self.model(torch.tensor(part), ForwardContext(positions, batch, native=True))
        return self.model.logits(hidden[-1:])

    def start_decoding(self, prompt: Sequence[int], batch: int) -> Callable[[int, Sequence[int]], object]:
        shared = len(prompt) // PAGE_SIZE
        if len(prompt) % PAGE_SIZE:
            raise ConfigError(f"a context of {len(prompt)} tokens is not of whole pages")
        if prompt != self.prompt:
            self.prefill(prompt)
        self.hits_before = self._hits()
        own = self.prompt_pages + torch.arange(batch * self._own).view(batch, self._own)
        table = torch.cat([torch.arange(shared).expand(batch, shared), own], dim=1).contiguous()

        def step(index: int, tokens: Sequence[int]) -> Tensor:
            positions = torch.full((batch,), len(prompt) + index)
            slots = table[:, shared + index // PAGE_SIZE] * PAGE_SIZE + index % PAGE_SIZE
            lengths = (len(prompt) + index + 1,) * batch
            attention = PagedBatch(tuple(range(batch + 1)), lengths, table, slots, self.kv)
            return self.model.logits(self.model(torch.tensor(tokens), ForwardContext(positions, attention, native=True)))

        return step

    def beside(self, workload: Workload) -> dict[str, float]:
        """The ceilings at this moment - a rented machine's memory is faster in one minute than in another - and the experts hit."""
        found = {
            "read_bytes_per_second": cpu.read_bandwidth(_READ_BYTES),
            "peak_flops": cpu.peak_flops(self.format or "bfloat16", torch.bfloat16),
        }
        if workload.kind == "decode" and self.experts:
            (steps, hits), (steps_before, hits_before) = self._hits(), self.hits_before
            found["experts_hit"] = (hits - hits_before) / (steps - steps_before)
        return found

    def _hits(self) -> tuple[int, int]:
        counts = [experts.hits for experts in self.experts]
        return sum(steps for steps, _ in counts), sum(hits for _, hits in counts)


@torch.inference_mode()
def work() -> None:
    """Load, then measure what the job asks for."""
    job = read_job()
    torch.set_num_threads(job.threads)
    cpu.set_num_threads(job.threads)
    started = time.perf_counter()
    model = load_packed_model(job.model, dtype=torch.bfloat16, to=_FORMATS[job.format], threads=job.threads)
    answer(loaded_s=time.perf_counter() - started, version=f"openglm, {ops.cpu.available()}")
    session = _Session(model, job)
    measure(job, session.prefill, session.start_decoding, session.beside)


if __name__ == "__main__":
    work()
