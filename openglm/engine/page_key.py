"""The key of a KV page: a hash chain over everything its content depends on.

sha256 over the parent's key and the page's tokens. The chain starts at a root that stands for the cache salt, the adapter and the
version of the weights, so pages under different roots are never taken for one another and nothing has to be invalidated
when one of them changes: old keys are simply not asked for any more.

With speculation the key also covers the one token that *follows* the page: the MTP entry of a position is computed from the
next token, so two prompts that agree on a page and differ right behind it share the trunk's KV of that page but not the MTP layer's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

PageKey = bytes


def root_key(*, salt: str = "", adapter: str = "", weight_version: int = 0, lookahead: int = 0) -> PageKey:
    """Parent key of every first page. Caches that must not share anything differ here."""
    digest = hashlib.sha256(f"openglm-pages/2 {weight_version} {lookahead}".encode())
    for text in (salt, adapter):  # hashed one by one, so that no text can be mistaken for the end of one and the start of another
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.digest()


def page_key(parent: PageKey, tokens: Sequence[int]) -> PageKey:
    """Key of the page with these tokens (the page's own and, with speculation, the one behind) after `parent`."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()
