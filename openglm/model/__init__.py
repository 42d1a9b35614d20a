"""The one model definition: used by the engine, the trainer, evaluation and quantization."""

from openglm.model.context import DenseBatch, ForwardContext, allocate_kv
from openglm.model.transformer import GlmModel
from openglm.ops import PagedBatch

__all__ = ["DenseBatch", "ForwardContext", "GlmModel", "PagedBatch", "allocate_kv"]
