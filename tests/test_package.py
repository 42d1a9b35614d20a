"""What `import openglm` costs and offers."""

import subprocess
import sys

import pytest

import openglm


def test_import_loads_no_torch_and_the_offline_interface_comes_on_demand():
    script = "import sys, openglm; assert 'torch' not in sys.modules; from openglm import LLM, SamplingParams"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no_such_name"):
        openglm.no_such_name  # noqa: B018 - the access is the test
