"""Which files of a directory make up the checkpoint, and which tensor lies in which file.

Read are `model.safetensors.index.json` and the shards it names, or a single `model.safetensors`; and `mtp.safetensors` beside either, where
GLM-4.7 keeps its MTP layer. Only safetensors and JSON are ever opened: pickled formats run code of whoever made them.

File names in the index come from the checkpoint and must be plain names in its directory. A file itself may be a symbolic link: that is
how a download cache keeps its snapshots.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openglm.checkpoint.reader import StoredTensor, read_header
from openglm.checkpoint.report import Mismatches
from openglm.errors import CheckpointError

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MTP_NAME = "mtp.safetensors"
MAX_INDEX_BYTES = 64 * 2**20
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf")


@dataclass(frozen=True)
class Contents:
    """What the files hold. `damaged` names the files whose tensors are unknown."""

    tensors: dict[str, StoredTensor]
    weight_map: dict[str, str]
    damaged: frozenset[str]

    def may_hold(self, name: str) -> bool:
        """Whether the tensor is there, or may be in a damaged file, so that calling it missing would mislead."""
        if name in self.tensors:
            return True
        if name in self.weight_map:
            return self.weight_map[name] in self.damaged
        return bool(self.damaged - set(self.weight_map.values()))


def find_tensors(directory: Path, mismatches: Mismatches) -> Contents:
    """All tensors of the checkpoint by name; damage and contradictions between index and files go to `mismatches`."""
    weight_map, damaged = _weight_map(directory, mismatches), set()
    if weight_map is None:
        return Contents({}, {}, frozenset({INDEX_NAME}))
    files = sorted(set(weight_map.values()))
    if not weight_map and (directory / SINGLE_NAME).exists():
        files = [SINGLE_NAME]
    if not files:
        mismatches.add("missing file", _describe_empty(directory))
        return Contents({}, {}, frozenset({SINGLE_NAME}))
    if (directory / MTP_NAME).exists() and MTP_NAME not in files:
        files.append(MTP_NAME)
    found: dict[str, StoredTensor] = {}
    for name in files:
        try:
            header = read_header(directory / name)
        except CheckpointError as error:
            mismatches.add("damaged file", str(error))
            damaged.add(name)
            continue
        for tensor in header.values():
            listed = weight_map.get(tensor.name)
            if tensor.name in found:
                mismatches.add("tensor stored twice", f"{tensor.name!r:.200} in {found[tensor.name].file.name} and in {name}")
            elif weight_map and listed != name and not (listed is None and name == MTP_NAME):
                says = "does not list it" if listed is None else f"says {listed}"
                mismatches.add("index contradicts file", f"{tensor.name!r:.200} is in {name}, {INDEX_NAME} {says}")
            found.setdefault(tensor.name, tensor)
    for tensor_name, file in weight_map.items():
        if tensor_name not in found and file not in damaged:
            mismatches.add("index contradicts file", f"{INDEX_NAME} puts {tensor_name!r:.200} in {file}, which lacks it")
    return Contents(found, weight_map, frozenset(damaged))


def _weight_map(directory: Path, mismatches: Mismatches) -> dict[str, str] | None:
    """The index's map of tensor to file name; empty where there is no index, None where it cannot be used."""
    path = directory / INDEX_NAME
    try:
        if not path.exists():
            return {}
        if not path.is_file():
            raise ValueError("not a regular file")
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes (expected at most {MAX_INDEX_BYTES})")
        index = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_unique)
        weight_map = index["weight_map"] if isinstance(index, dict) and "weight_map" in index else None
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(value, str) for value in weight_map.values()):
            raise ValueError('expected {"weight_map": {tensor name: file name}}')
    except (OSError, ValueError, RecursionError) as error:
        mismatches.add("damaged file", f"{path}: {error!s:.160}")
        return None
    for name in sorted(set(weight_map.values())):
        if "/" in name or "\\" in name or "\0" in name or not name.endswith(".safetensors") or name.startswith("."):
            mismatches.add("refused file name", f"{path}: {name!r:.120} (expected a plain name that ends in .safetensors)")
            return None
    if (directory / SINGLE_NAME).exists() and SINGLE_NAME not in weight_map.values():
        mismatches.add("ambiguous", f"{INDEX_NAME} and an unrelated {SINGLE_NAME} are both there; remove the one that is out of date")
    return weight_map


def _describe_empty(directory: Path) -> str:
    remedy = f"expected {INDEX_NAME} or {SINGLE_NAME}"
    try:
        unsafe = sorted(path.name for path in directory.iterdir() if path.suffix in UNSAFE_SUFFIXES)
    except OSError as error:
        return f"{directory}: cannot be listed: {error.strerror or error}"
    if unsafe:
        listed = ", ".join(unsafe[:3])
        return f"{remedy}; {listed} {'is' if len(unsafe) == 1 else 'are'} in a format that is never opened: convert to safetensors first"
    return f"{remedy}; neither is in {directory}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result
