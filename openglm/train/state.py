"""The resumable state of a run: weights, optimizer state and step, as safetensors plus JSON, replaced atomically.

This is not a model checkpoint (that is `openglm.checkpoint`, the official layout); it is what a run needs to go on as if it
had never stopped. One file holds everything, so a kill at any moment leaves the previous state whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openglm.errors import DataError
from openglm.model import GlmModel

STATE_FILE = "state.safetensors"


def save_state(path: Path, model: GlmModel, optimizers: Sequence[torch.optim.Optimizer], progress: dict[str, float]) -> None:
    """Write the state of a run to `path`/state.safetensors; `progress` (step, tokens, seconds) is kept beside it."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for o, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                tensors[f"optimizer.{o}.{index}.{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    temporary = path / f"{STATE_FILE}.part"
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata={"progress": json.dumps(progress)})
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{temporary}: cannot be written, the state saved before is untouched: {error}") from None
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path / STATE_FILE)


def load_weights(path: Path, model: GlmModel) -> None:
    """Only the weights of the state saved in `path`."""
    load_state(path, model, ())


def load_state(path: Path, model: GlmModel, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, float]:
    """Put the saved state back into `model` and `optimizers`; returns what was saved as `progress`."""
    file = path / STATE_FILE
    try:
        with safe_open(file, "pt") as reader:
            progress: dict[str, float] = json.loads(reader.metadata()["progress"])
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; there is no run to resume in this folder") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not the state of a run: {error}") from None
    model.load_state_dict({name[len("model.") :]: value for name, value in tensors.items() if name.startswith("model.")})
    for o, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer" and rest.startswith(f"{o}."):
                _, index, key = rest.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
