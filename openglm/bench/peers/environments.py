"""Where the engines are: this package and transformers in this environment, llama.cpp in one of its own under the results folder.

Nothing is ever installed into the environment that openglm runs in, and nothing at all without being asked (`--install`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from openglm import env
from openglm.errors import OpenGLMError

LLAMA_REQUIREMENTS = ("numpy==1.26.4", "gguf==0.19.0", "llama-cpp-python==0.3.36")
_CMAKE = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF"
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Environment:
    """An interpreter that has an engine, or (None) why there is none."""

    python: Path | None
    missing: str = ""

    @property
    def variables(self) -> dict[str, str]:
        """Of a worker process: this package is importable, and nothing is fetched."""
        return env.inherited() | {"PYTHONPATH": str(_PACKAGE_ROOT), "HF_HUB_OFFLINE": "1"}


def find(engine: str, folder: Path) -> Environment:
    """The environment of "openglm", "transformers" or "llama.cpp"."""
    if engine == "openglm":
        return Environment(Path(sys.executable))
    if engine == "transformers":
        try:
            metadata.version("transformers")
        except metadata.PackageNotFoundError:
            return Environment(None, "transformers is not installed here; it comes with the extra `dev`")
        return Environment(Path(sys.executable))
    python = _python_of(folder)
    if not python.exists():
        return Environment(None, "llama.cpp is not installed; run once with --install (compiles for some ten minutes)")
    check = subprocess.run([python, "-c", "import gguf, llama_cpp"], capture_output=True, text=True, check=False)
    if check.returncode:
        last = check.stderr.strip().splitlines()[-1:] or ["no output"]
        return Environment(None, f"the environment of llama.cpp is incomplete ({last[0][:200]}); run with --install")
    return Environment(python)


def install_llama(folder: Path, progress: Callable[[str], None]) -> None:
    """Make the environment of llama.cpp and compile it there, with clang where there is one."""
    compiler = _compiler()
    progress(f"installing {', '.join(LLAMA_REQUIREMENTS)} with {compiler[0]}; this compiles llama.cpp")
    venv.create(folder / "llama.cpp", with_pip=True)
    variables = env.inherited() | {"CMAKE_ARGS": _CMAKE, "CC": compiler[0], "CXX": compiler[1]}
    command = [str(_python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *LLAMA_REQUIREMENTS]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OpenGLMError(f"llama.cpp could not be installed:\n{done.stderr[-2000:]}")


def _python_of(folder: Path) -> Path:
    return folder / "llama.cpp" / "bin" / "python"


def _compiler() -> tuple[str, str]:
    """clang if there is one. GCC 12 drops stores before AMX's tile configuration, so there it will not do."""
    if shutil.which("clang") and shutil.which("clang++"):
        return "clang", "clang++"
    gcc = shutil.which("gcc")
    if gcc is None:
        raise OpenGLMError("llama.cpp needs a C++ compiler, and there is neither clang nor gcc")
    version = subprocess.run([gcc, "-dumpversion"], capture_output=True, text=True, check=True).stdout
    major = int((re.match(r"\d+", version) or ["0"])[0])
    if major < 13 and re.search(r"\bamx_tile\b", Path("/proc/cpuinfo").read_text("utf-8")):
        raise OpenGLMError(f"gcc {version.strip()} miscompiles llama.cpp's AMX kernels; install clang")
    return "gcc", "g++"
