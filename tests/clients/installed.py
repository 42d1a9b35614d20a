"""Which client programs are tested, at which version, and where they are installed: `build/clients/NAME`, each in a folder of its own.

`python -m clients.installed` installs what is missing (`make test-clients` runs it first) and goes on where one cannot be had; its test
then fails with the reason. Nothing of it touches the environment that the project itself runs in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2] / "build" / "clients"


@dataclass(frozen=True)
class Client:
    """One program: its packages with their versions, and from where they come."""

    source: str
    """npm or pip."""
    packages: tuple[str, ...]

    @property
    def version(self) -> str:
        """Of the first package."""
        return self.packages[0].replace("==", "@").rpartition("@")[2]


CLIENTS: Final[Mapping[str, Client]] = {
    "claude": Client("npm", ("@anthropic-ai/claude-code@2.1.332",)),
    "codex": Client("npm", ("@openai/codex@0.171.0",)),
    "opencode": Client("npm", ("opencode-ai@1.18.33",)),
    "cline": Client("npm", ("cline@3.0.65",)),
    "litellm": Client("pip", ("litellm==1.110.2", "mcp==2.3.0")),
    "langchain": Client("pip", ("langchain-openai==1.7.4",)),
    "lm-eval": Client("pip", ("lm-eval[api]==0.4.13",)),
    "guidellm": Client("pip", ("guidellm==0.8.1",)),
    "aiperf": Client("pip", ("aiperf==0.13.0",)),
    "smg": Client("pip", ("smg==1.13.0",)),
}


class NotInstalledError(Exception):
    """A client that is to be tested is not there."""


def programs(name: str) -> Path:
    """The folder with the client's programs; raises `NotInstalledError` with the reason when it was not installed."""
    folder, client = ROOT / name, CLIENTS[name]
    stamp = _stamp(name)
    if stamp.get("packages") != list(client.packages):
        raise NotInstalledError(
            f"{name} {client.version} is not installed ({stamp.get('failed', 'run python -m clients.installed, or make test-clients')})"
        )
    return folder / ("node_modules/.bin" if client.source == "npm" else "bin")


def install(name: str) -> None:
    """Install a client unless it is there at this version; what went wrong is kept for `programs`."""
    folder, client = ROOT / name, CLIENTS[name]
    if _stamp(name).get("packages") == list(client.packages):
        return
    print(f"installing {' '.join(client.packages)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    if client.source == "npm":
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error", *client.packages]
    else:
        venv.create(folder, with_pip=True, symlinks=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *client.packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failed = "" if done.returncode == 0 else (done.stderr or done.stdout).strip()[-600:]
    except OSError as error:
        failed = str(error)
    record = {"failed": failed} if failed else {"packages": client.packages}
    (folder / "installed.json").write_text(json.dumps(record), "utf-8")
    if failed:
        print(f"{name} could not be installed: {failed}", flush=True)


def _stamp(name: str) -> dict:
    try:
        return json.loads((ROOT / name / "installed.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}


if __name__ == "__main__":
    for chosen in sys.argv[1:] or CLIENTS:
        install(chosen)
