"""Which experts leave the device, and what a token then costs."""

from itertools import combinations

import pytest

from openglm.config import variant
from openglm.config.engine import num_parameters
from openglm.config.offload import Bandwidths, plan_offload
from openglm.errors import ConfigError

GIB = 2**30
AIR = variant("glm-4.5-air")
FAST = Bandwidths(device=4.3e12, host=2e11)


def plan(model=AIR, *, device=1000 * GIB, host=1000 * GIB, bandwidths=FAST, drafts=True):
    return plan_offload(
        model, layer_weight_bytes=1, table_weight_bytes=2, device_bytes=device, host_bytes=host, bandwidths=bandwidths, drafts=drafts
    )


def test_a_model_that_fits_stays_on_the_device():
    whole = plan()
    assert not any(whole.host_experts) and whole.host_bytes == 0
    tables = 2 * AIR.vocab_size * AIR.hidden_size
    assert abs(whole.device_bytes - num_parameters(AIR) - tables) < 0.001 * whole.device_bytes
    assert 2.5e-3 < whole.seconds_per_token < 4e-3  # the floor of GLM-4.5-Air-FP8 on an H200 is 3.15 ms


@pytest.mark.parametrize("device", [20, 40, 75, 100])
@pytest.mark.parametrize("drafts", [False, True])
def test_what_stays_on_the_device_fits_and_no_expert_leaves_in_vain(device, drafts):
    found = plan(device=device * GIB, drafts=drafts)
    expert = 3 * AIR.hidden_size * AIR.moe_intermediate_size
    assert device * GIB - expert < found.device_bytes <= device * GIB
    assert found.host_bytes == sum(found.host_experts) * expert
    assert found.device_bytes + found.host_bytes == plan().device_bytes
    assert all(0 <= n <= AIR.n_routed_experts * AIR.is_moe_layer(i) for i, n in enumerate(found.host_experts))
    assert (found.host_experts[-1] == 0) == drafts or sum(found.host_experts) > 45 * AIR.n_routed_experts


def test_a_smaller_device_is_never_predicted_to_be_faster():
    times = [plan(device=size * GIB).seconds_per_token for size in range(16, 110, 6)]
    assert times == sorted(times, reverse=True)


def test_waiting_concentrates_experts_and_a_free_round_trip_spreads_them():
    waits = plan(device=90 * GIB, bandwidths=Bandwidths(4.3e12, 2e11, 1e-3)).host_experts
    free = plan(device=90 * GIB, bandwidths=Bandwidths(4.3e12, 2e12, 0.0)).host_experts
    assert sum(waits) == sum(free) and 0 < sum(n > 0 for n in waits) < 10 and sum(n > 0 for n in free) == 45
    assert waits == (0,) * (47 - 1 - len([n for n in waits if n])) + tuple(n for n in waits if n) + (0,)


def test_the_prediction_is_the_mean_over_all_choices_of_experts():
    model = variant("tiny-air")
    expert, speed = 3 * model.hidden_size * model.moe_intermediate_size, Bandwidths(1e9, 2e8, 1e-6)
    found = plan(model, device=plan(model).device_bytes - 5 * expert, bandwidths=speed)
    expected = plan(model, bandwidths=speed).seconds_per_token
    choices = list(combinations(range(8), 3))
    for n in found.host_experts[: model.num_hidden_layers]:
        if n:
            hits = [sum(e >= 8 - n for e in choice) for choice in choices]
            times = [max((3 - hit + 1) * expert / 1e9, hit * expert / 2e8 + 1e-6) for hit in hits]
            expected += sum(times) / len(choices) - 4 * expert / 1e9
    assert found.seconds_per_token == pytest.approx(expected)


def test_too_little_memory_is_said_with_what_to_change():
    with pytest.raises(ConfigError, match="without a single expert"):
        plan(device=GIB)
    with pytest.raises(ConfigError, match="cpu_offload_gb"):
        plan(device=40 * GIB, host=10 * GIB)
    with pytest.raises(ConfigError, match="positive"):
        plan(bandwidths=Bandwidths(0, 1))
