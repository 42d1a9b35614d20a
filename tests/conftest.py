"""Fixtures shared by every test: where the reference data of the model family lies, if it is there."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of public reference data (templates, configs, golden cases) beside the checkout; tests skip without it."""
    root = Path(os.environ.get("OPENGLM_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if not root.is_dir():
        pytest.skip("reference data folder ../shared/data is absent")
    return root
