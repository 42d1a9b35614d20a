"""The GPU kernels in Triton's interpreter. Without Triton (extra `gpu`) these tests are left out; `make test-triton` brings it along."""

import importlib.util
import os

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are defined
