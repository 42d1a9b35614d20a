"""`SchedulingParams`: how a request is treated while it waits and runs, apart from what is generated.

Urgency, a time limit, and with whom its KV pages may be shared. Limits are checked on construction. Owns no policy: the
scheduler acts on these values.
"""

from __future__ import annotations

import math

import msgspec

from openglm.errors import RequestError

MAX_PRIORITY = 2**31 - 1
MAX_TIMEOUT_S = 7 * 24 * 3600.0
MAX_CACHE_SALT_CHARS = 256


class SchedulingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a request may say about its own scheduling."""

    priority: int = 0
    """Lower runs first (vLLM's direction); equal ones in order of arrival. Decides admission and who gives way for pages."""
    timeout_s: float | None = None
    """Seconds from arrival to the last token; then the request ends with the error "deadline_exceeded". None: the engine's default."""
    cache_salt: str = ""
    """Cached prefixes are shared only between requests with the same salt."""
    skip_reading_prefix_cache: bool = False
    """Compute the whole prompt even if it is cached. What it computes is offered to others as usual."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the parameter."""
        priority, timeout_s, salt = self.priority, self.timeout_s, self.cache_salt
        if not isinstance(priority, int) or isinstance(priority, bool) or not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise RequestError(
                f"priority must be an integer between {-MAX_PRIORITY} and {MAX_PRIORITY}; lower runs first", param="priority"
            )
        if timeout_s is not None:
            number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
            if not number or not math.isfinite(timeout_s) or not 0 < timeout_s <= MAX_TIMEOUT_S:
                raise RequestError(f"timeout_s must be more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds", param="timeout_s")
        if not isinstance(salt, str) or len(salt) > MAX_CACHE_SALT_CHARS:
            raise RequestError(f"cache_salt must be a string of at most {MAX_CACHE_SALT_CHARS} characters", param="cache_salt")
        if not salt.isprintable():  # also keeps out lone surrogates, which no wire can carry
            raise RequestError("cache_salt must hold printable characters only", param="cache_salt")
