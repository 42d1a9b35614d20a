"""Checkpoints in the published layout: check, load, save. Only safetensors and JSON are read; no code from a checkpoint runs."""

from openglm.checkpoint.load import CheckedCheckpoint, check_checkpoint, load_config, load_model
from openglm.checkpoint.load_packed import load_packed_model
from openglm.checkpoint.save import save_model

__all__ = ["CheckedCheckpoint", "check_checkpoint", "load_config", "load_model", "load_packed_model", "save_model"]
