"""The AMX kernels built with emulated tiles, for processors without them."""

import importlib.util
import shlex
import shutil
import subprocess
import sysconfig
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from openglm.ops import cpu

_COMPILER = shlex.split(sysconfig.get_config_var("CXX") or "c++")[0]


def _emulated_amx(folder: Path) -> ModuleType:
    source = Path(__file__).parents[2] / "csrc" / "cpu"
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-DOPENGLM_EMULATED_TILES", f"-I{sysconfig.get_paths()['include']}"]
    objects = [folder / f"{name}.o" for name in ("isa_amx", "module", "pool", "packing", "memory")]
    for made in objects:
        subprocess.run([_COMPILER, *flags, "-c", source / f"{made.stem}.cpp", "-o", made], check=True)
    library = folder / "_native.abi3.so"
    subprocess.run([_COMPILER, "-shared", *objects, "-o", library, "-pthread"], check=True)
    loader = ExtensionFileLoader("_native", str(library))
    spec = importlib.util.spec_from_loader("_native", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulated_amx(tmp_path_factory) -> ModuleType:
    """A second native module whose only kernels are "amx", each tile instruction replaced by what Intel's manual says it does."""
    if "avx512_bf16" not in cpu.supported():
        pytest.skip("the rest of the AMX kernels needs AVX-512 with bf16 products")
    if shutil.which(_COMPILER) is None:
        pytest.skip("no C++ compiler")
    return _emulated_amx(tmp_path_factory.mktemp("emulated_amx"))
