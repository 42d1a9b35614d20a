"""Where the kernels of this package run."""

from __future__ import annotations

import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs them on the CPU. Its `tl.dot` is wrong in bf16, so products are in fp32 there, and it cuts fp32 off
where a GPU rounds to the nearest bf16."""
