"""Loading a model from a directory in the published layout, or in the one transformers 5 writes.

Everything that can be known from the headers is checked before the first weight is read, and all of it is reported in one
`CheckpointError`: missing and extra tensors, shapes, dtypes, damaged and truncated files. A model is never served with a part of
its weights.

Weights then go from the file straight into the parameters, so the peak is one copy of the weights plus a few megabytes.

The MTP layer is part of the model. Tools that drop it on saving (transformers does) leave a checkpoint that contradicts its own config;
loading such a one has to be asked for with `allow_missing_mtp`, and gives a model that cannot draft.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from openglm.checkpoint import fp8
from openglm.checkpoint.layout import CONFIG_NAME, Contents, find_tensors
from openglm.checkpoint.names import NameTable, TensorEntry
from openglm.checkpoint.reader import DTYPE_NAMES, Reader, StoredTensor
from openglm.checkpoint.report import Mismatches
from openglm.checkpoint.staging import interrupted_save
from openglm.config import ModelConfig
from openglm.errors import CheckpointError
from openglm.model import GlmModel

Progress = Callable[[int, int], None]  # bytes read so far, bytes in all


@dataclass(frozen=True)
class Piece:
    """One stored tensor and the part of a parameter it fills; `scale` is set where it is FP8."""

    entry: TensorEntry
    stored: StoredTensor
    scale: StoredTensor | None = None


@dataclass(frozen=True)
class CheckedCheckpoint:
    """A checkpoint whose headers fit its config: every parameter is filled exactly once by `pieces`."""

    directory: Path
    config: ModelConfig
    pieces: tuple[Piece, ...]
    rounds_activations: bool
    """Whether its quantization is meant for activations in e4m3, too."""

    @property
    def num_bytes(self) -> int:
        """Bytes of weights on disk."""
        return sum(piece.stored.num_bytes for piece in self.pieces)


def load_config(directory: str | Path) -> ModelConfig:
    """The architecture in the directory's config.json; `CheckpointError` or `ConfigError` says what is wrong."""
    directory = Path(directory)
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        previous = interrupted_save(directory.absolute())
        if previous is not None:
            found += f" (a save was interrupted; the checkpoint before it is whole in {previous}, rename it back)"
        raise CheckpointError(f"{directory}: {found}; expected a directory that holds config.json, tokenizer.json and *.safetensors")
    return ModelConfig.from_file(directory / CONFIG_NAME)


def check_checkpoint(directory: str | Path, *, allow_missing_mtp: bool = False) -> CheckedCheckpoint:
    """Read all headers and compare them with the config; reads no weights. One `CheckpointError` lists every mismatch."""
    directory = Path(directory)
    config = load_config(directory)
    mismatches = Mismatches()
    quantization = json.loads((directory / CONFIG_NAME).read_bytes()).get("quantization_config")
    fp8.check_scheme(quantization, mismatches)
    contents = find_tensors(directory, mismatches)
    config = _settle_mtp(config, contents, mismatches, allow_missing=allow_missing_mtp)
    pieces = _match(NameTable(config), contents, mismatches)
    mismatches.raise_if_any(directory)
    return CheckedCheckpoint(directory, config, pieces, fp8.rounds_activations(quantization))


def load_model(
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    allow_missing_mtp: bool = False,
    progress: Progress | None = None,
) -> GlmModel:
    """The model in `directory`, with weights in `dtype` (default: the dtype its config names).

    FP8 checkpoints are dequantized; `load_packed_model` keeps their codes.

    Raises `ConfigError` for a bad config.json and `CheckpointError` for everything else.
    """
    checkpoint = check_checkpoint(directory, allow_missing_mtp=allow_missing_mtp)
    config = checkpoint.config
    model = GlmModel(config, device=device, dtype=dtype or getattr(torch, config.dtype))
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    done, total = 0, checkpoint.num_bytes
    with Reader() as reader:
        for piece in in_file_order(checkpoint.pieces):
            done += read_piece(reader, piece, parameters[piece.entry.parameter])
            if progress is not None:
                progress(done, total)
    return model


def read_piece(reader: Reader, piece: Piece, parameter: Tensor) -> int:
    """Read a stored tensor into its part of `parameter`, multiplied by its scales if it has some; returns the bytes read."""
    scale = None if piece.scale is None else reader.read(piece.scale).float().view(-1, 1)
    reader.read_into(piece.stored, piece.entry.part_of(parameter.detach()), scale=scale)
    return piece.stored.num_bytes


def in_file_order(pieces: Iterable[Piece]) -> list[Piece]:
    """The order in which a disk reads fastest."""
    return sorted(pieces, key=lambda piece: (piece.stored.file, piece.stored.offset))


def _settle_mtp(config: ModelConfig, contents: Contents, mismatches: Mismatches, *, allow_missing: bool) -> ModelConfig:
    """The config without its MTP layer where the checkpoint lacks the whole layer and that is allowed."""
    table = NameTable(replace(config, num_nextn_predict_layers=1))
    expected = [entry.name for entry in table.entries if table.is_mtp(entry.name)]
    present = [name for name in contents.tensors if table.is_mtp(name) and name not in table.ignored]
    if config.has_mtp and not any(contents.may_hold(name) for name in expected) and not present:
        if not allow_missing:
            mismatches.add(
                "missing MTP layer",
                f"none of the {len(expected)} tensors {table.mtp_prefix}* is there (transformers drops them on saving); copy them from the "
                "original checkpoint, or do without drafting: num_speculative_tokens 0 for an engine, allow_missing_mtp for load_model, or "
                "num_nextn_predict_layers 0 in config.json",
            )
        return replace(config, num_nextn_predict_layers=0)
    if not config.has_mtp and present:
        mismatches.add(
            "unexpected MTP layer",
            f"{len(present)} tensors {table.mtp_prefix}* are there, config.json says num_nextn_predict_layers 0; set it to 1",
        )
        return replace(config, num_nextn_predict_layers=1)
    return config


def _match(table: NameTable, contents: Contents, mismatches: Mismatches) -> tuple[Piece, ...]:
    """Pair every stored tensor with its entry and note whatever does not fit."""
    tensors = contents.tensors
    checkpoint_dtype = DTYPE_NAMES[getattr(torch, table.config.dtype)]
    packed = {entry.parameter: entry for name, entry in table.packed.items() if name in tensors}
    pieces, known = [], set(table.ignored)
    for parameter, entries in table.by_parameter.items():
        spelled_packed = parameter in packed and not any(entry.name in tensors for entry in entries)
        for entry in (packed[parameter],) if spelled_packed else entries:
            known.add(entry.name)
            stored = tensors.get(entry.name)
            if stored is None:
                if not contents.may_hold(entry.name):
                    mismatches.add("missing tensor", f"{entry.name} {checkpoint_dtype} {list(entry.shape)}")
                continue
            scale = None
            if stored.dtype == fp8.WEIGHT_DTYPE and entry.is_linear:
                scale = fp8.find_scale(entry, tensors, mismatches)
                known.add(fp8.scale_name(entry.name))
            else:
                wanted = "F32" if entry.always_f32 else checkpoint_dtype
                if stored.dtype != wanted:
                    mismatches.add("wrong dtype", f"{entry.name}: expected {wanted}, found {stored.dtype} in {stored.file.name}")
            if stored.shape != entry.shape:
                found = f"{list(stored.shape)} in {stored.file.name}"
                mismatches.add("wrong shape", f"{entry.name}: expected {list(entry.shape)}, found {found}")
            pieces.append(Piece(entry, stored, scale))
    for name in sorted(set(tensors) - known):
        stored = tensors[name]
        mismatches.add("extra tensor", f"{name!r:.200} {stored.dtype} {list(stored.shape)} in {stored.file.name}")
    return tuple(pieces)
