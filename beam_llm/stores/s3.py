"""A staging store that is a prefix of an S3 bucket, or of a server's that speaks S3."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from beam_llm.stores.objects import CLIENT, RETRIES, ObjectStore, call_hiding_errors

ABANDONED_AFTER = timedelta(days=1)
"""An upload that has not been completed after this time belongs to a process that was killed."""


class S3Store(ObjectStore):
    """`s3://bucket/path`: creates carry `If-None-Match: *`, which S3 enforces since August 2024.

    Credentials and region as boto3 finds them where it is installed (profiles, roles, SSO), else as
    obstore does (variables, web identity, the machine's role). `AWS_ENDPOINT_URL_S3` and
    `AWS_ENDPOINT_URL` name another server.

    Source: S3 user guide, "Conditional writes", read 2026-11.
    """

    scheme = "s3"

    def _open(self) -> Any:
        from obstore.store import S3Store as Bucket

        session, endpoint = _session(), endpoint_url()
        config: dict[str, Any] = {"conditional_put": "etag"}
        if endpoint is not None:
            config["endpoint"] = endpoint
        if session is not None and session.region_name:
            config["region"] = session.region_name
        return Bucket(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            client_options={**CLIENT, "allow_http": (endpoint or "").startswith("http://")},
            retry_config=RETRIES,
            credential_provider=call_hiding_errors(lambda: _credentials(session), self.location),
        )

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Objects whose upload was begun more than a day ago and never completed: their parts cost
        money until they are removed. Empty without boto3, since obstore can't list them.
        """
        session = _session()
        if session is None:
            return ()
        return call_hiding_errors(lambda: self._sweep(session, dry_run), self.location)

    def _sweep(self, session: Any, dry_run: bool) -> list[str]:
        found = []
        with contextlib.closing(session.client("s3", endpoint_url=endpoint_url())) as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=f"{self.prefix}/" if self.prefix else ""
            )
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                if datetime.now(UTC) - upload["Initiated"] <= ABANDONED_AFTER:
                    continue
                key, upload_id = upload["Key"], upload["UploadId"]
                found.append(f"s3://{self.bucket}/{key} (upload {upload_id})")
                if not dry_run:
                    client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
        return found


def endpoint_url() -> str | None:
    """Another server than Amazon's, where the environment names one."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _session() -> Any:
    try:
        import boto3
    except ImportError:
        return None
    return boto3.Session()


def _credentials(session: Any) -> Any:
    """Credentials that boto3 finds and renews; None: obstore looks for them."""
    if session is None or session.get_credentials() is None:
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(session, ttl=timedelta(minutes=10))
