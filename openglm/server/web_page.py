"""The files of the web page at `/`, and the headers under which a browser may use them.

Every file is read at start into one table from URL path to bytes, so a request can name nothing that is not in it. The page is
plain ES modules under `openglm/server/page`; `page/vendor/README.md` lists the libraries among them.

The policy lets the page load from and talk to this server only, run no inline script or style, be framed by nobody, and write no HTML
from strings (`require-trusted-types-for`): all its nodes are made one by one. Files are public, because the page must be
there to ask for a key; they hold nothing that is not in the package.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""What is served; a file with another suffix (a licence, a manifest) stays at home."""

_HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept by the browser, but asked for again: a new version of the server shows at once
    "vary": "accept-encoding",
}


_TAKES_GZIP: Final = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")


@dataclass(frozen=True)
class PageFile:
    """One file as it is served."""

    body: bytes
    media_type: str
    tag: str

    @functools.cached_property
    def gzipped(self) -> bytes:
        """The body compressed, made when first asked for."""
        return gzip.compress(self.body, mtime=0)


class WebPage:
    """Serves `/` and `/page/...`; `paths` are all there are."""

    def __init__(self, directory: Path | None = None) -> None:
        self._files = _read_files(directory or Path(__file__).parent / "page")

    @property
    def paths(self) -> frozenset[str]:
        """The URL paths of the files."""
        return frozenset(self._files)

    async def serve(self, request: Request) -> Response:
        """One file, or 304 where the browser has it already."""
        file = self._files.get(request.scope["path"])
        if file is None:
            raise HTTPException(404)
        compressible = not file.media_type.startswith("font/")
        zipped = compressible and _TAKES_GZIP.search(request.headers.get("accept-encoding", "")) is not None
        tag = f'"{file.tag}{"-gzip" if zipped else ""}"'
        headers = {**_HEADERS, "etag": tag}
        if tag in (offered.strip().removeprefix("W/") for offered in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        if zipped:
            headers["content-encoding"] = "gzip"
        return Response(file.gzipped if zipped else file.body, media_type=file.media_type, headers=headers)


def _read_files(directory: Path) -> dict[str, PageFile]:
    files: dict[str, PageFile] = {}
    for path in sorted(directory.rglob("*")):
        media_type = _MEDIA_TYPES.get(path.suffix)
        if media_type is None or not path.is_file():
            continue
        body = path.read_bytes()
        name = path.relative_to(directory).as_posix()
        url = "/" if name == "index.html" else f"/page/{name}"
        files[url] = PageFile(body, media_type, hashlib.sha256(body).hexdigest()[:32])
    return files
