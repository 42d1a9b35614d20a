"""Answers as files: what goes over a dialect's wire, to be read by eye. `UPDATE_GOLDEN=1 pytest ...` writes them anew."""

import os
import re
from pathlib import Path

_FOLDER = Path(__file__).parent / "golden"
_FRESH = (
    (r"(?<=[_-])[0-9a-f]{24}\b", "ID"),
    (r'(?<=")[0-9a-f]{24}(?=")', "ID"),
    (r'"(created|created_at|completed_at)":\d{10}', r'"\1":0'),
    (r'"e2e_latency":[0-9.e-]+', '"e2e_latency":0'),
)


def check_golden(name, response):
    """The body equals the file, but for what is fresh in every answer."""
    text = response.text
    for pattern, replacement in _FRESH:
        text = re.sub(pattern, replacement, text)
    path = _FOLDER / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")
