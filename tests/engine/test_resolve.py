"""Automatic choices come with reasons; contradictions are refused by name."""

from dataclasses import replace

import pytest

from openglm.config import variant
from openglm.config.engine import EngineConfig, Machine, kv_token_bytes, num_parameters, resolve
from openglm.errors import ConfigError
from openglm.model import GlmModel

CPU = Machine("cpu", cores=8, memory_bytes=16 << 30)
NANO = variant("glm-nano")


def test_a_small_model_on_a_cpu_runs_deterministic_in_fp32_on_one_thread():
    resolved, reasons = resolve(EngineConfig(), NANO, CPU)
    assert (resolved.dtype, resolved.row_tile, resolved.threads) == ("float32", 16, 1)
    assert resolved.max_model_len == NANO.max_position_embeddings
    text = "\n".join(reasons)
    assert all(word in text for word in ("dtype float32", "num_speculative_tokens 0 to 3", "kv_cache_tokens", "deterministic", "threads 1"))


def test_a_large_model_keeps_its_dtype_and_uses_every_core():
    resolved, _ = resolve(EngineConfig(), variant("glm-4.5-air"), replace(CPU, memory_bytes=1 << 40))
    assert (resolved.dtype, resolved.row_tile, resolved.threads) == ("bfloat16", None, 8)


def test_a_small_model_with_native_kernels_takes_every_core_where_no_server_needs_them():
    machine = replace(CPU, native_kernels="avx2")
    assert resolve(EngineConfig(), NANO, machine)[0].threads == 1
    alone = resolve(EngineConfig(owns_machine=True), NANO, machine)[0]
    assert (alone.threads, alone.torch_threads) == (8, 1)
    assert resolve(EngineConfig(owns_machine=True), NANO, CPU)[0].threads == 1, "torch's threads cost more than they save"


def test_what_was_asked_for_is_taken_and_not_explained():
    asked = EngineConfig(
        dtype="bfloat16",
        num_speculative_tokens=3,
        max_model_len=1000,
        max_num_seqs=4,
        max_num_batched_tokens=100,
        kv_cache_tokens=1024,
        deterministic=False,
        threads=3,
        native_kernels=False,
    )
    resolved, reasons = resolve(asked, NANO, CPU)
    assert reasons == ()
    assert (resolved.dtype, resolved.num_speculative_tokens, resolved.max_model_len) == ("bfloat16", 3, 1000)
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens, resolved.num_pages) == (4, 100, 16)
    assert (resolved.row_tile, resolved.threads) == (None, 3)


def test_without_an_mtp_layer_there_are_no_drafts():
    plain = replace(NANO, num_nextn_predict_layers=0)
    assert resolve(EngineConfig(), plain, CPU)[0].num_speculative_tokens == 0
    with pytest.raises(ConfigError, match="MTP layer"):
        resolve(EngineConfig(num_speculative_tokens=1), plain, CPU)


def test_the_depth_adapts_unless_a_number_is_given_and_gives_way_to_a_small_batch():
    assert [
        (resolved.num_speculative_tokens, resolved.adaptive_drafts)
        for resolved, _ in (
            resolve(EngineConfig(), NANO, CPU),
            resolve(EngineConfig(num_speculative_tokens=2), NANO, CPU),
            resolve(EngineConfig(num_speculative_tokens=0), NANO, CPU),
            resolve(EngineConfig(max_num_seqs=16, max_num_batched_tokens=40), NANO, CPU),
            resolve(EngineConfig(max_num_seqs=16, max_num_batched_tokens=31), NANO, CPU),
        )
    ] == [(3, True), (2, False), (0, False), (1, True), (0, False)]


def test_prompt_lookup_needs_no_mtp_layer_and_one_length_stands_for_both():
    plain = replace(NANO, num_nextn_predict_layers=0)

    def lengths(**settings):
        resolved, _ = resolve(EngineConfig(speculative_method="ngram", **settings), plain, CPU)
        return resolved.num_speculative_tokens, resolved.prompt_lookup_min, resolved.prompt_lookup_max

    assert lengths() == (3, 2, 4)
    assert lengths(prompt_lookup_max=5, num_speculative_tokens=8) == (8, 5, 5)
    assert lengths(prompt_lookup_min=3) == (3, 3, 3)
    assert lengths(prompt_lookup_min=3, prompt_lookup_max=7) == (3, 3, 7)


def test_a_small_cache_shortens_the_context_and_says_so():
    resolved, reasons = resolve(EngineConfig(kv_cache_tokens=700), NANO, CPU)
    assert resolved.max_model_len == 704 == resolved.num_pages * 64
    assert any("max_model_len 704" in reason for reason in reasons)


def test_fp8_kv_needs_half_of_bf16_and_its_scales():
    air = variant("glm-4.5-air")
    assert kv_token_bytes(air, "bfloat16") == 2 * air.num_kv_layers * 8 * 128 * 2
    assert kv_token_bytes(air, "fp8_e4m3") == 2 * air.num_kv_layers * 8 * (128 + 4)
    large = replace(CPU, memory_bytes=512 << 30)
    bf16, _ = resolve(EngineConfig(max_num_seqs=4096), air, large)
    fp8, reasons = resolve(EngineConfig(max_num_seqs=4096, kv_cache_dtype="fp8"), air, large)
    assert (bf16.kv_cache_dtype, fp8.kv_cache_dtype) == ("bfloat16", "fp8_e4m3")
    assert fp8.num_pages * 132 == pytest.approx(bf16.num_pages * 256, rel=1e-3), "both fill the same memory"
    assert any(
        "kv_cache_tokens" in reason and f"({fp8.num_pages * 64 * kv_token_bytes(air, 'fp8_e4m3') / 2**20:.0f} MiB)" in reason
        for reason in reasons
    )


def test_the_host_tier_is_as_large_as_was_said():
    resolved, _ = resolve(EngineConfig(kv_offloading_size=1.0), NANO, CPU)
    assert resolved.num_host_pages == 2**30 // (64 * kv_token_bytes(NANO, "float32"))
    assert resolve(EngineConfig(), NANO, CPU)[0].num_host_pages == 0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"max_model_len": 5000}, "max_position_embeddings"),
        ({"max_model_len": 4096, "kv_cache_tokens": 640}, "kv_cache|KV cache"),
        ({"kv_offloading_size": 1.0, "enable_prefix_caching": False}, "prefix caching is off"),
        ({"kv_offloading_size": 5.0}, "quarter"),
        ({"kv_offloading_size": 1e-6}, "not even one page"),
        ({"max_num_seqs": 16, "max_num_batched_tokens": 31, "num_speculative_tokens": 1}, "max_num_batched_tokens 31"),
    ],
)
def test_contradictions_name_both_sides(changes, word):
    with pytest.raises(ConfigError, match=word):
        resolve(EngineConfig(**changes), NANO, CPU)


def test_a_model_that_does_not_fit_is_refused_with_sizes():
    with pytest.raises(ConfigError, match=r"GiB of 16\.0 GiB"):
        resolve(EngineConfig(), variant("glm-4.5"), CPU)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_speculative_tokens": -1}, {"num_speculative_tokens": 9}, {"max_model_len": 1}, {"max_num_seqs": 0}, {"kv_cache_tokens": 63},
        {"speculative_method": "eagle"}, {"prompt_lookup_max": 4}, {"prompt_lookup_max": 40, "speculative_method": "ngram"},
        {"prompt_lookup_min": 5, "prompt_lookup_max": 4, "speculative_method": "ngram"},
        {"threads": 0}, {"dtype": "int8"}, {"load_format": "pickle"}, {"load_format": "dummy"}, {"max_queued_requests": -1},
        {"kv_cache_dtype": "fp8_e5m2"}, {"kv_offloading_size": -1.0}, {"kv_offloading_size": float("nan")}, {"request_timeout_s": 0.0},
    ],
)  # fmt: skip
def test_impossible_values_name_their_field(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        EngineConfig(**changes)


@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b", "glm-nano"])
def test_parameter_count_is_that_of_the_matrices(name):
    model = GlmModel(variant(name))
    assert num_parameters(variant(name)) == sum(p.numel() for p in model.parameters() if p.dim() > 1)


def test_published_sizes():
    """The hub counts 110 and 358 billion, which includes the MTP layer's copies of embedding and head."""
    for name, published in (("glm-4.5-air", 110), ("glm-4.5", 358)):
        config = variant(name)
        assert round((num_parameters(config) + 2 * config.vocab_size * config.hidden_size) / 1e9) == published


def test_native_kernels_run_where_they_can_and_say_why_where_they_cannot():
    for name in ("amx", "avx512_bf16"):
        here = replace(CPU, native_kernels=name)
        resolved, reasons = resolve(EngineConfig(), NANO, here)
        assert resolved.native_kernels and resolved.dtype == "bfloat16" and any(name in line for line in reasons)
    resolved, _ = resolve(EngineConfig(), NANO, replace(CPU, native_kernels="avx2"))
    assert resolved.native_kernels and resolved.dtype == "float32"
    resolved, reasons = resolve(EngineConfig(), NANO, CPU)
    assert not resolved.native_kernels and any("none were built" in line for line in reasons)
    resolved, reasons = resolve(EngineConfig(), replace(NANO, head_dim=24), here)
    assert not resolved.native_kernels and any("shape" in line for line in reasons)
    with pytest.raises(ConfigError, match="float32 and bfloat16"):
        resolve(EngineConfig(native_kernels=True, dtype="float16"), NANO, here)
    assert not resolve(EngineConfig(native_kernels=False), NANO, here)[0].native_kernels


GPU = Machine("cuda", cores=8, memory_bytes=80 << 30, device_kernels=True)


def test_a_gpu_runs_its_own_kernels_where_triton_is_installed():
    resolved, reasons = resolve(EngineConfig(quantization="fp8"), variant("glm-nano"), GPU)
    assert resolved.device_kernels and not resolved.native_kernels and any("GPU kernels" in reason for reason in reasons)
    bare, reasons = resolve(EngineConfig(), variant("glm-nano"), replace(GPU, device_kernels=False))
    assert not bare.device_kernels and any("Triton is not installed" in reason for reason in reasons)
    assert not resolve(EngineConfig(), variant("glm-nano"), CPU)[0].device_kernels


@pytest.mark.parametrize(
    ("config", "machine", "message"),
    [
        (EngineConfig(quantization="int4"), GPU, "int4.*use fp8"),
        (EngineConfig(quantization="fp8"), replace(GPU, device_kernels=False), "Triton is not installed"),
        (EngineConfig(quantization="fp8", deterministic=True), GPU, "deterministic"),
        (EngineConfig(native_kernels=True), GPU, "the device is cuda"),
    ],
)
def test_what_a_gpu_cannot_do_is_refused(config, machine, message):
    with pytest.raises(ConfigError, match=message):
        resolve(config, variant("glm-nano"), machine)
