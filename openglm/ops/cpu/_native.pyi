# Types of the C++ module; csrc/cpu/module.cpp says what each argument is. Addresses are plain integers, 0 where optional.
class CapsuleType: ...

def supported() -> list[str]: ...
def active() -> str | None: ...
def select(name: str, /) -> None: ...
def set_threads(count: int, /) -> None: ...
def threads() -> int: ...
def measure_reading(num_bytes: int, /) -> float: ...
def measure_multiplying(steps: int, weight_dtype: int, dtype: int, /) -> float: ...
def num_bytes(weight: CapsuleType, /) -> int: ...
def new_linear(n: int, k: int, dtype: int, /) -> CapsuleType: ...
def pack_again(weight: CapsuleType, source: CapsuleType, /) -> bool: ...
def pack_rows(weight: CapsuleType, first: int, count: int, rows: int, dtype: int, scales: int, with_all_threads: int, /) -> bool: ...
def set_bias(weight: CapsuleType, bias: int, /) -> None: ...
def pack_experts(
    parts: tuple[tuple[CapsuleType, ...], tuple[CapsuleType, ...], tuple[CapsuleType, ...], CapsuleType],
    bias: int,
    num_experts: int,
    top_k: int,
    normalise: int,
    scaling: float,
    /,
) -> CapsuleType: ...
def pack_layer(
    parts: tuple[CapsuleType, ...],
    hidden: int,
    q_heads: int,
    rotary_dim: int,
    eps: float,
    scale: float,
    input_norm: int,
    post_norm: int,
    q_norm: int,
    k_norm: int,
    /,
) -> CapsuleType: ...
def pack_trunk(
    layers: tuple[CapsuleType, ...], embedding: int, vocabulary: int, norm: int, rope: int, positions: int, /
) -> CapsuleType: ...
def pack_mtp(
    parts: tuple[CapsuleType, CapsuleType, CapsuleType], embedding: int, enorm: int, hnorm: int, norm: int, rope: int, /
) -> CapsuleType: ...
def mtp_write_kv(
    mtp: CapsuleType,
    tokens: int,
    hidden: int,
    rows: int,
    positions: int,
    slots: int,
    pages: int,
    scales: int,
    pages_dtype: int,
    kv_heads: int,
    head_dim: int,
    dtype: int,
    /,
) -> None: ...
def mtp_draft(
    mtp: CapsuleType,
    tokens: int,
    hidden: int,
    sequences: int,
    first_rows: int,
    counts: int,
    positions: int,
    depths: int,
    num_tokens: int,
    pages: int,
    scales: int,
    pages_dtype: int,
    kv_heads: int,
    head_dim: int,
    page_table: int,
    table_stride: int,
    drafted: int,
    logits: int,
    dtype: int,
    /,
) -> None: ...
def decoder_layer(
    layer: CapsuleType,
    x: int,
    tokens: int,
    rope: int,
    slots: int,
    pages: int,
    scales: int,
    pages_dtype: int,
    kv_heads: int,
    head_dim: int,
    requests: int,
    query_starts: int,
    kv_lengths: int,
    page_table: int,
    table_stride: int,
    dtype: int,
    /,
) -> None: ...
def trunk(
    trunk: CapsuleType,
    tokens: int,
    count: int,
    positions: int,
    slots: int,
    pages: tuple[int, ...],
    requests: int,
    query_starts: int,
    kv_lengths: int,
    page_table: int,
    table_stride: int,
    out: int,
    dtype: int,
    /,
) -> None: ...
def linear(weight: CapsuleType, x: int, rows: int, residual: int, out: int, dtype: int, /) -> None: ...
def linear_f32(weight: CapsuleType, x: int, rows: int, out: int, dtype: int, /) -> None: ...
def mlp(gate: CapsuleType, up: CapsuleType, down: CapsuleType, x: int, rows: int, residual: int, out: int, dtype: int, /) -> None: ...
def experts_hit(experts: CapsuleType, /) -> tuple[int, int]: ...
def moe(experts: CapsuleType, x: int, rows: int, residual: int, out: int, dtype: int, /) -> None: ...
def rms_norm(x: int, weight: int, eps: float, rows: int, width: int, out: int, dtype: int, /) -> None: ...
def highest(x: int, rows: int, stride: int, n: int, values: int, places: int, /) -> None: ...
def rope_and_write(
    qkv: int,
    tokens: int,
    q_heads: int,
    q_norm: int,
    k_norm: int,
    eps: float,
    rope: int,
    rotary_dim: int,
    slots: int,
    pages: int,
    scales: int,
    pages_dtype: int,
    kv_heads: int,
    head_dim: int,
    q_out: int,
    dtype: int,
    /,
) -> None: ...
def attention(
    q: int,
    q_heads: int,
    pages: int,
    scales: int,
    pages_dtype: int,
    kv_heads: int,
    head_dim: int,
    requests: int,
    query_starts: int,
    kv_lengths: int,
    page_table: int,
    table_stride: int,
    scale: float,
    out: int,
    dtype: int,
    /,
) -> None: ...
