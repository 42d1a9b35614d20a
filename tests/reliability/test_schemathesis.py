"""Schemathesis against the server's own `/openapi.json`: `make test-schemathesis`, which installs it apart from everything else.

Besides the malformed corpus, not instead: it draws from the document, so it finds where document and server differ. Left out are requests
that the document allows and the server refuses (`positive_data_acceptance`): what words and ranges mean is not in a schema.
"""

import os
import subprocess
from pathlib import Path

import pytest

from .test_scenarios import FLAGS, directory, serve  # noqa: F401  # a fixture

COMMAND = os.environ.get("SCHEMATHESIS", "")
pytestmark = [pytest.mark.reliability, pytest.mark.skipif(not Path(COMMAND).is_file(), reason="run `make test-schemathesis`")]


def test_what_the_document_allows_and_forbids_is_answered_as_it_says(directory, tmp_path):  # noqa: F811
    patient = {"--limit-head-read-s": 30, "--limit-body-read-s": 60}  # what a busy machine delays is not what is tested
    server = serve(directory, {**FLAGS, **patient, "--max-model-len": 256, "--max-queued-requests": 64})
    command = [COMMAND, "run", f"{server.url.removesuffix('/v1')}/openapi.json"]
    command += ["--header", "x-api-key:operator", "--exclude-path-regex", "^/(drain|resume|abort_requests?)$"]  # they end what others test
    command += ["--exclude-checks", "positive_data_acceptance,ignored_auth", "--max-examples", os.environ.get("EXAMPLES", "50")]
    command += ["--seed", "1", "--workers", "2", "--request-timeout", "30", "--generation-database", "none", "--continue-on-failure"]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        server.close()
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    print(done.stdout[-1500:])
