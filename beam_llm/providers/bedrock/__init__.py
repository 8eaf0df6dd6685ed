"""Amazon Bedrock: live calls of the Converse API, embeddings by InvokeModel, and batch inference
jobs over S3.

chat.py        live calls
calls.py       what live calls have in common
signing.py     their signatures
wire.py        requests and replies
forms.py       how a reply's schema is requested, by model
batches.py     batch inference jobs
aws.py         boto3's clients for jobs and their files in S3
lines.py       lines of result files
messages.py    Claude's own form of requests and replies, for jobs
job_objects.py a job as Bedrock shows it
place.py       region, addresses, credentials
failures.py    translates errors
embed.py       the module that takes the place of this one where vectors are wanted
embeddings.py  live calls for embeddings
embed_wire.py  requests and replies of embeddings, by model
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import EmbeddingModule, MediaLimits
from beam_llm.providers import images
from beam_llm.providers.anthropic.schema import closed_schema
from beam_llm.providers.bedrock.forms import Form
from beam_llm.providers.bedrock.messages import CONVERSE, INVOKE_MODEL
from beam_llm.providers.bedrock.place import NO_REGION, Place, bucket_of, known_region
from beam_llm.providers.bedrock.wire import encode_body
from beam_llm.providers.checks import (
    check_extra_body,
    check_names,
    check_temperature,
    refuse_api_version,
    refuse_plain_http,
)
from beam_llm.providers.keys import resolve_key
from beam_llm.values import Request, Schema

if TYPE_CHECKING:
    from beam_llm.providers.bedrock.batches import BedrockBatches
    from beam_llm.providers.bedrock.calls import BedrockCalls
    from beam_llm.providers.bedrock.chat import BedrockChat

MOST_TEMPERATURE = 1.0
PLACE_OPTIONS = ("region", "profile", "role_arn", "bucket", "min_records")
OPTIONS = (*PLACE_OPTIONS, "invocation_type", "prompt_cache")
"""`region` and `profile` as AWS's tools know them; `role_arn`: the service role by which Bedrock
reads and writes a job's files; `bucket`: `s3://bucket/path` for them, where the staging location is
elsewhere; `min_records`: the fewest records of a job, by your quota; `invocation_type`: of jobs,
`Converse`, or `InvokeModel` where a region or a Claude model has no Converse for jobs;
`prompt_cache`: `on` or `off`, for live calls.
"""

RESERVED_FIELDS = ("modelId", "messages", "system", "outputConfig", "toolConfig", "serviceTier")
"""Request fields that `extra_body` may not set."""

_ROLE = re.compile(r"arn:aws(-[^:]+)?:iam::\d{12}:role/.+")


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what Bedrock does not have."""
    check_names(settings, OPTIONS)
    check_place(settings)
    if settings.seed is not None:
        raise UsageError(f"seed is {settings.seed}: bedrock: has none; leave it out")
    check_temperature(settings, MOST_TEMPERATURE)
    _check_invocation(settings)
    if (cache := _options(settings).get("prompt_cache", "on")) not in ("on", "off"):
        raise UsageError(f"provider_options has prompt_cache {cache!r}: it has to be 'on' or 'off'")
    check_extra_body(settings, RESERVED_FIELDS)
    if settings.mode == "batch_api":
        check_jobs(settings)


def check_place(settings: Settings) -> None:
    """Raises UsageError where boto3 or a region is missing, or an option of all models is wrong."""
    refuse_api_version(settings)
    refuse_plain_http(settings)
    # Only looked for: the import is left to `preload`, in its thread.
    if importlib.util.find_spec("boto3") is None:
        raise UsageError("bedrock: needs boto3; pip install 'beam-llm[bedrock]'")
    given = _options(settings)
    for name in PLACE_OPTIONS:
        if name not in given:
            continue
        value = given[name]
        if name == "min_records":
            if type(value) is not int or value < 1:
                raise UsageError(
                    f"provider_options has min_records {value!r}: it has to be a whole number "
                    "from 1 on; Bedrock's usual quota is 100"
                )
        elif not isinstance(value, str) or not value:
            raise UsageError(f"provider_options has {name} {value!r}: it has to be a string")
    region = known_region(settings)
    if region is None:
        raise UsageError(NO_REGION)
    # It becomes a part of a host's name.
    if not re.fullmatch(r"[a-z0-9-]{1,30}", region):
        raise UsageError(f"region is {region!r}: it has to be a name such as 'us-east-1'")


def _check_invocation(settings: Settings) -> None:
    kind = _options(settings).get("invocation_type", CONVERSE)
    if kind not in (CONVERSE, INVOKE_MODEL):
        raise UsageError(
            f"provider_options has invocation_type {kind!r}: it has to be 'Converse' or "
            "'InvokeModel'"
        )
    if kind == INVOKE_MODEL and "claude" not in settings.model_name:
        raise UsageError(
            f"provider_options has invocation_type 'InvokeModel', which takes {settings.model_name}"
            "'s own form of requests, which is known here only for Claude; leave it out"
        )


def check_jobs(settings: Settings) -> None:
    """Raises UsageError where jobs lack what they need: AWS credentials, a role or a bucket."""
    if settings.api_key:
        raise UsageError(
            f"api_key is {settings.api_key!r}: Bedrock's jobs and their files in S3 take AWS "
            "credentials, as boto3 finds them; leave it out"
        )
    role = _options(settings).get("role_arn")
    if role is None:
        raise UsageError(
            "mode is 'batch_api' but Bedrock's service role is missing: give provider_options="
            "{'role_arn': 'arn:aws:iam::ACCOUNT:role/NAME'}, a role that Bedrock may take and "
            "that may read and write the bucket"
        )
    if not _ROLE.fullmatch(role):
        raise UsageError(
            f"provider_options has role_arn {role!r}: it has to be 'arn:aws:iam::ACCOUNT:role/NAME'"
        )
    bucket_of(settings)


def _options(settings: Settings) -> Mapping[str, Any]:
    return settings.provider_options or {}


def is_cached(settings: Settings) -> bool:
    """Whether long shared prefixes are marked for the provider's cache."""
    return bool(_options(settings).get("prompt_cache", "on") == "on")


def preload() -> None:
    """Imports what `connect` needs."""
    importlib.import_module("beam_llm.providers.bedrock.calls")
    importlib.import_module("boto3")


def connect(settings: Settings) -> BedrockChat:
    """A client for live calls; see `providers.connect`."""
    from beam_llm.providers.bedrock.chat import BedrockChat

    place = Place.of(settings)
    return BedrockChat(
        place,
        calls_of(settings, place),
        service_tier=settings.service_tier,
        is_cached=is_cached(settings),
    )


def calls_of(settings: Settings, place: Place) -> BedrockCalls:
    """The connections of one client, for live calls."""
    from beam_llm.providers.bedrock.calls import BedrockCalls
    from beam_llm.providers.http import Bounds

    return BedrockCalls(
        place,
        resolve_key(settings.api_key) if settings.api_key else None,
        key_reference=settings.api_key,
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def connect_batch(settings: Settings) -> BedrockBatches:
    """A client for batch inference jobs; see `providers.connect_batch`."""
    from beam_llm.providers.bedrock.batches import BedrockBatches, JobOptions
    from beam_llm.providers.http import Bounds

    return BedrockBatches(
        Place.of(settings),
        JobOptions.of(settings),
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def embedding_module() -> EmbeddingModule:
    """The module that takes the place of this one where vectors are wanted."""
    from beam_llm.providers.bedrock import embed

    return embed


def enforced_schema(schema: Schema) -> Schema | None:
    """The schema as it is enforced; None where it can't be. See `protocols.SchemaDialect`."""
    return closed_schema(schema)


def media_limits(settings: Settings) -> MediaLimits | None:
    """Which images the model takes; None where it is known to take none."""
    tokens = images.by_model(images.BEDROCK_TOKENS, settings.model_name)
    return images.limits_of(settings, images.BEDROCK_IMAGES._replace(tokens=tokens))


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    form = Form.of(settings.model_name)
    return encode_body(request, form, settings.service_tier, is_cached=is_cached(settings))
