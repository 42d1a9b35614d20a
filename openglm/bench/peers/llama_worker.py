"""llama.cpp as a peer, through the C interface that `llama-cpp-python` binds; runs in an environment of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from openglm.bench.peers.job import DECODE_STEPS, PREFILL_CHUNK, Job, answer, chunks, measure, read_job


class _Session:
    """One context whose sequences share their KV cells, as far as their tokens are the same."""

    def __init__(self, api: Any, job: Job) -> None:
        self.api = api
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(job.model.encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {job.model}")
        settings = api.llama_context_default_params()
        settings.n_ctx = job.most_context + job.most_batch * DECODE_STEPS
        settings.n_batch = PREFILL_CHUNK
        settings.n_seq_max = self.most_batch = job.most_batch
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = job.threads
        settings.no_perf = True
        self.context = api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.memory = api.llama_get_memory(self.context)
        self.batch = api.llama_batch_init(PREFILL_CHUNK, 0, 1)
        self.prompt: Sequence[int] = ()  # what sequence 0 begins with

    def prefill(self, prompt: Sequence[int]) -> None:
        self.api.llama_memory_clear(self.memory, True)
        self.prompt = prompt
        for first, part in chunks(prompt):
            last = first + len(part) == len(prompt)
            self._decode([(token, first + i, 0, last and i == len(part) - 1) for i, token in enumerate(part)])

    def start_decoding(self, prompt: Sequence[int], batch: int) -> Callable[[int, Sequence[int]], object]:
        if prompt == self.prompt:  # only what stands behind it is from an earlier workload
            for sequence in range(1, self.most_batch):
                self.api.llama_memory_seq_rm(self.memory, sequence, -1, -1)
            self.api.llama_memory_seq_rm(self.memory, 0, len(prompt), -1)
        else:
            self.prefill(prompt)
        for sequence in range(1, batch):
            self.api.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

        def step(index: int, tokens: Sequence[int]) -> None:
            self._decode([(token, len(prompt) + index, sequence, True) for sequence, token in enumerate(tokens)])

        return step

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Tokens at positions of sequences, and whether their logits are wanted."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        code = self.api.llama_decode(self.context, self.batch)
        if code:
            raise RuntimeError(f"llama_decode ended with code {code}")
        self.api.llama_synchronize(self.context)


def work() -> None:
    """Load, then measure what the job asks for."""
    import llama_cpp  # type: ignore[import-not-found]  # of the environment this runs in

    job = read_job()
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda level, text, user: None)
    llama_cpp.llama_log_set(quiet, None)
    started = time.perf_counter()
    session = _Session(llama_cpp, job)
    features = llama_cpp.llama_print_system_info().decode().strip()
    answer(loaded_s=time.perf_counter() - started, version=f"llama-cpp-python {metadata.version('llama-cpp-python')}, {features}")
    measure(job, session.prefill, session.start_decoding)


if __name__ == "__main__":
    work()
