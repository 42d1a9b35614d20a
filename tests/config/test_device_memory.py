"""The two shares of a GPU's memory keep their own meanings, and the cache is sized anew from what weights took."""

from dataclasses import replace

import pytest

from openglm.config import variant
from openglm.config.device_memory import DeviceMemory, cache_bytes, graph_bytes, working_bytes
from openglm.config.engine import EngineConfig, Machine, kv_token_bytes, resize_cache, resolve
from openglm.config.offload import Bandwidths
from openglm.errors import ConfigError

GIB = 1 << 30
AIR = variant("glm-4.5-air")
MEMORY = DeviceMemory(total=141 * GIB, free=130 * GIB)
USED = {"weights": 100 * GIB, "working": 3 * GIB, "graphs": 2 * GIB}
GPU = Machine(
    "cuda",
    cores=16,
    memory_bytes=140 * GIB,
    native_kernels="avx512",
    device_kernels=True,
    total_bytes=141 * GIB,
    host_bytes=512 * GIB,
    bandwidths=Bandwidths(device=4e12, host=2e11),
)


def cache(memory=MEMORY, utilization=None, static=None, **used):
    return cache_bytes(memory, **{**USED, **used}, gpu_memory_utilization=utilization, mem_fraction_static=static)


def test_utilization_is_a_share_of_everything_for_everything():
    room, why = cache(utilization=0.9)
    assert room == int(0.9 * 141 * GIB) - 105 * GIB
    assert "gpu_memory_utilization 0.9 of 141.0 GiB" in why and "2.0 GiB of graphs" in why
    assert cache(utilization=0.9, graphs=0)[0] == room + 2 * GIB
    with pytest.raises(ConfigError, match=r"0\.95 of 141.*130.0 GiB are free"):
        cache(utilization=0.95)


def test_static_is_a_share_of_what_is_free_for_weights_and_cache_alone():
    room, why = cache(static=0.9)
    assert room == int(0.9 * 130 * GIB) - 100 * GIB
    assert cache(static=0.9, working=7 * GIB)[0] == room, "activations live in the rest"
    assert "mem_fraction_static 0.9 of 130.0 GiB free" in why
    with pytest.raises(ConfigError, match="activations and graphs"):
        cache(static=0.97)


def test_without_either_nine_tenths_of_what_is_free_hold_everything():
    assert cache()[0] == int(0.9 * 130 * GIB) - 105 * GIB


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["gpu_memory_utilization", "mem_fraction_static"])
def test_shares_lie_between_nothing_and_all(name, share):
    with pytest.raises(ConfigError, match=name):
        EngineConfig(**{name: share})


def test_one_rule_at_a_time():
    with pytest.raises(ConfigError, match="give one of them"):
        EngineConfig(gpu_memory_utilization=0.9, mem_fraction_static=0.9)
    for size in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="cpu_offload_gb"):
            EngineConfig(cpu_offload_gb=size)


def test_on_a_cpu_the_shares_say_that_they_do_nothing():
    machine = Machine("cpu", cores=2, memory_bytes=16 * GIB)
    plain, _ = resolve(EngineConfig(), variant("glm-nano"), machine)
    for settings in ({"gpu_memory_utilization": 0.5}, {"mem_fraction_static": 0.5}, {"cpu_offload_gb": 3.0}):
        resolved, reasons = resolve(EngineConfig(**settings), variant("glm-nano"), machine)
        assert resolved == plain
        assert any(reason.startswith(f"{next(iter(settings))} has no effect") for reason in reasons)


def test_the_cache_follows_the_weights_that_were_measured():
    config = EngineConfig(gpu_memory_utilization=0.9, max_num_seqs=64)
    resolved, reasons = resolve(config, AIR, GPU, stored_bytes=110 * GIB)
    assert any("110.0 GiB of weights" in reason for reason in reasons)
    less, again = resize_cache(resolved, config, AIR, GPU, weights=112 * GIB)
    lost = (resolved.num_pages - less.num_pages) * 64 * kv_token_bytes(AIR, "bfloat16")
    assert lost == pytest.approx(2 * GIB, rel=0.01)
    assert any("112.0 GiB of weights" in reason for reason in again)
    eager = replace(resolved, enforce_eager=True)
    assert resize_cache(eager, config, AIR, GPU, weights=112 * GIB)[0].num_pages > less.num_pages, "no graphs, more cache"
    with pytest.raises(ConfigError, match="no room for a KV cache"):
        resize_cache(resolved, config, AIR, GPU, weights=130 * GIB)


def test_an_fp8_checkpoint_fits_where_its_parameters_in_16_bits_do_not():
    with pytest.raises(ConfigError, match="no room for a KV cache"):
        resolve(EngineConfig(), AIR, GPU)
    assert resolve(EngineConfig(), AIR, GPU, stored_bytes=110 * GIB)[0].num_pages > 100


def test_offloaded_experts_make_room_and_the_speed_is_predicted():
    config = EngineConfig(cpu_offload_gb=20.0, max_num_seqs=64)
    without, _ = resolve(replace(config, cpu_offload_gb=0.0), AIR, GPU, stored_bytes=110 * GIB)
    resolved, reasons = resolve(config, AIR, GPU, stored_bytes=110 * GIB)
    assert resolved.host_experts is not None and sum(resolved.host_experts) == 20 * GIB // (3 * 4096 * 1408)
    gained = (resolved.num_pages - without.num_pages) * 64 * kv_token_bytes(AIR, "bfloat16")
    assert 20 * GIB < gained < 24 * GIB, "and no graphs are captured"
    assert any("tok/s are predicted" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"device_kernels": False}, 1.0, "both"),
        ({"native_kernels": None}, 1.0, "both"),
        ({"bandwidths": None}, 1.0, "measured"),
        ({}, 400.0, "three quarters"),
        ({}, 0.001, "not even one expert"),
        ({"host_bytes": 0}, 1000.0, "even without a single expert"),
    ],
)
def test_an_offload_that_cannot_be_is_refused(changes, size, words):
    with pytest.raises(ConfigError, match=words):
        resolve(EngineConfig(cpu_offload_gb=size), AIR, replace(GPU, **changes), stored_bytes=110 * GIB)


def test_estimates_grow_with_the_step():
    small, large = (working_bytes(AIR, tokens=n, logit_rows=64) for n in (512, 4096))
    assert 0.2 * GIB < small < large < 8 * GIB
    assert graph_bytes(AIR, rows=256) < 4 * GIB
