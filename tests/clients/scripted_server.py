"""`glm serve` over the scripted model, as a process: `python -m clients.scripted_server serve DIRECTORY ...` takes its flags."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

TESTS = Path(__file__).resolve().parents[1]
NAME = "scripted-glm"
CONTEXT = 131_072
LOG_TIMEOUT_S = 30.0


def write_model(directory: Path) -> None:
    """A checkpoint with the tokenizer of glm-nano, room for an agent's prompt, and weights so few that reading one takes a moment."""
    import json

    from openglm.checkpoint import save_model
    from openglm.config import variant
    from openglm.config.engine import model_directory
    from openglm.model import GlmModel

    small = replace(
        variant("glm-nano"),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=32,
        moe_intermediate_size=32,
        n_routed_experts=4,
        max_position_embeddings=CONTEXT,
    )
    directory.mkdir(parents=True, exist_ok=True)
    model = GlmModel(small)
    model.init_weights(0)
    save_model(model, directory)
    (directory / "tokenizer.json").write_bytes((model_directory(None) / "tokenizer.json").read_bytes())
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 1.0, "top_p": 0.95}), "utf-8")


class ScriptedServer:
    """A running server. `url` is the base URL with /v1, `root` without; `log` grows by a line per HTTP request."""

    def __init__(self, directory: Path, *flags: str) -> None:
        words = [
            *("serve", str(directory), "--port", "0", "--served-model-name", NAME, "--threads", "1", "--num-speculative-tokens", "3"),
            *("--max-num-seqs", "4", "--kv-cache-tokens", str(2 * CONTEXT), "--log-level", "info", "--seed", "1"),
            *flags,
        ]
        paths = [str(TESTS), str(TESTS.parent)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clients.scripted_server", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.log: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = ""
        for line in self.process.stdout:
            if "OpenAI base URL" in line:
                self.url = line.split()[-1]
            if "chosen for you" in line:
                break
        else:
            self.close()
            raise AssertionError("the server did not start:\n" + "".join(self.log))
        self.root = self.url.removesuffix("/v1")
        self.port = urlsplit(self.url).port

    def _read(self) -> None:
        for line in self.process.stderr:
            with self._logged:
                self.log.append(line)
                self._logged.notify_all()

    def lines(self, start: int) -> Iterator[str]:
        """The log from line `start` on, and what is added to it; fails when nothing more comes."""
        for number in itertools.count(start):
            with self._logged:
                assert self._logged.wait_for(lambda number=number: number < len(self.log), LOG_TIMEOUT_S), "the log has ended"
                line = self.log[number]
            yield line

    def close(self) -> None:
        """End it and wait for its end."""
        self.process.terminate()
        self.process.stdout.read()
        code = self.process.wait(60)
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        assert code == 0, "".join(self.log)
        assert "Traceback" not in "".join(self.log), "".join(self.log)


if __name__ == "__main__":
    from clients import scripted_engine
    from openglm.cli.main import main
    from openglm.engine import process

    process.__name__ = scripted_engine.__name__  # what the supervisor starts
    main()
