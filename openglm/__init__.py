"""openglm: serve, use and train GLM-4.5, GLM-4.5-Air and GLM-4.6 with one model definition.

Importing this package loads no torch and starts nothing. `LLM` and `SamplingParams` are loaded when first asked for; everything
else lives in the subpackages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openglm.engine.llm import LLM
    from openglm.engine.request import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the offline interface on first use."""
    if name == "LLM":
        from openglm.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from openglm.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'openglm' has no attribute {name!r}")
