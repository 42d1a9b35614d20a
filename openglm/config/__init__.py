"""Frozen configuration objects. No torch, no reading of the environment, nothing mutates them later."""

from openglm.config.model import ModelConfig
from openglm.config.variants import VARIANTS, variant

__all__ = ["VARIANTS", "ModelConfig", "variant"]
