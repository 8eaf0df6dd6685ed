"""Who speaks OpenAI's dialect, and in what each differs: data, one row a provider, with its source.

A new provider is a row in here and a row in `provider_table.PROVIDERS`. What no row says is learned
from refusals (`dialect.py`), or is left to an option (`extra_body`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from beam_llm.config import Settings
from beam_llm.protocols import WRITTEN_OUT, BatchTraits, MediaLimits, Recovery
from beam_llm.providers import images

WINDOW_OPTION = "window_hours"
"""The key of `provider_options` for the window of a job, where a provider lets it be chosen."""

JSON_SCHEMA, JSON_OBJECT, WORDS = "json_schema", "json_object", "words"
MAX_COMPLETION_TOKENS, MAX_TOKENS = "max_completion_tokens", "max_tokens"

_DAY = 86_400.0


class Form(NamedTuple):
    """How a reply of a schema's shape is requested from a model.

    Attributes:
      reply_format: the `type` of `response_format`, or `words` for none.
      is_strict: the schema is sent in strict mode.
      also_in_words: the schema is put into a system message, too.
    """

    reply_format: str
    is_strict: bool = True
    also_in_words: bool = False


STRICTLY = Form(JSON_SCHEMA)
LOOSELY = Form(JSON_SCHEMA, is_strict=False, also_in_words=True)
AS_OBJECT = Form(JSON_OBJECT)
IN_WORDS = Form(WORDS)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchApi:
    """What a provider's batch API is like.

    Attributes:
      traits: see `BatchTraits`.
      kind: its shape: `files` (OpenAI's own: a file in, a job, files out), `named` (xAI's: a file
        in, a job with a name, results in pages), `inline` (OpenRouter's: all in one body),
        `mistral`, or `datasets` (Fireworks').
      purpose: the `purpose` of an uploaded file; empty: none is sent.
      upload_path: where files are uploaded to.
      upload_fields: further fields of the upload's form; `{name}` stands for the file's name.
      names_url: each line has its method and url beside its body.
      window: `completion_window`, where the user has not chosen one.
      options: names in `provider_options` that it requires.
      longest_hours: the longest window that may be chosen (`provider_options`); 0: it is fixed.
      keeps_metadata: jobs are shown with the metadata that they were created with.
      keeps_inputs: jobs are shown with the id of their input file, so that a list without it proves
        that there is no such job.
      takes_image_data: images may be sent as data; otherwise only by their address.
      line_bytes: the most bytes of a line with images, where that is less than for a live request.
    """

    traits: BatchTraits
    kind: str = "files"
    purpose: str = "batch"
    upload_path: str = "/files"
    upload_fields: Mapping[str, str] = field(default_factory=dict)
    names_url: bool = True
    window: str = "24h"
    options: tuple[str, ...] = ()
    longest_hours: int = 0
    keeps_metadata: bool = True
    keeps_inputs: bool = False
    takes_image_data: bool = True
    line_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbedApi:
    """What a provider's embeddings are like.

    Attributes:
      inputs: most texts of one request.
      usual_inputs: texts of a request whose size the user has not chosen, where that is less.
      input_tokens, request_tokens: most tokens of one text, and of all texts of a request; None
        where the provider doesn't say.
      dimensions_field: the parameter for the number of dimensions.
      fixed_models: pattern of the names of models whose dimensions are fixed; empty: all models.
      takes_base64: vectors can be requested as base64 of their bytes.
      is_batched: its batch API embeds, too.
      job_inputs: most texts of one job, where it counts them.
    """

    inputs: int
    usual_inputs: int | None = None
    input_tokens: int | None = None
    request_tokens: int | None = None
    dimensions_field: str = "dimensions"
    fixed_models: str = r"text-embedding-ada|mistral-embed"
    takes_base64: bool = False
    is_batched: bool = False
    job_inputs: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Server:
    """A provider that speaks the dialect.

    Attributes:
      path: of the API, appended to an address without it.
      tokens_field, seed_field: the parameters for a reply's longest length, and for a seed.
      most_temperature: the highest temperature.
      forms: (pattern of model names, how a reply's shape is requested); the first match is used.
      batch_forms: the same for batches; they come before `forms` there.
      form: of all other models.
      is_enforced: schemas are known to be enforced, so that nothing is learned from a reply that
        isn't JSON.
      tiers: the option `service_tier` → this provider's word; it has no other tiers.
      beside_a_schema: further fields of a live request that has a schema.
      batch: its batch API; None: it has none here.
      embed: its embeddings; None: it has none here.
      images: which images it takes beside a text.
      has_bare_urls: an image's address is a string, and not an object with a `url`.
      source: where all this was read, and when.
    """

    path: str = ""
    tokens_field: str = MAX_TOKENS
    seed_field: str = "seed"
    most_temperature: float = 2.0
    forms: tuple[tuple[str, Form], ...] = ()
    batch_forms: tuple[tuple[str, Form], ...] = ()
    form: Form = STRICTLY
    is_enforced: bool = False
    tiers: Mapping[str, str] = field(default_factory=dict)
    beside_a_schema: Mapping[str, Any] = field(default_factory=dict)
    batch: BatchApi | None = None
    embed: EmbedApi | None = None
    images: MediaLimits = images.OTHER_IMAGES
    has_bare_urls: bool = False
    source: str = ""

    def form_of(self, model: str, is_live: bool) -> Form:
        """How replies of a schema's shape are requested from this model."""
        forms = self.forms if is_live else (*self.batch_forms, *self.forms)
        return next((form for names, form in forms if re.match(names, model)), self.form)


_ALL_TIERS = {tier: tier for tier in ("auto", "default", "flex", "priority")}

_OLDER_MODELS = (
    (r"gpt-3\.5|gpt-35|gpt-4-turbo|gpt-4-1106|gpt-4-0125|gpt-4o-2024-05-13", AS_OBJECT),
    (r"gpt-4(-0314|-0613|-32k.*)?$", IN_WORDS),
)
"""OpenAI's models from before structured output (August 2024) and before JSON mode (November 2023).
"""

_OPENAI_TRAITS = BatchTraits(
    max_requests=50_000,
    max_bytes=190_000_000,
    window_seconds=_DAY,
    create_seconds=120,
    recovery=Recovery.METADATA,
)
"""Source: OpenAI's batch guide, read 2026-11-22: 50,000 requests and 200 MB a file (kept below by 5
%), 24 h. Azure's are the same. A create is given up after a minute (`control_timeout_ms`); what has
reached the server by then gets another minute.
"""


def _like_openai(**traits: Any) -> BatchTraits:
    return dataclasses.replace(_OPENAI_TRAITS, **traits)


OPENAI = Server(
    tokens_field=MAX_COMPLETION_TOKENS,
    forms=_OLDER_MODELS,
    is_enforced=True,
    tiers=_ALL_TIERS,
    batch=BatchApi(traits=_OPENAI_TRAITS),
    embed=EmbedApi(
        inputs=2_048,
        input_tokens=8_192,
        request_tokens=300_000,
        takes_base64=True,
        is_batched=True,
        job_inputs=50_000,
    ),
    images=images.OPENAI_IMAGES,
    source="developers.openai.com/api/reference (chat, embeddings, batch), 2026-11; Azure's REST "
    "reference, 2026-11",
)

AZURE = dataclasses.replace(
    OPENAI,
    is_enforced=False,
    batch=BatchApi(
        traits=_like_openai(
            caveats=(
                (
                    "a resource keeps 500 files, of which a job has three: `beam-llm jobs cleanup` "
                    "removes those of jobs that have ended"
                ),
            ),
        )
    ),
)
"""A deployment's name doesn't reveal its model, which may be DeepSeek's or Meta's, too."""

ANY = Server(
    forms=_OLDER_MODELS,
    tiers=_ALL_TIERS,
    batch=BatchApi(
        traits=_like_openai(
            recovery=Recovery.LABEL,
            caveats=(
                (
                    "whether this server lists jobs with their metadata, or only with their "
                    "input file, shows when a create gets no answer"
                ),
            ),
        )
    ),
    # Text Embeddings Inference takes 32 texts a request by default; others take any number.
    embed=EmbedApi(inputs=2_048, usual_inputs=32, is_batched=True, job_inputs=WRITTEN_OUT),
    source="whatever `openai:` with a base_url leads to; many take `max_tokens` only",
)

OPENROUTER = Server(
    tiers=_ALL_TIERS,
    # All requests of a job need the same schema there, or none; prompts of n records have n's.
    batch_forms=((r"~?google/", IN_WORDS),),
    # Otherwise it may route a request to a host that ignores the schema.
    beside_a_schema={"provider": {"require_parameters": True}},
    batch=BatchApi(
        kind="inline",
        names_url=False,
        takes_image_data=False,
        traits=_like_openai(
            max_requests=5_000,
            window_seconds=4 * _DAY,
            recovery=Recovery.NONE,
            caveats=(
                (
                    "a job has no name: one whose create got no answer is told from others by its "
                    "time, its size and, once it has ended, its lines; until then it is in doubt"
                ),
                "jobs can't be cancelled",
                "a job may take 96 hours, where it runs at Vertex AI",
                "images are taken by their address, and not as data",
            ),
        ),
    ),
    source="openrouter.ai/docs (batch quickstart, provider routing), SDK 1.3.84, 2026-11",
)

TOGETHER = Server(
    batch=BatchApi(
        purpose="batch-api",
        upload_path="/files/upload",
        upload_fields={"file_name": "{name}", "file_type": "jsonl"},
        names_url=False,
        # A job's metadata is dropped; the id of its input file is kept, and proves as much.
        keeps_metadata=False,
        keeps_inputs=True,
        traits=_like_openai(
            max_bytes=95_000_000,
            window_seconds=3 * _DAY,
            recovery=Recovery.LABEL,
            caveats=(
                "most jobs end within a day; a large one may take three",
                (
                    "some models cost as much by batch as live: see the price page, and give "
                    "prices={…, 'batch': 1} for them"
                ),
            ),
        ),
    ),
    # No most is documented; a hundred texts a request are common.
    embed=EmbedApi(inputs=2_048, usual_inputs=100, fixed_models=""),
    source="docs.together.ai (batch overview, upload-file, embeddings), SDK 3.1.1, "
    "togethercomputer/skills (batch inference), 2026-11",
)

GROQ = Server(
    tokens_field=MAX_COMPLETION_TOKENS,
    forms=(
        (r"openai/gpt-oss-(20|120)b$", STRICTLY),
        (r"openai/gpt-oss-safeguard|moonshotai/kimi-k2|meta-llama/llama-4", LOOSELY),
    ),
    form=AS_OBJECT,
    tiers={"auto": "auto", "default": "on_demand", "flex": "flex", "priority": "performance"},
    batch=BatchApi(
        longest_hours=7 * 24,
        traits=_like_openai(
            # 100 MB a file, kept below by 5 %.
            max_bytes=95_000_000,
            caveats=("the batch price is that of a documented list of models",),
        ),
    ),
    images=images.GROQ_IMAGES,
    source="console.groq.com/docs (structured outputs, batch, flex), SDK 1.7.0, 2026-11",
)

FIREWORKS = Server(
    tiers={"auto": "auto", "default": "default", "priority": "priority"},
    batch=BatchApi(
        kind="datasets",
        names_url=False,
        options=("account_id",),
        traits=_like_openai(
            max_bytes=140_000_000,
            recovery=Recovery.TOKEN,
            caveats=("jobs can't be cancelled",),
        ),
    ),
    embed=EmbedApi(inputs=2_048, input_tokens=8_192),
    images=images.FIREWORKS_IMAGES,
    source="docs.fireworks.ai (batch inference, datasets, embeddings), SDK 1.2.30, 2026-11",
)

DEEPINFRA = Server(
    tiers={"default": "default", "priority": "priority"},
    batch=BatchApi(
        traits=_like_openai(
            caveats=(
                "the batch price is 80 % of the live one",
                (
                    "an account keeps 2 GB of files, results among them: `beam-llm jobs cleanup` "
                    "removes those of jobs that have ended"
                ),
            ),
        )
    ),
    # A vector of 4,096 numbers has some 80 kB in a result file, and an account 2 GB for all.
    embed=EmbedApi(inputs=1_024, is_batched=True, job_inputs=10_000),
    source="deepinfra.com/blog/batch-api, docs.deepinfra.com (batch, files), 2026-11",
)

XAI = Server(
    tokens_field=MAX_COMPLETION_TOKENS,
    tiers={"default": "default", "priority": "priority"},
    batch=BatchApi(
        kind="named",
        purpose="",
        # 25 MB a line, kept below by 4 %: a longer one fails the whole job.
        line_bytes=24_000_000,
        traits=_like_openai(
            max_bytes=45_000_000,
            window_seconds=3 * _DAY,
            caveats=(
                "the batch price is 80 % of the live one",
                "most jobs end within a day; no end is promised",
            ),
        ),
    ),
    images=images.XAI_IMAGES,
    source="docs.x.ai (batch API, files), recorded traffic of 2026-08, 2026-11",
)

MISTRAL = Server(
    path="/v1",
    seed_field="random_seed",
    most_temperature=1.5,
    tiers={"auto": "auto", "default": "standard_only"},
    batch=BatchApi(
        kind="mistral",
        names_url=False,
        longest_hours=7 * 24,
        # 512 MB a file, kept below by 5 %. The guide says a million requests, the limits a tenth.
        traits=_like_openai(
            max_requests=100_000,
            max_bytes=485_000_000,
            caveats=("results may be gone a day after the job's end: leave no run for longer",),
        ),
    ),
    embed=EmbedApi(
        inputs=256,
        input_tokens=8_192,
        request_tokens=16_000,
        dimensions_field="output_dimension",
        takes_base64=True,
        is_batched=True,
    ),
    images=images.MISTRAL_IMAGES,
    has_bare_urls=True,
    source=(
        "docs.mistral.ai/api and its known limitations, SDK 3.7.0, recorded traffic of 2026-08, "
        "2026-11; how many texts and "
        "tokens an embeddings request takes: found out by rig-core 0.42 and langchain-mistralai"
    ),
)

BY_NAME = {
    "mistral": MISTRAL,
    "azure": AZURE,
    "openrouter": OPENROUTER,
    "together": TOGETHER,
    "groq": GROQ,
    "fireworks": FIREWORKS,
    "deepinfra": DEEPINFRA,
    "xai": XAI,
}


def server_of(settings: Settings, host: str = "") -> Server:
    """The row of a provider; `openai:` with somebody else's address is `ANY`.

    Args:
      host: the address's host name.
    """
    named = BY_NAME.get(settings.provider)
    if named is not None:
        return named
    return OPENAI if host == "openai.com" or host.endswith(".openai.com") else ANY
