"""`--config FILE`: a YAML file that mirrors the flags, as the words that one would type instead.

    model: ./GLM-4.5-Air
    served-model-name: [glm-4.5-air, glm]      a list repeats the flag
    enable-prefix-caching: false               a switch: true, false
    speculative-config: {method: mtp, num_speculative_tokens: 2}

Names are those of the flags, other servers' spellings included, with dashes or underscores. Owns reading the file; what the words mean is
decided with those of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from openglm.errors import ConfigError

_MAX_BYTES: Final = 1 << 20


def read_config_file(path: str, own: Mapping[str, bool]) -> list[str]:
    """The words that a file stands for. `own` maps each flag of the command to whether it takes a value."""
    import yaml

    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes, which no configuration is")
        settings = yaml.safe_load(data)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # whose text would quote the file, which may hold a key
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: not valid YAML") from None
    if settings is None:
        return []
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must hold one flag per line, such as `port: 8000`")
    words: list[str] = []
    for key, value in settings.items():
        if not isinstance(key, str) or not key.strip("-_"):
            raise ConfigError(f"{path}: {key!r:.60} is no name of a flag")
        flag = "--" + key.lstrip("-").replace("_", "-")
        words += _words(path, flag, value, own)
    return words


def _words(path: str, flag: str, value: Any, own: Mapping[str, bool]) -> list[str]:
    match value:
        case None:
            return []
        case bool() if not own.get(flag, False):
            if value:
                return [flag]
            opposite = "--no-" + flag.removeprefix("--")
            return [opposite] if opposite in own else []  # a switch of another server, left off
        case bool():
            return [f"{flag}={str(value).lower()}"]
        case dict():
            return [f"{flag}={_json(path, flag, value)}"]
        case list():
            return [word for item in value for word in _words(path, flag, item, own)]
        case str() | int() | float():
            return [f"{flag}={value}"]
    raise ConfigError(f"{path}: {flag.removeprefix('--')} has a value of an unknown kind; quote it")


def _json(path: str, flag: str, value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(f"{path}: {flag.removeprefix('--')} holds something that JSON cannot say; quote it") from None
