"""Google's own credentials as tokens: looked up on the worker, renewed before they expire.

tokens = Tokens()                                # gcloud's, a service account's, the machine's
token = await tokens.fresh()                     # on an event loop, which is never blocked
tokens.forget(token)                             # the server says that it has expired
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any, NamedTuple

from beam_llm.errors import Aborted, CallError, Kind, Retryable
from beam_llm.redaction import remember

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
# Longer than any call of the API may take by default, so that no token expires during one.
RENEW_SECONDS = 300.0
"""How long before its expiry a token is renewed; Google's tokens live an hour."""
LEAST_SECONDS = 10.0
"""How long a token is used at least: a machine's metadata server hands out its old token until a
few minutes before the end, and is not to be asked before each call then.
"""

_FIX = (
    "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, "
    "or give the worker a service account"
)


class Token(NamedTuple):
    """What authenticates a call.

    Attributes:
      value: the secret; None: calls go without one.
      headers: to be sent with a call.
    """

    value: str | None
    headers: Mapping[str, str]


class FixedToken:
    """Takes the place of `Tokens` for a token that the user gave, which is never renewed.

    Args:
      value: None: calls go without one, for an emulator.
    """

    def __init__(self, value: str | None):
        headers = {} if value is None else {"Authorization": f"Bearer {value}"}
        self._token = Token(value, headers)

    async def fresh(self) -> Token:
        """The token that was given."""
        return self._token

    def fresh_blocking(self) -> Token:
        """The same, blocking."""
        return self._token

    def forget(self, token: Token) -> bool:
        """Returns False, since no other token can be had."""
        return False


def default_credentials() -> Any:
    """The application-default credentials.

    Raises:
      CallError: there are none, or none that can be used.
    """
    import google.auth

    try:
        return google.auth.default(scopes=SCOPES)[0]
    # Not only google-auth's own: a folder in place of the file, or other JSON, may raise any error.
    except Exception as error:
        failed = error_of(error) or _unusable(error)
    raise failed


def error_of(error: Exception) -> CallError | None:
    """Translates google-auth's error, without its text, which may hold what was sent. Returns None
    for an error of something else.
    """
    from google.auth import exceptions as known

    if not isinstance(error, known.GoogleAuthError):
        return None
    name = type(error).__name__
    if isinstance(error, known.TransportError):
        return Retryable(Kind.UNAVAILABLE, f"Google's tokens can't be reached ({name})")
    # Retryable for google-auth is the token server's 5xx, and not a revoked grant.
    if isinstance(error, known.RefreshError) and error.retryable:
        return Retryable(Kind.UNAVAILABLE, f"Google gives no token now ({name})")
    return _unusable(error)


def _unusable(error: Exception) -> Aborted:
    file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    place = f" in {file!r}, as GOOGLE_APPLICATION_CREDENTIALS says" if file else ""
    return Aborted(
        Kind.ABORTED,
        f"no usable Google credentials on this worker{place} ({type(error).__name__}): {_FIX}",
    )


class Tokens:
    """Tokens of one worker process, for any thread and any event loop.

    Args:
      load: finds credentials (google-auth's), once.
      clock: seconds since the epoch.
    """

    def __init__(
        self,
        load: Callable[[], Any] = default_credentials,
        clock: Callable[[], float] = time.time,
    ):
        self._load, self._clock = load, clock
        self._lock = threading.Lock()
        self._credentials: Any = None
        self._token: Token | None = None
        self._renew_at = 0.0

    async def fresh(self) -> Token:
        """A valid token; a new one is fetched in a thread.

        Raises:
          CallError: there are no credentials (Aborted), or they can't be renewed now.
        """
        token = self._valid_token()
        return token if token is not None else await asyncio.to_thread(self.fresh_blocking)

    def fresh_blocking(self) -> Token:
        """The same, blocking."""
        with self._lock:
            # Another thread may have renewed it while this one waited for the lock.
            token: Token | None = self._valid_token()
            return token if token is not None else self._renew()

    def forget(self, token: Token) -> bool:
        """Has another token fetched, since the server says that this one has expired (by its own
        clock) or was revoked. Returns whether another can be had.
        """
        with self._lock:
            # Among many calls with one token, the first has it renewed.
            if token is self._token:
                self._renew_at = 0.0
        return True

    def _valid_token(self) -> Token | None:
        # Also read without the lock: at worst this is the previous token, which is still valid for
        # minutes.
        return self._token if self._clock() < self._renew_at else None

    def _renew(self) -> Token:
        if self._credentials is None:
            self._credentials = self._load()
        credentials = self._credentials
        _refresh(credentials)
        value = str(credentials.token)
        # Before anything can fail with it, so that no log and no error ever shows it.
        remember(value)
        headers = {"Authorization": f"Bearer {value}"}
        # A user's own credentials (gcloud's) name the project that pays for their quota.
        project = getattr(credentials, "quota_project_id", None)
        if project:
            headers["x-goog-user-project"] = str(project)
        expiry = credentials.expiry  # a naive datetime, in UTC
        now = self._clock()
        # Credentials that don't say when they expire are refreshed every five minutes.
        renew_at = (
            now + RENEW_SECONDS
            if expiry is None
            else expiry.replace(tzinfo=UTC).timestamp() - RENEW_SECONDS
        )
        self._renew_at = max(renew_at, now + LEAST_SECONDS)
        self._token = Token(value, headers)
        return self._token


def _refresh(credentials: Any) -> None:
    """Refreshes the credentials. Raises CallError in place of whatever that raises."""
    from google.auth.transport.requests import Request

    try:
        credentials.refresh(Request())
        return
    # Not only google-auth's own: credentials may read files, and run commands.
    except Exception as error:
        failed = error_of(error) or _unusable(error)
    raise failed
