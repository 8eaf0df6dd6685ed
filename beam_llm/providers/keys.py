"""Resolves references to keys. The pipeline holds only references; keys are looked up on the
worker, where a client is made.
"""

from __future__ import annotations

import hashlib
import os
import stat

from beam_llm.config import Settings
from beam_llm.errors import Aborted, Kind
from beam_llm.provider_table import PROVIDERS
from beam_llm.redaction import remember

MOST_KEY_CHARACTERS = 16_384
"""The longest tokens of clouds are a few thousand characters."""


def resolve_key(reference: str | None) -> str | None:
    """The key that the reference names; None for `none` (servers without keys).

    Args:
      reference: `env:NAME`, `file:PATH`, `gcp-secret:projects/P/secrets/S[/versions/V]`, or `none`.

    Raises:
      Aborted: where there is no such key. The message names the reference, never a value.
    """
    if reference is None or reference == "none":
        return None
    scheme, _, place = reference.partition(":")
    key = _SCHEMES[scheme](reference, place).strip()
    if not key:
        raise _missing(reference, "it is empty")
    if len(key) > MOST_KEY_CHARACTERS:
        raise _missing(
            reference, f"it is longer than {MOST_KEY_CHARACTERS:,} characters, which no key is"
        )
    # None of these can be sent in a header.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise _missing(
            reference,
            "it holds a character that no key has (a line break, perhaps, or more than one line)",
        )
    # From here on no message of this process shows the key, whoever wrote the message.
    remember(key)
    return key


def mark_of_key(settings: Settings, salt: str) -> str:
    """A mark that distinguishes API keys and reveals nothing of them: 32 bits of a digest. Empty
    where there is no key, or a cloud's, which changes every hour.

    Raises:
      Aborted: as `resolve_key`.
    """
    is_lasting = PROVIDERS[settings.provider].key_variable is not None
    key = resolve_key(settings.api_key) if is_lasting else None
    return "" if key is None else hashlib.sha256(f"{salt} {key}".encode()).hexdigest()[:8]


def _missing(reference: str, reason: str) -> Aborted:
    return Aborted(Kind.ABORTED, f"no API key at {reference!r}: {reason}")


def _from_environment(reference: str, name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise _missing(
            reference,
            "the environment variable is not set on this worker; export it, or write "
            "api_key='none' for servers without keys",
        )
    return value


def _from_file(reference: str, path: str) -> str:
    try:
        # A device or a pipe may have no end, or never begin.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _missing(reference, "it is not a regular file")
        with open(path, encoding="utf-8") as file:
            # A little more than the longest key, so that a longer one is noticed and not cut.
            return file.read(MOST_KEY_CHARACTERS + 100)
    except (OSError, ValueError) as error:
        raise _missing(
            reference, f"the file can't be read on this worker ({type(error).__name__})"
        ) from None


def _from_secret_manager(reference: str, name: str) -> str:
    """The key in Google's Secret Manager, by the worker's own credentials; its latest version where
    none is named.
    """
    try:
        from google.cloud import secretmanager
    except ImportError:
        raise _missing(
            reference, "Secret Manager's client is not installed; pip install 'beam-llm[gcp]'"
        ) from None
    version = name if "/versions/" in name else f"{name}/versions/latest"
    try:
        reply = secretmanager.SecretManagerServiceClient().access_secret_version(
            request={"name": version}
        )
    except Exception as error:  # of the client or its credentials library: each means no key
        raise _missing(reference, f"Secret Manager refused ({type(error).__name__})") from None
    return str(reply.payload.data.decode("utf-8"))


_SCHEMES = {"env": _from_environment, "file": _from_file, "gcp-secret": _from_secret_manager}
