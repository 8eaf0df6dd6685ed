"""The table of all options: each with its default, its rule and its meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from beam_llm.provider_table import EXAMPLE_MODEL, PROVIDERS, added_providers

AUTO_CALLS = 512
"""The most calls in flight with `max_concurrency="auto"`. It is defined here, not in the
controller, because the option's description names it."""
MODES = ("online", "batch_api")
TASKS = {"chat": "LLMPredict", "embed": "LLMEmbed", "session": "LLMChat", "reduce": "LLMReduce"}
"""Each task, and the transform that runs it, as errors name it."""
VECTOR = list[float]
"""The `output` of the task `embed`."""
RESPONSE_FORMATS = ("json", "xml", "delimited")
# Which tasks have an option, where not all do.
_CHAT, _EMBED, _SESSION, _REDUCE = ("chat",), ("embed",), ("session",), ("reduce",)
_ANSWERS = ("chat", "session", "reduce")
EACH = ("chat", "embed")
"""The tasks that ask about each record on its own, so that a record may wait for others."""
_JOBS = (*EACH, "reduce")
"""The tasks that batch jobs can run."""


def _option(default: Any, meaning: str, **rule: Any) -> Any:
    """One row of the table: default, meaning and rule (`kind`, `least`, `most`, `choices`, `also`;
    `only`: the tasks that have the option, where not all do).
    """
    # A field of a dataclass, not of a pydantic model: importing this package stays cheap, and the
    # error messages are our own, with the fix in them.
    return dataclasses.field(default=default, metadata={"meaning": meaning, **rule})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All options of one use of a model, checked. Plain data: it is pickled into the pipeline and
    holds no secret.

    Build it with `settings(...)` or `settings_from_options(...)`; the constructor alone checks
    nothing.

        known = settings("openai:gpt-4.1-mini", prompt="Label: {{ text }}", batch_size=20)
        known.provider, known.model_name  # ("openai", "gpt-4.1-mini")
    """

    # The empty default is never used: `settings` demands a model.
    model: str = _option(
        "",
        f"which model: `PROVIDER:MODEL`, such as `{EXAMPLE_MODEL}`, or a template of the record "
        "that gives one",
        kind="text",
    )
    models: Sequence[str] | None = _option(
        None,
        "the models that a `model` template may give (default: those named in it)",
        kind="names",
        only=EACH,
    )
    prompt: str | None = _option(
        None,
        "Jinja2 template over the element's fields; `{{ element }}` is the whole element",
        kind="text",
    )
    system_prompt: str | None = _option(
        None, "system-level instruction", kind="words", only=_ANSWERS
    )
    media: Sequence[str] | None = _option(
        None,
        "fields that hold images, sent with the text: bytes, `data:` URLs, addresses, or "
        "lists of these",
        kind="names",
        only=_CHAT,
    )
    task: str = _option(
        "chat",
        "what the model does: `chat`: it answers; `embed`: it gives a vector of each text; "
        "`session`: it answers turn after turn (LLMChat); `reduce`: it answers about all records "
        "of a key (LLMReduce)",
        kind="choice",
        choices=tuple(TASKS),
    )
    dimensions: int | None = _option(
        None,
        "how many numbers each vector has (default: the model's)",
        kind="int",
        least=1,
        most=65_536,
        only=_EMBED,
    )
    session: str | None = _option(
        None,
        "field that names an element's session (default: elements are pairs of a session and a "
        "message)",
        kind="field",
        only=_SESSION,
    )
    # Bounds of what a session keeps, and of what its prompts hold.
    history_turns: int = _option(
        20,
        "most earlier turns of the session in a turn's prompt; the oldest are left out",
        kind="int",
        only=_SESSION,
        least=0,
        most=10_000,
    )
    history_tokens: int | None = _option(
        None,
        "most tokens of those earlier turns (default: what the model's window leaves)",
        kind="int",
        only=_SESSION,
        least=0,
    )
    session_ttl_seconds: float = _option(
        86_400.0,
        "how long after its last turn a session ends, by the elements' timestamps",
        kind="float",
        only=_SESSION,
        least=0.001,
    )
    turn_order: str | None = _option(
        None,
        "bounded input: field of the message by which a session's turns follow one another "
        "(default: the element's timestamp)",
        kind="field",
        only=_SESSION,
    )
    # A type is checked by `prompting.output_types`, which config, a layer below it, can't import.
    output: Any = _option(  # noqa: RUF009  # a row of the table
        str,
        "type of the answer: str, int, float, bool, Literal, Enum, list, pydantic model, JSON "
        "schema",
        kind="output",
        only=_ANSWERS,
    )
    instruction: str | None = _option(
        None,
        "what the answer about all records of a key is, such as `Summarise the complaints.`",
        kind="text",
        only=_REDUCE,
    )
    group_by: Sequence[str] | None = _option(
        None,
        "fields by whose values elements are grouped (default: the key of `(key, value)` pairs)",
        kind="names",
        only=_REDUCE,
    )
    combine_instruction: str | None = _option(
        None,
        "how partial answers are put together (default: to one, as if all records had been in "
        "one prompt)",
        kind="text",
        only=_REDUCE,
    )
    partial_output: Any = _option(  # noqa: RUF009  # as `output`
        str,
        "type of the answers over a part of a key's records, as for `output`",
        kind="output",
        only=_REDUCE,
    )
    # With the default, no record is left out unnoticed.
    on_bad_record: str = _option(
        "fail",
        "records that can't be asked (a field is missing, too large): `fail` ends their key as an "
        "error that names them, `leave_out` answers over the others and counts them",
        kind="choice",
        only=_REDUCE,
        choices=("fail", "leave_out"),
    )
    batch_size: int | Literal["auto"] = _option(
        1,
        "most records in one prompt, or `auto`: as many as the model's window takes",
        kind="int",
        least=1,
        also=("auto",),
    )
    # Milliseconds where people tune latencies, seconds where they wait for jobs; the unit is in
    # each name.
    batch_timeout_ms: int = _option(
        1000,
        "longest wait before an incomplete prompt batch is sent (unbounded input)",
        kind="int",
        only=EACH,
        least=1,
    )
    batch_max_bytes: int | None = _option(
        None, "most UTF-8 bytes of records' texts in one prompt", kind="int", least=1
    )
    batch_shards: int = _option(
        1,
        "buffers that form prompt batches side by side (unbounded input); more for over "
        "10,000 records a second",
        kind="int",
        only=EACH,
        least=1,
        most=1000,
    )
    batch_prompt_template: str | None = _option(
        None,
        "Jinja2 over `records`, each with `index`, `text` and its fields",
        kind="text",
        only=_CHAT,
    )
    response_format: str = _option(
        "json",
        "shape of the reply: `json`, `xml`, `delimited`, or the dotted name of a parser",
        kind="format",
        only=_CHAT,
    )
    response_path: str | None = _option(
        None,
        "JSONPath or XPath to the answers; for `delimited` a regex with groups `index` and `value`",
        kind="text",
        only=_CHAT,
    )
    response_index_field: str = _option(
        "index", "field that holds a record's index", kind="field", only=_CHAT
    )
    response_value_field: str | None = _option(
        None, "field that holds a record's answer", kind="field", only=_CHAT
    )
    # More than twenty are a mistake: with backoff they take minutes, beyond `call_deadline_ms`.
    max_retries: int = _option(
        3,
        "further tries of a failed call, and the bound on re-asking the same records",
        kind="int",
        least=0,
        most=20,
    )
    request_timeout_ms: int = _option(30_000, "timeout of one API call", kind="int", least=1)
    # Flink's checkpoints wait for a bundle's calls, and time out after ten minutes by default.
    call_deadline_ms: int = _option(
        120_000,
        "timeout of one call with all its retries and waits; keep it below a checkpoint's timeout",
        kind="int",
        least=1,
    )
    on_unparseable: str = _option(
        "split",
        "a whole reply that can't be read: `split`, `retry`, `single`, `fail`",
        kind="choice",
        choices=("split", "retry", "single", "fail"),
    )
    api_key: str | None = _option(
        None,
        "reference to the key: `env:NAME`, `file:PATH`, `gcp-secret:projects/…`, or `none`",
        kind="secret",
    )
    base_url: str | None = _option(
        None, "where the API is, if not at the provider's own address", kind="text"
    )
    api_version: str | None = _option(
        None, "version of the API, for a provider whose older routes name one", kind="text"
    )
    mode: str = _option(
        "online",
        "`online`: live calls; `batch_api`: the provider's batch API, at half price with most",
        kind="choice",
        choices=MODES,
    )
    staging_location: str | None = _option(
        None,
        "batch_api: local folder or gs:// for files and ledger; with the extra `objectstore` "
        "s3:// or az://",
        kind="text",
        only=_JOBS,
    )
    max_concurrency: int | Literal["auto"] = _option(
        "auto",
        "live calls in flight per worker process: a number, or `auto`: starts at 16 and "
        f"finds its own size up to {AUTO_CALLS}",
        kind="int",
        least=1,
        most=10_000,
        also=("auto",),
    )
    # Floats, so that a budget below one a minute can be given, such as one an hour.
    requests_per_minute: float | None = _option(
        None, "budget of the whole job, divided by `rate_limit_shares`", kind="float", least=0.001
    )
    tokens_per_minute: float | None = _option(
        None, "budget of the whole job, divided by `rate_limit_shares`", kind="float", least=1
    )
    rate_limit_shares: int = _option(
        1, "worker processes that share the per-minute budgets", kind="int", least=1
    )
    guard: float = _option(
        0.0,
        "part of the records (0.02: 2 %) that is asked alone as well, to see whether packing "
        "changes answers",
        kind="float",
        only=_CHAT,
        least=0.0,
        most=1.0,
    )
    guard_floor: float = _option(
        0.9,
        "smallest part of the guarded answers that has to agree with the answers given alone; "
        "below it, prompts are made smaller",
        kind="float",
        only=_CHAT,
        least=0.0,
        most=1.0,
    )
    on_abort: str = _option(
        "raise",
        "a bad key, an unknown model, a spent quota: `raise` fails the pipeline, `record` "
        "ends every further record as an error",
        kind="choice",
        choices=("raise", "record"),
    )
    on_leftover: str = _option(
        "follow_up",
        "batch_api, records a job did not answer: `follow_up` (one more job, then live "
        "calls), `online`, `fail`",
        kind="choice",
        only=_JOBS,
        choices=("follow_up", "online", "fail"),
    )
    # The default never pays twice: an error is noticed, a double payment is not.
    on_doubt: str = _option(
        "record",
        "batch_api, a job that may exist but can't be found: `record` names the doubt in the "
        "error, `resubmit` asks again",
        kind="choice",
        only=_JOBS,
        choices=("record", "resubmit"),
    )
    retry_cancelled: bool = _option(
        False,
        "batch_api: ask again what a cancelled job left unanswered",
        kind="bool",
        only=_JOBS,
    )
    independent: bool = _option(
        False,
        "equal records (told apart by `record_id`) are asked separately",
        kind="bool",
        only=EACH,
    )
    fresh: str | None = _option(
        None,
        "batch_api: another string makes a new set of answers instead of re-using known ones",
        kind="text",
        only=_JOBS,
    )
    job_max_records: int | None = _option(
        None,
        "most requests in one job (default: the provider's limit)",
        kind="int",
        only=_JOBS,
        least=1,
    )
    job_max_bytes: int | None = _option(
        None,
        "most bytes in one job's file (default: the provider's limit)",
        kind="int",
        only=_JOBS,
        least=1_000,
    )
    job_max_tokens: int | None = _option(
        None,
        "most estimated input tokens in one job; keep it below your enqueued-token limit",
        kind="int",
        only=_JOBS,
        least=1,
    )
    # Five minutes are short compared with the hours that a job may take, and long enough for jobs
    # of some size.
    job_max_wait_seconds: float = _option(
        300.0,
        "unbounded input: longest wait before an incomplete job is submitted",
        kind="float",
        only=_JOBS,
        least=0.05,
    )
    # Less than a tenth of a second is for tests, whose jobs take no longer.
    poll_seconds: float | None = _option(
        None,
        "pace of the polls (default: adaptive, 30 to 300 s)",
        kind="float",
        only=_JOBS,
        least=0.05,
    )
    job_deadline_hours: float | None = _option(
        None,
        "end of waiting for a job (default: the provider's window and an hour)",
        kind="float",
        only=_JOBS,
        least=0.0001,
    )
    lease_seconds: float = _option(
        120.0,
        "batch_api: how long a worker may hold a job it is submitting before another takes it over",
        kind="float",
        only=_JOBS,
        least=0.5,
    )
    list_lag_seconds: float = _option(
        60.0,
        "batch_api: how long a created job may stay invisible in the provider's list",
        kind="float",
        only=_JOBS,
        least=0.0,
    )
    # Off, because a staging location is often shared, and unpickling runs code from the pickle.
    allow_pickle: bool = _option(
        False,
        "batch_api: elements of classes that only pickle can carry are read back from the "
        "staging location by other runs than their own; "
        "whoever can write there can then run code here",
        kind="bool",
        only=_JOBS,
    )
    # Measured after decompression, since a compressed reply of some kilobytes can hold gigabytes.
    max_reply_bytes: int = _option(
        20_000_000,
        "most bytes of one reply, unpacked: of a live call, of a line of a result file",
        kind="int",
        least=10_000,
    )
    max_file_bytes: int = _option(
        2_000_000_000,
        "batch_api: most bytes of one result file, unpacked",
        kind="int",
        only=_JOBS,
        least=10_000,
    )
    max_list_pages: int = _option(
        100,
        "batch_api: most pages (of 100 jobs) of the provider's list that are read",
        kind="int",
        only=_JOBS,
        least=1,
    )
    control_timeout_ms: int = _option(
        60_000,
        "batch_api: timeout of one call about a job (create, look, cancel), with all its tries, "
        "until its last byte",
        kind="int",
        only=_JOBS,
        least=1,
    )
    transfer_timeout_ms: int = _option(
        1_800_000,
        "batch_api: timeout of one upload or download, with all its tries, until its last byte",
        kind="int",
        only=_JOBS,
        least=1,
    )
    waiting: str | None = _option(
        None,
        "how jobs are waited for: `loop` or `sdf` (default: by runner)",
        kind="choice",
        only=_JOBS,
        choices=("loop", "sdf"),
    )
    tracing: bool = _option(
        False,
        "spans of calls and jobs by OpenTelemetry (extra `otel`), without texts",
        kind="bool",
    )
    # Off, because more people read the logs than may see the data.
    log_data: bool = _option(
        False, "texts of records and replies may appear in logs and error messages", kind="bool"
    )
    max_input_tokens: int | None = _option(
        None,
        "most input tokens of one prompt (default: the model's window minus its answer)",
        kind="int",
        least=16,
    )
    context_window: int | None = _option(
        None, "the model's window in tokens (default: as published)", kind="int", least=64
    )
    # No upper bound here: each provider has its own (in its `check`).
    temperature: float | None = _option(
        None, "passed to the provider", kind="float", only=_ANSWERS, least=0.0
    )
    max_output_tokens: int | None = _option(
        None,
        "most output tokens per record; multiplied by the records in a prompt",
        kind="int",
        only=_ANSWERS,
        least=1,
        most=10_000_000,
    )
    # 64 bits, as in OpenAI's reference: JSON encoders refuse more, and would do so in every call.
    seed: int | None = _option(
        None, "passed to the provider", kind="int", only=_ANSWERS, least=-(2**63), most=2**63 - 1
    )
    service_tier: str | None = _option(
        None,
        "live calls: how urgent they are, sent where the provider has it: `auto`, `default`, "
        "`flex` (cheaper, slower), `priority`",
        kind="choice",
        only=_ANSWERS,
        choices=("auto", "default", "flex", "priority"),
    )
    extra_body: Mapping[str, Any] | None = _option(
        None, "further request parameters, passed to the provider as they are", kind="json"
    )
    provider_options: Mapping[str, Any] | None = _option(
        None, "what only one provider needs, such as a region, a role or a project", kind="json"
    )
    prices: Mapping[str, Any] | None = _option(
        None,
        "your own prices in dollars per million tokens: `input`, `output`, `cached`",
        kind="json",
    )
    record_id: str | None = _option(
        None, "field that identifies a record (default: its content)", kind="field", only=_JOBS
    )
    output_field: str | None = _option(
        None, "emit rows: the element's fields, this field, and `<field>_error`", kind="field"
    )

    @property
    def provider(self) -> str:
        """What stands before the model's colon: `openai`."""
        return self.model.partition(":")[0]

    @property
    def usual_calls(self) -> int:
        """The number of calls in flight to use in estimates; a guess with `auto`."""
        # Four times where `auto` starts, an eighth of where it may end.
        return 64 if self.max_concurrency == "auto" else self.max_concurrency

    @property
    def model_name(self) -> str:
        """The model as its provider names it: what stands after the colon."""
        return self.model.partition(":")[2]

    # A provider from another package has its row where the pipeline is built; a worker may not have
    # imported that package yet, and may never do so.
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), _ADDED: added_providers()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = dict(state)
        for name, spec in options.pop(_ADDED, {}).items():
            PROVIDERS.setdefault(name, spec)
        vars(self).update(options)


_ADDED = "added_providers"
"""A key that no option has."""


OPTIONS: dict[str, dataclasses.Field[Any]] = {
    option.name: option for option in dataclasses.fields(Settings)
}


def key_of(name: str) -> str:
    """`batch_size` → `batch.size`."""
    return name.replace("_", ".")


def options_of(*tasks: str) -> dict[str, dataclasses.Field[Any]]:
    """The rows of the table that apply to any of these tasks."""
    return {
        name: option
        for name, option in OPTIONS.items()
        if not set(tasks).isdisjoint(option.metadata.get("only", TASKS))
    }


def given_options(settings: Settings) -> Iterator[tuple[str, Any]]:
    """The model, and every option with a value other than its default, by Python name."""
    for name, option in OPTIONS.items():
        value = getattr(settings, name)
        if name == "model" or (value is not None and value != option.default):
            yield name, value
