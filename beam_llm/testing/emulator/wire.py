"""OpenAI's error bodies, JSON responses, and pages of lists. Source: reference of api.openai.com
error codes, read 2026-11-22.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import orjson
from aiohttp import web

from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.emulator.options import EmulatorOptions

JSON = "application/json"


class WireError(NamedTuple):
    """An HTTP error response; `headers` are additional ones."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = {}

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def with_headers(self, headers: Mapping[str, str]) -> WireError:
        """The same error with these headers as well; its own take precedence."""
        return self._replace(headers={**headers, **self.headers})

    def response(self) -> web.Response:
        return json_response(self.body, self.status, self.headers)


def json_response(
    data: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, headers=headers, content_type=JSON)


def json_of(data: bytes | str) -> Any:
    """The value of a JSON text; None where it is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def object_of(data: bytes | str) -> dict[str, Any] | None:
    """The object of a JSON text; None where it is not JSON, or not an object."""
    found = json_of(data)
    return found if isinstance(found, dict) else None


class PageRequest(NamedTuple):
    """Which part of a list a client wants."""

    start: int
    size: int


def parse_page(
    query: Mapping[str, str], size: str, usual: int, token: str, most: int
) -> PageRequest | None:
    """The page that a query asks for, in APIs whose tokens are opaque; None where it can't be read.

    Args:
      size, token: the names of the query's parameters.
      usual, most: the default size of a page, and the largest.
    """
    wanted, start = query.get(size) or str(usual), query.get(token) or "0"
    # ASCII digits only: a token that is not the emulator's own is refused.
    if not (wanted.isascii() and wanted.isdecimal() and start.isascii() and start.isdecimal()):
        return None
    return PageRequest(int(start), min(int(wanted), most)) if int(wanted) > 0 else None


class Page(NamedTuple):
    """A page of a list, and the token to request the next page with; None for the last page."""

    items: list[Any]
    start: int
    next: str | None


def page_of(
    items: list[Any],
    options: EmulatorOptions,
    query: Mapping[str, str],
    size: str,
    usual: int,
    token: str,
    most: int,
) -> Page | None:
    """The page that a query asks for (see `parse_page`), within the emulator's options."""
    wanted = parse_page(query, size, usual, token, most)
    if wanted is None:
        return None
    start, end = wanted.start, wanted.start + min(wanted.size, options.list_page)
    is_last = end >= len(items) and options.list_ends
    return Page(items[start:end], start, None if is_last else str(end))


T = TypeVar("T")


def with_json(reply: T, change: Callable[[Any], Any]) -> T | web.Response:
    """A good reply with its JSON changed; any other reply as it is."""
    if isinstance(reply, web.Response) and reply.status == 200 and isinstance(reply.body, bytes):
        return json_response(change(orjson.loads(reply.body)))
    return reply


def read_range(data: bytes, header: str | None) -> tuple[int, bytes, dict[str, Any]]:
    """The status, bytes and headers of an answer to `Range: bytes=a-b`, or to no range."""
    if not header or not header.startswith("bytes="):
        return 200, data, {}
    first, _, last = header.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
    if start >= len(data):
        return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
    return 206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}


def missing_key() -> WireError:
    return WireError(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth.",
    )


def wrong_key() -> WireError:
    return WireError(
        401,
        "Incorrect API key provided. You can find your API key in your account settings.",
        code="invalid_api_key",
    )


def unknown_model(model: Any) -> WireError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return WireError(404, message, code="model_not_found")


def unknown_route(method: str, path: str) -> WireError:
    return WireError(404, f"Invalid URL ({method} {path})")


def too_many(what: str, model: Any, limit: float, used: float, wait_seconds: float) -> WireError:
    """The 429 for a limit; `what` names the limit, such as `requests per min (RPM)`."""
    figures = f"Limit {limit:g}, Used {used:g}. Please try again in {wait_seconds:.3f}s."
    message = f"Rate limit reached for {model} in organization org-emulator on {what}: {figures}"
    kind = "tokens" if "TPM" in what else "requests"
    return WireError(429, message, kind, "rate_limit_exceeded", headers=retry_after(wait_seconds))


def retry_after(seconds: float | None) -> dict[str, str]:
    """The headers `retry-after` and `retry-after-ms`; none where `seconds` is None."""
    if seconds is None:
        return {}
    return {
        # In whole seconds, rounded up: a client that got 0 for 0.4 would come back too early.
        "retry-after": str(max(0, -int(-seconds // 1))),
        "retry-after-ms": str(round(seconds * 1000)),
    }


def token_limit(model: Any, limit: int | None) -> str:
    reached = (
        f"Enqueued token limit reached for {model} in organization org-emulator. Limit: "
        f"{limit or 0:,} enqueued tokens."
    )
    return f"{reached} Please try again once some in_progress batches have been completed."


def scripted_error(fault: Fault, model: Any = "the model") -> WireError:
    """The error of a fault that answers with an HTTP status."""
    # A script may replace each part of it, since real servers differ in all of them.
    usual = _usual_error(fault, model)
    return usual._replace(
        status=fault.status or usual.status,
        message=fault.message or usual.message,
        code=fault.code or usual.code,
        headers={**usual.headers, **retry_after(fault.retry_after)},
    )


def _usual_error(fault: Fault, model: Any) -> WireError:
    match fault.kind:
        case "rate_limit":
            return WireError(
                429,
                f"Rate limit reached for {model} in organization org-emulator.",
                "requests",
                "rate_limit_exceeded",
            )
        case "insufficient_quota":
            message = "You exceeded your current quota, please check your plan and billing details."
            return WireError(429, message, "insufficient_quota", "insufficient_quota")
        case "unauthorized":
            return wrong_key()
        case "forbidden":
            return WireError(
                403,
                "You are not allowed to use this model from this project.",
                code="permission_denied",
            )
        case "model_not_found":
            return unknown_model(model)
        case "poison":
            return WireError(400, "Invalid prompt: your prompt was flagged.", code="invalid_prompt")
        case "token_limit_at_create":
            return WireError(429, token_limit(model, None), "tokens", "token_limit_exceeded")
        case _:
            return server_error(fault.status or 500)


def server_error(status: int) -> WireError:
    messages = {
        502: "Bad gateway.",
        503: "The engine is currently overloaded, please try again later.",
        529: "Overloaded.",
    }
    return WireError(
        status,
        messages.get(status, "The server had an error while processing your request."),
        "server_error",
    )
