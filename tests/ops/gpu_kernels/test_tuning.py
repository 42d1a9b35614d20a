"""The choice of tiles: measured once, kept in a file, and never in the way."""

import json
import threading

import pytest
import torch
from triton.runtime.errors import OutOfResources

from openglm.ops.triton.device import INTERPRETED, DeviceLimits, limits
from openglm.ops.triton.tuning import LIBRARY, Tile, Tuner, fitting, tuner

H100 = DeviceLimits("an H100", num_sms=132, shared_bytes=227 * 1024, capability=(9, 0), is_hip=False, fp8_dot=True)
SMALL = DeviceLimits("a small one", num_sms=8, shared_bytes=64 * 1024, capability=(7, 5), is_hip=False, fp8_dot=False)
FIRST, SECOND, THIRD = (Tile(16, 64, 64 * i, 4, 2) for i in (1, 2, 3))


class Clock:
    """Measures a tile as what it is told; a tile without a time is refused by its launch."""

    def __init__(self, **times):
        self.times, self.launched = {64: 3.0, 128: 1.0, 192: 2.0, **{int(k[1:]): v for k, v in times.items()}}, []

    def run(self, tile):
        self.launched.append(tile)
        if self.times[tile.inner] is None:
            raise OutOfResources(300_000, 232_448, "shared memory")

    def measure(self, call):
        call()
        return self.times[self.launched[-1].inner]


def choose(clock, file, device=H100, candidates=(FIRST, SECOND, THIRD), shape=(4096, 12288, "fp8")):
    return Tuner(device, file, clock.measure).choose("linear few", shape, candidates, clock.run)


def test_the_fastest_is_chosen_and_the_next_process_reads_it(tmp_path):
    file = tmp_path / "not" / "yet" / "tiles.json"
    clock, later = Clock(), Clock(i192=0.5)
    assert choose(clock, file) == SECOND and clock.launched == [FIRST, SECOND, THIRD]
    assert choose(later, file) == SECOND and not later.launched
    assert [entry.name for entry in file.parent.iterdir()] == ["tiles.json"]  # no temporary file stays


def test_another_device_or_shape_is_measured_by_itself(tmp_path):
    file = tmp_path / "tiles.json"
    assert choose(Clock(), file) == SECOND
    assert choose(Clock(i192=0.5), file, device=SMALL) == THIRD
    assert choose(Clock(i64=0.5), file, shape=(4096, 4096, "fp8")) == FIRST
    assert choose(Clock(i64=0.1), file) == SECOND
    assert len(json.loads(file.read_text())) == 3


def test_a_tile_that_does_not_run_is_left_out(tmp_path):
    assert choose(Clock(i128=None), tmp_path / "tiles.json") == THIRD
    # where none runs, the launch that follows shall tell why; nothing is kept
    file = tmp_path / "none.json"
    assert choose(Clock(i64=None, i128=None, i192=None), file) == FIRST and not file.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b" " * (1 << 21)],
    ids=["empty", "cut", "list", "null", "bytes", "deep", "long number", "huge"],
)
def test_a_damaged_file_is_measured_over(tmp_path, content):
    file = tmp_path / "tiles.json"
    file.write_bytes(content)
    assert choose(Clock(), file) == SECOND
    assert choose(clock := Clock(), file) == SECOND and not clock.launched


@pytest.mark.parametrize("entry", [None, "x", 7, [16, 64], [16, 64, 128, 4, 2], [1, 1, 1, 1, 1, False], {"rows": 16}, [[]]])
def test_an_entry_that_is_no_candidate_is_measured_again(tmp_path, entry):
    file = tmp_path / "tiles.json"
    choose(Clock(), file)
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: entry}))
    assert choose(clock := Clock(i192=0.1), file) == THIRD and clock.launched


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "taken").write_text("")
    for file in (tmp_path / "taken" / "tiles.json", tmp_path, None):
        assert choose(Clock(), file) == SECOND


def test_threads_measure_once(tmp_path):
    clock = Clock()
    shared = Tuner(H100, tmp_path / "tiles.json", clock.measure)
    found = []
    threads = [threading.Thread(target=lambda: found.append(shared.choose("k", (1,), (FIRST, SECOND, THIRD), clock.run))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [SECOND] * 8 and len(clock.launched) == 3


def test_nothing_is_measured_without_a_gpu():
    assert INTERPRETED and limits(torch.device("cpu")).num_sms > 0
    clock = Clock()
    assert tuner(torch.device("cpu")).choose("linear few", (1, 1), (THIRD, FIRST), clock.run) == THIRD and not clock.launched


def test_tiles_that_do_not_fit_shared_memory_are_left_out():
    large, middle, small = Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 2)
    assert fitting((large, middle, small), H100, 2, 2) == [large, middle, small]
    assert fitting((large, middle, small), SMALL, 2, 2) == [small]
    assert fitting((large, middle), SMALL, 2, 2) == [middle]  # the smallest is better than none
    assert LIBRARY not in fitting((large,), H100, 1, 1)
