"""Whatever stops a save, the target holds the old checkpoint or the new one, whole, and what was left behind is cleaned up later.

A child process is killed at every file-system call that a save makes, in turn; there are a few dozen.
"""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from random_models import random_model, same_weights

from openglm.checkpoint import load_model, save_model, staging
from openglm.checkpoint.staging import replaced_directory
from openglm.config import variant
from openglm.errors import CheckpointError

# For every scenario: saves in a forked child that kills itself at its n-th call of one of CALLS, for n = 1, 2, ... until a child
# survives. After each kill the target must load as the old or as the new weights, and keep its other files.
KILL_EVERYWHERE = """
import json, os, shutil, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from random_models import random_model, same_weights
from openglm.checkpoint import load_model, save_model, staging
from openglm.config import variant

torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # unlike a power failure, a kill loses nothing that was written
config = replace(variant("tiny-air"), num_hidden_layers=2, n_routed_experts=4)
old, new = (random_model(config, seed=seed) for seed in (1, 2))
CALLS = [(os, name) for name in ("fsync", "rename", "mkdir", "unlink", "rmdir", "link")]
CALLS += [(staging, "_exchange"), (staging, "_sync_directory")]

def saves_or_dies(target, at, shard_bytes):
    child = os.fork()
    if child == 0:
        count = 0
        def counted(function):
            def call(*args, **options):
                nonlocal count
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)
            return call
        for module, name in CALLS:
            setattr(module, name, counted(getattr(module, name)))
        save_model(new, target, max_shard_bytes=shard_bytes)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

def run(folder, first, second):
    seen = {"old": 0, "new": 0, "absent": 0}
    at, survived = 0, False
    if not (folder / f"old-{first}").exists():
        save_model(old, folder / f"old-{first}", max_shard_bytes=first)
        (folder / f"old-{first}" / "tokenizer.json").write_text("{}")
    while not survived:
        at += 1
        target = folder / str(at) / "model"
        shutil.copytree(folder / f"old-{first}", target)
        survived = saves_or_dies(target, at, second)
        if target.exists():
            loaded = load_model(target)
            state = "old" if same_weights(loaded, old) else "new"
            assert same_weights(loaded, {"old": old, "new": new}[state])
            assert (target / "tokenizer.json").read_text() == "{}"
        else:
            state, found = "absent", staging.interrupted_save(target)
            assert found is not None and same_weights(load_model(found), old)
        seen[state] += 1
        shutil.rmtree(folder / str(at))
    return seen

folder, one, many = Path(sys.argv[2]), 10**9, 150_000
result = {"one file": run(folder, one, one), "shards over shards": run(folder, many, many), "one over shards": run(folder, many, one)}
staging._exchange = lambda one, other: False
result["no exchange"] = run(folder, one, one)
print(json.dumps(result))
"""


def test_a_kill_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path):
    """Where the system cannot exchange directories, the target may be absent, and the old checkpoint whole under another name."""
    command = [sys.executable, "-c", KILL_EVERYWHERE, str(Path(__file__).parent), str(tmp_path)]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    for scenario, seen in json.loads(result.stdout).items():
        assert seen["old"] > 5 and seen["new"] > 3, scenario
        assert bool(seen["absent"]) == (scenario == "no exchange"), scenario


def test_the_error_for_an_absent_directory_names_what_an_interrupted_save_left(saved, tmp_path):
    shutil.copytree(saved, tmp_path / ".model.previous-abc")
    with pytest.raises(CheckpointError, match=r"is whole in .*\.model\.previous-abc, rename it back"):
        load_model(tmp_path / "model")


def test_a_new_directory_appears_only_when_complete(tmp_path):
    with replaced_directory(tmp_path / "deep" / "model") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "model").exists()
    assert (tmp_path / "deep" / "model" / "a").read_text() == "1"


def test_an_exception_leaves_the_target_and_nothing_else(checkpoint):
    before = load_model(checkpoint)
    with pytest.raises(KeyError), replaced_directory(checkpoint) as folder:
        (folder / "a").write_text("1")
        raise KeyError("bug")
    assert same_weights(load_model(checkpoint), before)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def write_fails_with(number: int, monkeypatch) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk .* is full"),
        (errno.EDQUOT, "the disk .* is full"),
        (errno.EIO, "Input/output error"),
        (errno.EROFS, "Read-only"),
    ],
)
def test_a_full_or_failing_disk_leaves_the_old_checkpoint(checkpoint, monkeypatch, number, message):
    before = load_model(checkpoint)
    with monkeypatch.context() as patch:
        write_fails_with(number, patch)
        with pytest.raises(CheckpointError, match=f"{message}.*what was there before is unchanged"):
            save_model(random_model(variant("tiny-air"), seed=9), checkpoint)
    assert same_weights(load_model(checkpoint), before)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_save_that_cannot_fit_is_refused_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"saving needs \d+ bytes, 1000 are free; nothing was written"):
        save_model(random_model(variant("tiny-air")), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_mount_point_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    with pytest.raises(CheckpointError, match="is a mount point"), replaced_directory(checkpoint):
        pass


def age(path: Path) -> None:
    moment = time.time() - 10 * staging._STALE_AFTER_S
    os.utime(path, (moment, moment))


def test_leavings_of_a_killed_save_are_removed_by_the_next_and_a_running_one_is_spared(tmp_path):
    dead, alive, young, other = (tmp_path / name for name in (".m.saving-1", ".m.saving-2", ".m.saving-3", ".n.saving-1"))
    for path in (dead, alive, young, other):
        path.mkdir()
        (path / "model.safetensors").write_text("half")
    for path in (dead, alive, other):
        age(path)
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with replaced_directory(tmp_path / "m") as folder:
        (folder / "a").write_text("1")
    os.close(descriptor)
    assert sorted(tmp_path.iterdir()) == sorted([alive, young, other, tmp_path / "m"])
