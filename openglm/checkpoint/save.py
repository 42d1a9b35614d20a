"""Saving a model in the published layout: per-expert tensors, the MTP layer as the layer after the trunk, shards and their index.

The same weights give the same bytes. The directory is replaced as a whole (`staging`), so a kill or a full disk at any moment leaves
what was there before; the tokenizer and other files beside an overwritten checkpoint stay.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openglm.checkpoint.layout import CONFIG_NAME, INDEX_NAME, MTP_NAME, SINGLE_NAME
from openglm.checkpoint.names import NameTable
from openglm.checkpoint.staging import replaced_directory
from openglm.checkpoint.writer import OutgoingTensor, write_safetensors
from openglm.config import ModelConfig
from openglm.errors import CheckpointError
from openglm.model import GlmModel

DEFAULT_SHARD_BYTES = 5 * 10**9
_SHARD_NAME = re.compile(r"model-\d+-of-\d+\.safetensors")


def save_model(
    model: GlmModel,
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write config.json and the weights of `model` to `directory`, cast to `dtype` (default: the dtype its config names).

    The router's correction bias stays fp32. `metadata` goes into the header of every safetensors file. A directory that holds a
    checkpoint is overwritten; one that holds anything else is refused with `CheckpointError`, as is a save that does not fit the disk.
    """
    directory = Path(directory)
    dtype = dtype or getattr(torch, model.config.dtype)
    config = replace(model.config, dtype=str(dtype).removeprefix("torch."))
    _check_target(directory)
    outgoing = _outgoing(model, config, dtype)
    _check_space(directory, sum(tensor.num_bytes for tensor in outgoing))
    shards = _shards(outgoing, max_shard_bytes)
    with replaced_directory(directory, carry_over=_is_unrelated) as staging:
        for name, tensors in shards.items():
            write_safetensors(staging / name, tensors, {"format": "pt", **(metadata or {})})
        if len(shards) > 1:
            weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
            total = sum(tensor.num_bytes for tensor in outgoing)
            _write_json(staging / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _write_json(staging / CONFIG_NAME, config.to_hf())


def _outgoing(model: GlmModel, config: ModelConfig, dtype: torch.dtype) -> list[OutgoingTensor]:
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    return [
        OutgoingTensor(entry.name, entry.part_of(parameters[entry.parameter].detach()), torch.float32 if entry.always_f32 else dtype)
        for entry in NameTable(config).entries
    ]


def _shards(outgoing: list[OutgoingTensor], max_shard_bytes: int) -> dict[str, list[OutgoingTensor]]:
    """File name -> tensors, in table order, each file as full as `max_shard_bytes` allows (a larger tensor gets its own)."""
    groups: list[list[OutgoingTensor]] = [[]]
    size = 0
    for tensor in outgoing:
        if groups[-1] and size + tensor.num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.num_bytes
    if len(groups) == 1:
        return {SINGLE_NAME: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _is_unrelated(name: str) -> bool:
    """Whether a file in the directory of a checkpoint is no part of it: tokenizer, adapters, logs."""
    return name not in (CONFIG_NAME, INDEX_NAME, SINGLE_NAME, MTP_NAME) and not _SHARD_NAME.fullmatch(name)


def _check_target(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; expected a directory to save to")
    if any(directory.iterdir()) and not (directory / CONFIG_NAME).exists():
        raise CheckpointError(f"{directory}: is not empty and holds no {CONFIG_NAME}; save to a new directory or to an earlier checkpoint")


def _check_space(directory: Path, needed: int) -> None:
    """Refuse before writing what cannot fit; the old content, if any, needs its place until the end."""
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(f"{directory}: saving needs {needed} bytes, {free} are free; nothing was written")


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
