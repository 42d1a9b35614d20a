"""Logging set-up: called once by a command, never on import.

Owns the two output forms, text for people and JSON lines for machines. Library code only ever does
`logging.getLogger(__name__)`; prompts, outputs and keys are never logged by anyone. Control characters in a message are
escaped in both forms, so that text which a client sent (a path, a name) cannot forge a line or move a cursor.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
ROOT = "openglm"

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def set_up_logging(level: str = "info", form: LogFormat = "text", stream: TextIO | None = None, *, access: bool = True) -> None:
    """Send the records of `openglm` (and warnings of the HTTP server) to `stream`, standard error by default.

    `access` False leaves out the line that the server writes per request at level info. Calling it again replaces the
    previous set-up. Fields passed as `extra={...}` become keys of a JSON line and `key=value` at the end of a text line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    for name, threshold in ((ROOT, level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(threshold)
        logger.propagate = False
    logging.getLogger(ROOT + ".access").setLevel(logging.NOTSET if access else logging.WARNING)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class _TextFormatter(logging.Formatter):
    """`14:03:07 INFO server: message key=value`; continuation lines (a traceback) are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        where = record.name.removeprefix(ROOT + ".")
        message = record.getMessage() + "".join(f" {key}={value}" for key, value in _extras(record).items())
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return f"{at} {record.levelname} {where}: " + _escape(message).replace("\n", "\n    ")


class _JsonFormatter(logging.Formatter):
    """One JSON object per line with `time` (UTC, ISO 8601), `level`, `logger`, `message` and the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as a JSON line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)
