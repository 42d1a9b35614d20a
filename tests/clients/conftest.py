"""One scripted server for the whole tier, and a file whose word nobody could guess."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from .scripted_server import ScriptedServer, write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "scripted"
    write_model(directory)
    return directory


@pytest.fixture(scope="session")
def server(model_dir):
    running = ScriptedServer(model_dir, "--log-format", "json")
    yield running
    running.close()


@dataclass(frozen=True)
class Task:
    """A working folder with a file, and the word in it."""

    folder: Path
    file: Path
    word: str

    @property
    def prompt(self) -> str:
        return f'Please read the file "{self.file}" and tell me the codeword in it.'

    @property
    def answer(self) -> str:
        """What the scripted model says once it has seen the file."""
        return f"The codeword is {self.word} 🙂."


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    word = f"w{secrets.token_hex(6)}"
    (folder / "notes.txt").write_text(f"Notes.\ncodeword: {word}\nEnd.\n", "utf-8")
    return Task(folder, folder / "notes.txt", word)


@dataclass
class Requests:
    """What the server was asked since the fixture began, as (method and path, status)."""

    server: ScriptedServer
    start: int

    def all(self) -> list[tuple[str, int]]:
        """Every request that has been answered: one more is made, and what was logged before it counts."""
        marker = f"/nothing/{secrets.token_hex(8)}"
        httpx.get(self.server.root + marker, timeout=30)
        seen: list[tuple[str, int]] = []
        for line in self.server.lines(self.start):
            if line.startswith("{") and (entry := json.loads(line))["logger"] == "openglm.access":
                if entry["message"] == f"GET {marker}":
                    break
                seen.append((entry["message"], entry["status"]))
        return [request for request in seen if not request[0].startswith("GET /nothing/")]

    def refused(self) -> list[tuple[str, int]]:
        return [request for request in self.all() if request[1] >= 400]

    def paths(self) -> Counter[str]:
        return Counter(message for message, _ in self.all())


@pytest.fixture
def requests(server):
    return Requests(server, len(server.log))
