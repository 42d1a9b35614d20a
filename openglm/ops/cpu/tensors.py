"""What the native kernels are given of tensors: addresses and codes, once shapes, dtypes and layout are found right.

Behind the border there are only addresses, so whatever can be wrong is a `ValueError` here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.ops.reference.attention import KVLayer

CODES = {torch.float32: 0, torch.bfloat16: 1}


def code_of(x: Tensor) -> int:
    """Of the dtype of x in main memory; `ValueError` where the kernels have none."""
    code = CODES.get(x.dtype)
    if code is None or x.device.type != "cpu":
        raise ValueError(f"native kernels take fp32 or bf16 tensors in main memory, got {x.dtype} on {x.device}")
    return code


def dense_rows(x: Tensor, width: int) -> Tensor:
    """x [T, width], contiguous."""
    if x.dim() != 2 or x.shape[1] != width:
        raise ValueError(f"expected rows of {width}, got a tensor of shape {tuple(x.shape)}")
    return x if x.is_contiguous() else x.contiguous()


def address_like(x: Tensor | None, other: Tensor, *, dtype: torch.dtype | None = None) -> int:
    """Address of a dense tensor shaped and typed like `other`; 0 for None."""
    if x is None:
        return 0
    if x.shape != other.shape or x.dtype != (dtype or other.dtype) or not x.is_contiguous():
        raise ValueError(f"expected a dense {dtype or other.dtype} tensor of shape {tuple(other.shape)}, got {x.dtype} {tuple(x.shape)}")
    return x.data_ptr()


def dense_address(x: Tensor, dtype: torch.dtype) -> int:
    """Address of a dense tensor of this dtype."""
    if x.dtype != dtype or not x.is_contiguous() or x.device.type != "cpu":
        raise ValueError(f"expected a dense {dtype} tensor in main memory, got {x.dtype} {tuple(x.shape)}")
    return x.data_ptr()


def address_of(x: Tensor | None) -> int:
    """0 for None."""
    return 0 if x is None else x.data_ptr()


def pages_of(kv: KVLayer) -> tuple[int, int, int, int, int]:
    """(address, address of scales or 0, dtype code, KV heads, head dim) of one layer's pages [pages, 2, Hkv, 64, D]."""
    if isinstance(kv, Tensor):
        return kv.data_ptr(), 0, code_of(kv), kv.shape[2], kv.shape[4]
    data, scales = kv
    if data.dtype != torch.float8_e4m3fn or not data.is_contiguous() or scales.shape != data.shape[:-1]:
        raise ValueError(f"pages {data.dtype} {tuple(data.shape)} with scales {tuple(scales.shape)} are no fp8 KV pages")
    return data.data_ptr(), dense_address(scales, torch.float32), 2, data.shape[2], data.shape[4]


def heads_of(kv: KVLayer) -> tuple[int, int]:
    """KV heads and head dim of one layer's pages."""
    data = kv if isinstance(kv, Tensor) else kv.data
    return data.shape[2], data.shape[4]


def check_batch(offsets: Tensor, num_requests: int, page_table: Tensor) -> None:
    """Whether offsets [2R + 1] and page table [R, pages] describe R requests."""
    if offsets.shape[0] != 2 * num_requests + 1 or page_table.shape[0] != num_requests or page_table.stride(1) != 1:
        raise ValueError(f"offsets {tuple(offsets.shape)} and page table {tuple(page_table.shape)} do not describe {num_requests} requests")
