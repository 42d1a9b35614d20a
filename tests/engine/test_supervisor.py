"""One engine process from spawn to end, with nobody beside it who starts another while the test has changed how that is done."""

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from openglm.config.engine import EngineConfig
from openglm.engine import client as client_module
from openglm.engine.client import AsyncEngineClient
from openglm.engine.supervisor import EngineChild, Supervision
from openglm.errors import EngineDeadError

CONFIG = EngineConfig("tiny-air", load_format="dummy", max_model_len=1024, max_num_seqs=4, max_queued_requests=4, threads=1, seed=0)


async def test_a_process_that_dies_before_it_listens_is_an_engine_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("openglm.engine.supervisor.process.__name__", "openglm.no_such_module")
    with pytest.raises(EngineDeadError, match="exit code 1"):
        await EngineChild.spawn(CONFIG, timeout_s=20)
    assert not any(tmp_path.iterdir())


async def test_an_engine_that_never_starts_is_given_up_with_growing_pauses(monkeypatch):
    pauses = []

    async def fail(config, *, timeout_s):
        raise EngineDeadError("no luck")

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(EngineChild, "spawn", fail)
    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    client = AsyncEngineClient(CONFIG, supervision=Supervision(backoff_s=(0.0, 1.0, 2.0)))
    with pytest.raises(EngineDeadError, match="no luck"):
        await client.start()
    assert pauses == [0.0, 1.0, 2.0] and client.state == "dead" and client.last_error == "no luck"


async def test_the_engine_dies_with_its_parent():
    code = f"""
import asyncio, os
from openglm.config.engine import EngineConfig
from openglm.engine import client as client_module
from openglm.engine.client import AsyncEngineClient
from openglm.engine.supervisor import EngineChild, Supervision
async def main():
    child = await EngineChild.spawn(EngineConfig(**{json.dumps({"model": "tiny-air", "load_format": "dummy"})}), timeout_s=30)
    print(child.pid, child._directory, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid, directory = parent.stdout.readline().split()
        watched = os.pidfd_open(int(pid))
        parent.kill()
    try:
        assert select.select([watched], [], [], 10)[0], "the engine outlived its parent"
        assert not Path(directory).exists()
    finally:
        os.close(watched)
