"""Checks Amazon's request signatures (SigV4) by computing them again: a client that signs another
body or path than it sends is caught here, not in production.

Source: AWS general reference, "Create a signed AWS API request", read 2026-11.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import quote, unquote

from aiohttp import web

_HEADER = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8}/[^/]+/[^/]+/aws4_request), ?"
    r"SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})"
)


def access_key_of(request: web.BaseRequest) -> str:
    """The id of the access key that a request names; empty where it is not signed."""
    found = _HEADER.fullmatch(request.headers.get("Authorization", ""))
    return found[1] if found else ""


def has_signed(request: web.BaseRequest, body: bytes, secret: str) -> bool:
    """Whether the request, as it came, is signed with this secret."""
    found = _HEADER.fullmatch(request.headers.get("Authorization", ""))
    if found is None:
        return False
    _, scope, names, signature = found.groups()
    text = "\n".join(
        (
            "AWS4-HMAC-SHA256",
            request.headers.get("X-Amz-Date", ""),
            scope,
            hashlib.sha256(_canonical(request, body, names).encode()).hexdigest(),
        )
    )
    # The secret itself signs nothing: a key for the day, region and service is derived from it.
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, signature)


def _canonical(request: web.BaseRequest, body: bytes, names: str) -> str:
    """The request's canonical form, which is signed: its path is encoded once more."""
    # The raw path, as it came: aiohttp's `path` no longer shows which characters were escaped.
    path, _, query = request.raw_path.partition("?")
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&") if pair)
    encoded = "&".join(
        f"{quote(unquote(name), safe='-_.~')}={quote(unquote(value), safe='-_.~')}"
        for name, value in pairs
    )
    headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in names.split(";"))
    digest = hashlib.sha256(body).hexdigest()
    # Every service but S3 escapes the path twice: `:` is `%3A` on the wire and `%253A` here.
    lines = (request.method, quote(path, safe="/-_.~"), encoded, headers, names, digest)
    return "\n".join(lines)
