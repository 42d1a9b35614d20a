"""transformers in bf16; the format names the implementation of its experts. `batched_mm` copies every expert per token and is left out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from openglm.bench.peers.job import answer, chunks, measure, read_job


@torch.inference_mode()
def work() -> None:
    """Load, then measure what the job asks for."""
    import transformers

    job = read_job()
    torch.set_num_threads(job.threads)
    started = time.perf_counter()
    implementation = job.format.partition(" ")[2]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, experts_implementation=implementation, local_files_only=True
    )
    model.eval()
    answer(loaded_s=time.perf_counter() - started, version=f"transformers {transformers.__version__}, torch {torch.__version__}")
    prompts: dict[int, Any] = {}  # caches of prompts by length, as measured prompts are a function of their length

    def run(prompt: Sequence[int]) -> Any:
        cache = transformers.DynamicCache(config=model.config)
        for _, part in chunks(prompt):
            model(input_ids=torch.tensor([list(part)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def start_decoding(prompt: Sequence[int], batch: int) -> Callable[[int, Sequence[int]], object]:
        if len(prompt) not in prompts:
            prompts.clear()
            prompts[len(prompt)] = run(prompt)
        cache = copy.deepcopy(prompts[len(prompt)])
        cache.batch_repeat_interleave(batch)

        def step(index: int, tokens: Sequence[int]) -> object:
            return model(input_ids=torch.tensor([[token] for token in tokens]), past_key_values=cache, use_cache=True).logits

        return step

    measure(job, run, start_decoding)


if __name__ == "__main__":
    work()
