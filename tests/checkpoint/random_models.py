"""Random models in which every tensor differs, and ways to compare models and directories."""

from pathlib import Path

import torch

from openglm.config import ModelConfig
from openglm.model import GlmModel


def random_model(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> GlmModel:
    model = GlmModel(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name != "rope":
                value.copy_(torch.randn(value.shape, generator=generator))
    return model


def same_weights(one: GlmModel, other: GlmModel) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def file_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
