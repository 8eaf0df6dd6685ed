"""Where Bedrock is, and whose credentials are used, found as AWS's own tools find them."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import quote

from beam_llm.config import Settings
from beam_llm.errors import Aborted, Kind, UsageError

NO_REGION = (
    "no region is known for bedrock: give provider_options={'region': 'us-east-1'}, or set "
    "AWS_REGION"
)
_ARN_REGION = re.compile(r"arn:aws[^:]*:bedrock:([a-z0-9-]+):")
_S3_URI = re.compile(r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](/[-!_*'().a-zA-Z0-9]+)*/?")
"""As CreateModelInvocationJob takes it. Source: botocore 1.44, `bedrock`, read 2026-11."""


class Place(NamedTuple):
    """Where Bedrock is, which model is called, and with whose credentials.

    Attributes:
      model: its id, the id of an inference profile, or an ARN.
      profile: of AWS's configuration, where the credentials are a profile's.
      base_url: the address of all of Bedrock, where it is not Amazon's own.
    """

    region: str
    model: str
    profile: str | None = None
    base_url: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """The place that the settings name. Raises Aborted if no region is known here."""
        region = known_region(settings)
        if region is None:
            raise Aborted(Kind.ABORTED, NO_REGION)
        options = settings.provider_options or {}
        base = (settings.base_url or "").rstrip("/") or None
        return cls(region, settings.model_name, options.get("profile"), base)

    def converse_url(self, model: str) -> str:
        """The address of a model's Converse, percent-encoded as it is signed."""
        return f"{self._runtime()}/model/{quote(model, safe='')}/converse"

    def invoke_url(self, model: str) -> str:
        """The address of a model's InvokeModel, percent-encoded as it is signed."""
        return f"{self._runtime()}/model/{quote(model, safe='')}/invoke"

    def _runtime(self) -> str:
        # Live calls are not made by boto3, but have to go to the same address.
        return self.base_url or address_of(self.client("bedrock-runtime"))

    def client(self, service: str, session: Any = None, **options: Any) -> Any:
        """boto3's client of a service.

        Args:
          session: the one to take it from; None: a new one.

        Raises:
          Aborted: AWS's configuration can't be used.
        """
        from botocore.exceptions import BotoCoreError

        try:
            return (session or self.session()).client(service, **options)
        except BotoCoreError as error:
            failed = no_credentials(type(error).__name__)
        except ValueError:
            failed = Aborted(
                Kind.ABORTED, "AWS's endpoint URL is not an address; write https://… there"
            )
        raise failed

    def session(self) -> Any:
        """boto3's session: it knows profiles, roles and how credentials are renewed."""
        import boto3

        return boto3.Session(region_name=self.region, profile_name=self.profile)


def address_of(client: Any) -> str:
    """The address that boto3's client calls, without a trailing slash: from AWS's variables and
    configuration (a custom endpoint, FIPS), else at the region's own domain.
    """
    return str(client.meta.endpoint_url).rstrip("/")


def no_credentials(reason: str | None = None) -> Aborted:
    """The error of a worker on which boto3 finds no credentials, or none that can be used.

    Args:
      reason: the name of boto3's error.
    """
    what = f"credentials that can be used ({reason})" if reason else "credentials"
    return Aborted(
        Kind.ABORTED,
        f"no AWS {what} are found on this worker: give it a role, export AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or name a profile in provider_options; live calls also take a "
        "Bedrock API key: api_key='env:AWS_BEARER_TOKEN_BEDROCK'",
    )


def known_region(settings: Settings) -> str | None:
    """The region that the settings, the model's ARN, the environment or a profile names."""
    options = settings.provider_options or {}
    found = options.get("region") or os.environ.get("AWS_REGION")
    if found or (found := os.environ.get("AWS_DEFAULT_REGION")):
        return str(found)
    arn = _ARN_REGION.match(settings.model_name)
    return arn[1] if arn else _region_of_profile(options.get("profile"))


def _region_of_profile(profile: str | None) -> str | None:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        region: str | None = boto3.Session(profile_name=profile).region_name
    except BotoCoreError:  # no such profile: `connect` reports it
        return None
    return region


def bucket_of(settings: Settings) -> str:
    """`s3://bucket/path` under which a job's files are, without a trailing slash.

    Raises:
      UsageError: neither `bucket` nor the staging location is one.
    """
    given = (settings.provider_options or {}).get("bucket")
    found = str(given or settings.staging_location or "")
    if not found.startswith("s3://") and not given:
        raise UsageError(
            f"staging_location is {settings.staging_location!r}: Bedrock reads and writes a job's "
            "files in S3; give provider_options={'bucket': 's3://bucket/path'}, or stage in s3://"
        )
    if not _S3_URI.fullmatch(found):
        raise UsageError(
            f"{'bucket' if given else 'staging_location'} is {found!r}: Bedrock takes "
            "'s3://bucket/path', a bucket of 3 to 63 lower-case letters, digits, - and ., and a "
            "path of letters, digits and -!_*'()."
        )
    # The staging location holds the ledger, so a job's files get a folder of their own there.
    return found.rstrip("/") if given else f"{found.rstrip('/')}/bedrock"
