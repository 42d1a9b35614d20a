"""Checkpoints to load, and copies of them to damage."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from random_models import random_model

from openglm.checkpoint import save_model
from openglm.config import variant
from openglm.model import GlmModel


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Flushing cannot be observed without a power failure and takes most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", params=["tiny-air", "tiny-355b"])
def model(request) -> GlmModel:
    return random_model(variant(request.param))


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A single-file checkpoint; copy it before changing it."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(random_model(variant("tiny-air")), directory)
    return directory


@pytest.fixture(scope="session")
def saved_shards(tmp_path_factory) -> Path:
    """The same weights in several shards; copy it before changing it."""
    directory = tmp_path_factory.mktemp("saved") / "sharded"
    save_model(random_model(variant("tiny-air")), directory, max_shard_bytes=150_000)
    return directory


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    """A single-file checkpoint of the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture
def sharded(saved_shards, tmp_path) -> Path:
    """A sharded checkpoint of the test's own."""
    return Path(shutil.copytree(saved_shards, tmp_path / "sharded"))
