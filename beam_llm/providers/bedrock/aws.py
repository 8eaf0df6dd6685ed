"""boto3's clients for Bedrock's control plane and S3: without their own retries, with bounded times
and translated errors.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable
from beam_llm.providers.bedrock.failures import EXPIRED, client_error
from beam_llm.providers.bedrock.place import Place, address_of, no_credentials
from beam_llm.providers.errors import ErrorContext, unreadable
from beam_llm.providers.http import Bounds
from beam_llm.providers.typed import word
from beam_llm.redaction import remember

CONNECT_SECONDS = 10.0
_CHUNK = 1 << 20
R = TypeVar("R")


class Clients:
    """boto3's clients, each created at first use; for one thread at a time.

    Attributes:
      context: what errors must not contain.
      last_error: code and message of the last error that Bedrock answered with.
    """

    def __init__(self, place: Place, log_data: bool, bounds: Bounds):
        self._place, self._bounds = place, bounds
        self._lock = threading.Lock()
        self._by_service: dict[str, Any] = {}
        self._session: Any = None
        self.context = ErrorContext(log_data=log_data)
        self.last_error = "", ""

    def bedrock(self, verb: str, missing: type[CallError] = Aborted, **parameters: Any) -> Any:
        """Makes one call of the control plane, in one try.

        Args:
          missing: what a 404 means.

        Raises:
          CallError: the answer is an error, or there is none.
        """
        return self._call(lambda: getattr(self._client("bedrock"), verb)(**parameters), missing)

    def control_url(self) -> str:
        """The address that the paths of jobs are appended to."""
        return address_of(self._once(lambda: self._client("bedrock"), Aborted))

    # S3

    def put_file(self, uri: str, path: Path) -> None:
        """Uploads a file, streamed."""
        bucket, key = _bucket_and_key(uri)

        def once() -> None:
            # Each try opens the file anew, since the one before may have sent half of it.
            with open(path, "rb") as file:
                self._client("s3").put_object(Bucket=bucket, Key=key, Body=file)

        self._call(once, Aborted)  # a 404 for a put means that there is no bucket

    def get_file(self, uri: str, file: IO[bytes], start: int) -> None:
        """Writes an object into a file at `start`, streamed; its last line ends with a newline.

        Raises:
          CallError: it can't be read, or exceeds the bounds on its size or time.
        """
        until = time.monotonic() + self._bounds.transfer_seconds
        bucket, key = _bucket_and_key(uri)
        file.seek(start)
        file.truncate()
        size, last, most = 0, b"\n", self._bounds.file_bytes
        with contextlib.closing(self._s3("get_object", Bucket=bucket, Key=key)["Body"]) as body:
            chunks = body.iter_chunks(_CHUNK)
            while chunk := self._call(lambda: next(chunks, b""), Rejected):
                size, last = size + len(chunk), chunk[-1:]
                if size > most:
                    details = f"the result file is larger than {most:,} bytes (max_file_bytes)"
                    raise Rejected(Kind.TOO_LARGE, details)
                if time.monotonic() > until:
                    raise Retryable(Kind.TIMED_OUT, "a result file can't be read in time")
                file.write(chunk)
        if last != b"\n":
            file.write(b"\n")

    def names(self, folder: str) -> list[str]:
        """Addresses of the objects below a folder.

        Raises:
          CallError: they can't be listed completely.
        """
        bucket, prefix = _bucket_and_key(folder)
        found: list[str] = []
        query: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        for _ in range(self._bounds.list_pages):
            page = self._s3("list_objects_v2", **query)
            keys = [entry.get("Key") or "" for entry in page.get("Contents", ())]
            # Only objects below the folder count, whatever else a server lists.
            found += [f"s3://{bucket}/{key}" for key in keys if key.startswith(prefix)]
            token = page.get("NextContinuationToken")
            if not token:
                return found
            query["ContinuationToken"] = token
        raise unreadable(f"the list of objects at {folder} has no end")

    def delete(self, uri: str) -> None:
        """Removes an object; harmless where it is gone."""
        bucket, key = _bucket_and_key(uri)
        self._s3("delete_object", Bucket=bucket, Key=key)

    def _s3(self, verb: str, **parameters: Any) -> Any:
        return self._call(lambda: getattr(self._client("s3"), verb)(**parameters), Rejected)

    def _call(self, call: Callable[[], R], missing: type[CallError]) -> R:
        """Makes one call, and once more with new credentials where the server says that they have
        expired; also for a create, since a call with expired credentials has no effect.
        """
        try:
            return self._once(call, missing)
        except CallError:
            if self.last_error[0].lower() not in EXPIRED:
                raise
        self._forget()
        return self._once(call, missing)

    def _forget(self) -> None:
        """Drops the clients, since boto3 may consider its credentials valid by its own clock."""
        self.close()
        self._session = None

    def _once(self, call: Callable[[], R], missing: type[CallError]) -> R:
        self.last_error = "", ""
        try:
            return call()
        except CallError:
            raise
        except Exception as error:  # botocore has many classes; their content is not shown
            failed = error
        details = getattr(failed, "response", None)
        details = details.get("Error") if isinstance(details, dict) else None
        details = details if isinstance(details, dict) else {}
        self.last_error = word(details.get("Code")), word(details.get("Message"))
        translated = client_error(failed, self.context, missing)
        del failed  # it may hold what was sent, or what a server repeats
        raise translated

    def _client(self, service: str) -> Any:
        with self._lock:
            if service not in self._by_service:
                self._by_service[service] = self._new(service)
            return self._by_service[service]

    def _new(self, service: str) -> Any:
        from botocore.config import Config

        if self._session is None:
            self._session = self._place.session()
            self._remember()
        seconds = self._bounds.control_seconds
        if service == "s3":  # for one read from the connection, not for the whole transfer
            seconds = min(self._bounds.transfer_seconds, 60.0)
        config = Config(
            connect_timeout=min(CONNECT_SECONDS, seconds),
            read_timeout=seconds,
            # `harmless` decides about repeats, and a create has none.
            retries={"total_max_attempts": 1},
        )
        # `base_url` is Bedrock's; S3's address comes from AWS's own settings.
        url = self._place.base_url if service == "bedrock" else None
        return self._place.client(service, self._session, config=config, endpoint_url=url)

    def _remember(self) -> None:
        """Notes the secrets in use, which no error may show."""
        found = self._session.get_credentials()
        if found is None:
            raise no_credentials()
        frozen = found.get_frozen_credentials()
        for secret in (frozen.secret_key, frozen.token):
            if secret:
                remember(secret)
        self.context = self.context._replace(secret=frozen.secret_key)

    def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        with self._lock:
            for client in self._by_service.values():
                client.close()
            self._by_service.clear()


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
