"""The page's own logic - conversation tree, stream, archive, calculator - under node's test runner."""

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = sorted((Path(__file__).parent / "page").glob("*.test.mjs"))


def test_the_scripts_of_the_page():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    done = subprocess.run([node, "--test", *map(str, TESTS)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
