"""Whether a request carries a good signature of Amazon's (SigV4), reckoned here anew: a client that
signs another body or path than it sends is found out here, and not in production.

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
    """Whether the secret has signed this request as it came."""
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
    # The secret itself signs nothing: a key of the day, region and service is made of it.
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, signature)


def _canonical(request: web.BaseRequest, body: bytes, names: str) -> str:
    """The request in the one form that is signed: its path is encoded once more."""
    # Raw, as it came over the wire: aiohttp's `path` has lost which characters were escaped.
    path, _, query = request.raw_path.partition("?")
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&") if pair)
    encoded = "&".join(
        f"{quote(unquote(name), safe='-_.~')}={quote(unquote(value), safe='-_.~')}"
        for name, value in pairs
    )
    headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in names.split(";"))
    digest = hashlib.sha256(body).hexdigest()
    # Every service but S3 escapes the path twice: a model's `:` is `%3A` on the wire, `%253A` here.
    lines = (request.method, quote(path, safe="/-_.~"), encoded, headers, names, digest)
    return "\n".join(lines)
