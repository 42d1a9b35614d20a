"""Reading a JSON file that a person named on the command line, with errors a person can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openglm.errors import DataError


def read_json(path: Path) -> Any:
    """The document in `path`; `DataError` says what is wrong and where."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not a usable JSON file: {str(error).splitlines()[0]}") from error
