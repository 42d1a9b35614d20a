"""From an `EngineConfig` to a running `EngineCore`: find the model, resolve the configuration, load, warm up."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openglm import env, ops
from openglm.checkpoint import load_config, load_model, load_packed_model
from openglm.config import ModelConfig, variant
from openglm.config.engine import EngineConfig, Machine, ResolvedEngineConfig, model_directory, resize_cache, resolve
from openglm.config.offload import Bandwidths
from openglm.engine.calibration import calibrate
from openglm.engine.core import EngineCore
from openglm.engine.draft_check import what_is_wrong
from openglm.engine.grammar import AnswerMarks, Vocabulary
from openglm.engine.mtp import MTPProposer
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.thinking import ThinkingTokens
from openglm.errors import CheckpointError, ConfigError
from openglm.model import GlmModel
from openglm.text.detokenizer import IncrementalDetokenizer
from openglm.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

OnPhase = Callable[[str], None]
_WARM_UP_TOKENS = 32
_TELL_EVERY_PERCENT = 5
_BANDWIDTH_BYTES = 512 << 20
_SIZES = ("kv_cache_tokens ", "max_model_len ")  # reasons that measuring replaces


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready for requests, and how it came to be configured."""

    core: EngineCore
    tokenizer: Tokenizer | None  # None with load_format "dummy"
    reasons: tuple[str, ...]


def load_engine(config: EngineConfig, *, on_phase: OnPhase | None = None) -> LoadedEngine:
    """Load the model and build its engine; sets torch's thread count, on which results may depend.

    `on_phase` hears what is being done, for whoever waits.

    Raises `ConfigError` or `CheckpointError` when the model cannot be used as asked.
    """
    tell = on_phase or (lambda _: None)
    tell("reading the configuration")
    directory = model_directory(config.model) if config.load_format == "auto" else None
    model_config = load_config(directory) if directory is not None else variant(config.model or "")
    machine = this_machine(config.device)
    if config.cpu_offload_gb and machine.device != "cpu":
        tell("measuring memory bandwidths")
        machine = replace(machine, bandwidths=_bandwidths(torch.device(machine.device)))
    stored = None if directory is None else sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    resolved, reasons = resolve(config, model_config, machine, stored_bytes=stored)
    if resolved.threads is not None and resolved.torch_threads is not None:
        torch.set_num_threads(resolved.torch_threads)
        ops.cpu.set_num_threads(resolved.threads)
    tell("loading weights")
    tokenizer: Tokenizer | None = None
    if directory is None:
        model = GlmModel(model_config, device=machine.device, dtype=getattr(torch, resolved.dtype)).init_weights(0)
        if resolved.native_kernels or resolved.device_kernels:
            model.pack(resolved.quantization, only_drafts=_drafts_with_mtp(resolved))
        resolved, reasons = _with_measured_cache(resolved, reasons, config, model_config, machine)
        core = EngineCore(model, resolved, stop_ids=model_config.eos_token_id)
    else:
        tokenizer = Tokenizer.from_dir(directory)
        without_mtp = config.num_speculative_tokens == 0 or config.speculative_method == "ngram"
        model = _load(directory, resolved, allow_missing_mtp=without_mtp, cores=machine.cores, tell=tell)
        resolved, reasons = _with_measured_cache(resolved, reasons, config, model_config, machine)
        if resolved.adaptive_drafts and resolved.speculative_method == "mtp":
            wrong = what_is_wrong(model, tokenizer, max_tokens=resolved.max_model_len)
            if wrong is not None:
                logger.warning(
                    "speculation is off: the MTP layer of %s does not work (%s); num_speculative_tokens 1 uses it all the same",
                    directory,
                    wrong,
                )
                resolved = replace(resolved, num_speculative_tokens=0, adaptive_drafts=False)
                reasons = (*reasons, f"num_speculative_tokens 0 after all: {wrong}")
        core = core_of(model, resolved, tokenizer, stop_ids=stop_ids(directory, model_config, tokenizer))
    tell("warming up")
    warm_up(core)
    return LoadedEngine(core, tokenizer, reasons)


def _with_measured_cache(
    resolved: ResolvedEngineConfig, reasons: tuple[str, ...], config: EngineConfig, model: ModelConfig, machine: Machine
) -> tuple[ResolvedEngineConfig, tuple[str, ...]]:
    """On a GPU: the KV cache that the loaded weights really leave room for."""
    if machine.device == "cpu":
        return resolved, reasons
    torch.cuda.synchronize(machine.device)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(machine.device)
    resolved, sized = resize_cache(resolved, config, model, machine, weights=machine.memory_bytes - free)
    return resolved, (*(reason for reason in reasons if not reason.startswith(_SIZES)), *sized)


def _bandwidths(device: torch.device) -> Bandwidths:
    """Bytes per second at which device and host read, the host with as many threads as its kernels use; takes well under a second."""
    rates = []
    for place in (device, torch.device("cpu")):
        memory = torch.ones(_BANDWIDTH_BYTES // 4, dtype=torch.float32, device=place)
        fastest = math.inf
        for _ in range(4):
            start = time.perf_counter()
            memory.sum().item()
            fastest = min(fastest, time.perf_counter() - start)
        rates.append(_BANDWIDTH_BYTES / fastest)
    return Bandwidths(device=rates[0], host=rates[1])


def _load(directory: Path, resolved: ResolvedEngineConfig, *, allow_missing_mtp: bool, cores: int, tell: OnPhase) -> GlmModel:
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done == total or 100 * done >= total * (told + _TELL_EVERY_PERCENT):
            told = 100 * done // total
            tell(f"loading weights, {told} %")

    dtype = getattr(torch, resolved.dtype)
    if not (resolved.native_kernels or resolved.device_kernels):
        return load_model(directory, dtype=dtype, device=resolved.device, allow_missing_mtp=allow_missing_mtp, progress=progress)
    return load_packed_model(
        directory,
        dtype=dtype,
        to=resolved.quantization,
        only_drafts=_drafts_with_mtp(resolved),
        device=resolved.device,
        host_experts=resolved.host_experts,
        allow_missing_mtp=allow_missing_mtp,
        threads=cores,
        progress=progress,
    )


def _drafts_with_mtp(resolved: ResolvedEngineConfig) -> bool:
    return resolved.num_speculative_tokens > 0 and resolved.speculative_method == "mtp"


def core_of(model: GlmModel, config: ResolvedEngineConfig, tokenizer: Tokenizer, *, stop_ids: tuple[int, ...] | None = None) -> EngineCore:
    """An engine over a model in memory and its tokenizer."""
    if tokenizer.num_tokens > model.config.vocab_size:
        raise CheckpointError(f"the tokenizer has {tokenizer.num_tokens} tokens, the model's vocabulary only {model.config.vocab_size}")
    ends = tokenizer.stop_ids if stop_ids is None else stop_ids
    return EngineCore(
        model,
        config,
        num_tokens=tokenizer.num_tokens,
        stop_ids=ends,
        detokenizer=lambda: IncrementalDetokenizer(tokenizer, skip_special=False),
        thinking=thinking_tokens(tokenizer),
        vocabulary=vocabulary_of(tokenizer, ends),
    )


def vocabulary_of(tokenizer: Tokenizer, stop_ids: tuple[int, ...]) -> Vocabulary:
    """What constraints need of a tokenizer."""
    return Vocabulary(
        [tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)],
        special=tokenizer.added_tokens.values(),
        end_ids=[i for i in stop_ids if i < tokenizer.num_tokens],
        marks=AnswerMarks(
            assistant=tokenizer.assistant,
            think=tokenizer.think,
            end_think=tokenizer.end_think,
            tool_call=tokenizer.tool_call,
            end_tool_call=tokenizer.end_tool_call,
            arg_value=tokenizer.arg_value,
            end_arg_value=tokenizer.end_arg_value,
        ),
        encode=tokenizer.encode_text,
    )


def thinking_tokens(tokenizer: Tokenizer) -> ThinkingTokens:
    """The ids that thinking budgets count and force."""
    newline = tokenizer.encode_text("\n")
    return ThinkingTokens(tokenizer.think, tokenizer.end_think, newline[0] if len(newline) == 1 else None, tokenizer.tool_call)


def stop_ids(directory: Path, config: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a turn, according to the tokenizer's role markers, config.json or generation_config.json."""
    generation = _read_json(directory / "generation_config.json").get("eos_token_id", [])
    listed = generation if isinstance(generation, list) else [generation]
    if not all(isinstance(i, int) and 0 <= i < config.vocab_size for i in listed):
        raise CheckpointError(f"{directory / 'generation_config.json'}: eos_token_id must hold ids below {config.vocab_size}")
    return tuple(dict.fromkeys((*tokenizer.stop_ids, *config.eos_token_id, *listed)))


def this_machine(device: str = "auto") -> Machine:
    """Cores and memory of the device that "auto" or a name means."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        cores = env.num_threads() or len(os.sched_getaffinity(0))
        return Machine("cpu", cores, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), ops.cpu.available())
    if device.partition(":")[0] != "cuda" or not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} is not usable here; use auto, cpu or cuda")
    free, total = torch.cuda.mem_get_info(device)
    return Machine(
        device,
        os.cpu_count() or 1,
        free,
        ops.cpu.available(),
        device_kernels=importlib.util.find_spec("triton") is not None,
        total_bytes=total,
        host_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def warm_up(core: EngineCore) -> None:
    """Run one short request, so that the first user does not pay for lazy initialisation, and measure what drafts cost."""
    prompt = [i % core.num_tokens for i in range(min(_WARM_UP_TOKENS, core.config.max_model_len - 1))]
    core.add(GenerationRequest("warm-up", prompt, SamplingParams(max_tokens=4, top_p=0.9, seed=0, ignore_eos=True)))
    while core.has_work:
        core.step()
    if core.runner.graphs is not None:
        core.runner.graphs.record_all()
        count = len(core.runner.graphs.num_replays)
        if isinstance(core.proposer, MTPProposer) and core.proposer.graphs is not None:
            core.proposer.graphs.record_all()
            count += len(core.proposer.graphs.num_replays)
        logger.info("%d graphs take %.2f GiB", count, core.runner.graphs.memory_bytes / 2**30)
    calibrate(core)
    core.start_over()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return data
