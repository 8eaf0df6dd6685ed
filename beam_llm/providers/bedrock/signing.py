"""Signatures of live calls (SigV4), by botocore; credentials as boto3 finds and renews them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from beam_llm.errors import Aborted, Kind
from beam_llm.providers.bedrock.place import Place
from beam_llm.redaction import remember

KEPT_SECONDS = 60.0
"""Frozen credentials are asked for anew after so long: boto3 renews them minutes before their end,
and that call blocks.
"""


class Signer:
    """Signs one client's calls. Used on one event loop; the first look for credentials, and every
    renewal, is in a thread.

    Attributes:
      secret: the newest secret key, which no error may show.
    """

    def __init__(self, place: Place):
        self._place = place
        self._source: Any = None
        self._auth: Any = None
        self._until = 0.0
        self._renewing = asyncio.Lock()
        self.secret: str | None = None

    async def headers(self, url: str, body: bytes) -> dict[str, str]:
        """The headers that sign a POST of `body`.

        Raises:
          Aborted: there are no credentials.
        """
        if time.monotonic() >= self._until:
            async with self._renewing:
                if time.monotonic() >= self._until:
                    await asyncio.to_thread(self._renew)
        from botocore.awsrequest import AWSRequest

        request = AWSRequest("POST", url, {"Content-Type": "application/json"}, body)
        self._auth.add_auth(request)
        return dict(request.headers)

    def forget(self) -> None:
        """Has credentials looked up again: the server says that they have expired."""
        self._until = 0.0

    def _renew(self) -> None:
        from botocore.auth import SigV4Auth

        failed: str | None = None
        try:
            if self._source is None:
                self._source = self._place.session().get_credentials()
            frozen = self._source and self._source.get_frozen_credentials()
        except Exception as error:  # of a profile, a role, a token: its text may hold a secret
            frozen, failed = None, type(error).__name__
        if frozen is None:
            raise no_credentials(failed)
        self.secret = frozen.secret_key
        for secret in (frozen.secret_key, frozen.token):
            if secret:
                remember(secret)
        self._auth = SigV4Auth(frozen, "bedrock", self._place.region)
        self._until = time.monotonic() + KEPT_SECONDS


def no_credentials(reason: str | None = None) -> Aborted:
    """The error of a worker on which boto3 finds no credentials."""
    because = f" ({reason})" if reason else ""
    return Aborted(
        Kind.ABORTED,
        f"no AWS credentials are found on this worker{because}: give it a role, export "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in provider_options",
    )
