"""Settings: every option, its default and its check, in one table; every door (Python, SQL, YAML,
command line) leads here.

An option has one name in two spellings: `batch_size` in Python, `batch.size` as a string key. Its
line in `Settings` carries the default, the rule and the meaning; `OPTIONS` lists them for the
command line and the docs.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from beam_llm.errors import UsageError
from beam_llm.provider_table import ANYTHING_ELSE, EXAMPLE_MODEL, PROVIDERS

AUTO_CALLS = 512
"""Most calls in flight with `max_concurrency="auto"`. It stands here, not in the controller, since
the option's own text names it."""
MODES = ("online", "batch_api")
TASKS = {"chat": "LLMPredict", "embed": "LLMEmbed", "session": "LLMChat", "reduce": "LLMReduce"}
"""Each task with the transform that has it, as errors name it."""
VECTOR = list[float]
"""The `output` of the task `embed`."""
RESPONSE_FORMATS = ("json", "xml", "delimited")
# Which tasks have an option, where not all do.
_CHAT, _EMBED, _SESSION, _REDUCE = ("chat",), ("embed",), ("session",), ("reduce",)
_ANSWERS = ("chat", "session", "reduce")
EACH = ("chat", "embed")
"""The tasks that ask about records one by one, which may therefore wait for others."""
_JOBS = (*EACH, "reduce")
"""Those that may go by jobs."""


def _option(default: Any, meaning: str, **rule: Any) -> Any:
    """One row of the table: default, meaning and rule (`kind`, `least`, `most`, `choices`, `also`;
    `only`: the tasks that have the option, where not all do).
    """
    # A field of a dataclass, not of a pydantic model: an import of this package stays cheap, and
    # the messages are ours, with the fix in them.
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
        "the models that a `model` template may give (default: those that stand in it)",
        kind="names",
        only=EACH,
    )
    prompt: str | None = _option(
        None, "Jinja2 template over the element's fields; `{{ element }}` is the whole", kind="text"
    )
    system_prompt: str | None = _option(
        None, "system-level instruction", kind="text", only=_ANSWERS
    )
    media: Sequence[str] | None = _option(
        None,
        "fields that hold images, to stand beside the text: bytes, `data:` URLs, addresses, or "
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
        "numbers of each vector (default: the model's)",
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
        "most earlier turns of its session that a turn is asked with; the oldest are left out",
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
        "a session ends so long after its last turn, by the elements' timestamps",
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
    # A type is judged by `prompting.output_types`, which config, on the ground, can't import.
    output: Any = _option(  # noqa: RUF009  # a row of the table
        str,
        "type of the answer: str, int, float, bool, Literal, Enum, list, pydantic model, JSON "
        "schema",
        kind="output",
        only=_ANSWERS,
    )
    instruction: str | None = _option(
        None,
        "what the answer over all records of a key is, such as `Summarise the complaints.`",
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
    # The default loses nothing unseen.
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
    # Milliseconds where people tune latencies, seconds where they wait for jobs: the unit is in
    # each name, as the proposal has them.
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
    # Twenty is where a mistake begins: with backoff they take minutes, beyond `call_deadline_ms`.
    max_retries: int = _option(
        3,
        "further tries of a failed call, and the bound on re-asking the same records",
        kind="int",
        least=0,
        most=20,
    )
    request_timeout_ms: int = _option(30_000, "timeout of one API call", kind="int", least=1)
    # Flink's checkpoints time out after ten minutes by default, and wait for a bundle's calls.
    call_deadline_ms: int = _option(
        120_000,
        "one call with all its retries and waits; keep it below a checkpoint's timeout",
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
    # Floats: a budget below one a minute is a way to say "one in an hour".
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
        "least part of the guarded answers that has to be the one given alone; below it prompts "
        "are made smaller",
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
    # The default never pays twice: that a record may end as an error is seen, a double is not.
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
    # Five minutes are little beside the hours that a job may take, and make jobs of some size.
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
    # Off, for a staging location is often shared, and unpickling runs what stands in a pickle.
    allow_pickle: bool = _option(
        False,
        "batch_api: elements of classes that only pickle can carry are read back from the "
        "staging location by other runs than their own; "
        "whoever can write there can then run code here",
        kind="bool",
        only=_JOBS,
    )
    # Unpacked, since a reply of some kilobytes can be packed to hold gigabytes.
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
        "batch_api: one call about a job (create, look, cancel), with its tries and to its "
        "last byte",
        kind="int",
        only=_JOBS,
        least=1,
    )
    transfer_timeout_ms: int = _option(
        1_800_000,
        "batch_api: one upload or download, with its tries and to its last byte",
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
    # Off: logs are read by more people than the data is meant for.
    log_data: bool = _option(
        False, "texts of records and replies may appear in logs and error messages", kind="bool"
    )
    max_input_tokens: int | None = _option(
        None,
        "most input tokens of one prompt (default: the model's window less its answer)",
        kind="int",
        least=16,
    )
    context_window: int | None = _option(
        None, "the model's window in tokens (default: as published)", kind="int", least=64
    )
    # Without an upper bound here: providers have different ones (`check` of each).
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
    # 64 bits, as OpenAI's reference has it: JSON encoders refuse more, and would in every call.
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
        None, "what one provider alone needs, such as a region, a role or a project", kind="json"
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
        """Calls in flight, for what is estimated ahead of them; with `auto` a guess."""
        # Four times where `auto` starts, an eighth of where it may end.
        return 64 if self.max_concurrency == "auto" else self.max_concurrency

    @property
    def model_name(self) -> str:
        """The model as its provider names it: what stands behind the colon."""
        return self.model.partition(":")[2]


OPTIONS: dict[str, dataclasses.Field[Any]] = {
    option.name: option for option in dataclasses.fields(Settings)
}


def key_of(name: str) -> str:
    """`batch_size` → `batch.size`."""
    return name.replace("_", ".")


def options_of(*tasks: str) -> dict[str, dataclasses.Field[Any]]:
    """The rows of the table that a task has, or one of several."""
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


def settings(model: str, **values: Any) -> Settings:
    """Checks every value and fills in what depends on the environment (base URLs) or on other
    options.

    Raises:
      UsageError: names the option, its value, the rule and the fix.
    """
    # None is "not given", so that callers may pass on what they have; only an output may be None.
    task = values.get("task") or "chat"
    own = options_of(task) if task in tuple(TASKS) else OPTIONS
    for name in values.keys() - OPTIONS.keys():
        raise UsageError(_unknown(name, list(OPTIONS), list(own)))
    checked = {name: _checked(name, value) for name, value in {"model": model, **values}.items()}
    known = Settings(
        **{name: value for name, value in checked.items() if value is not None or name == "output"}
    )
    return _completed(known)


def settings_from_options(
    options: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    allow_code: bool = False,
    usual: Mapping[str, Any] | None = None,
    **values: Any,
) -> Settings:
    """Settings from string keys as in SQL's `WITH (…)`: `{"provider": "openai", "model": "gpt-4",
    "batch.size": "20"}`.

    Args:
      options: a model's defaults.
      overrides: what one use changes; wins over `options`. Provider and model may be changed apart.
      allow_code: whether `options` and `overrides` may name a parser by its dotted name. They may
        come from a file or a query of somebody else, and a name is enough to run whatever this
        machine can import. No option can give this permission.
      usual: a transform's own defaults by Python name; everything wins over them.
      values: already typed values by Python name (an `output` class, say); win over both.
    """
    layers = [_by_name(layer) for layer in (options, overrides or {})]
    if not allow_code:
        for layer in layers:
            _refuse_code(layer)
    # Parted before they are merged: an override of the provider alone keeps the model's name.
    layers = [dict(usual or {}), *layers, values]
    named = {name: value for layer in layers for name, value in _parted(layer).items()}
    provider, model = named.pop("provider", None), named.pop("model", None)
    if model is None:
        if provider is not None:
            raise UsageError(
                f'"provider" is {provider!r} but "model" is missing: add it, such as '
                f'"{EXAMPLE_MODEL.partition(":")[2]}"'
            )
        raise UsageError(
            f'no model given: add "model", such as "{EXAMPLE_MODEL}", or "provider" and "model"'
        )
    return settings(model if provider is None else f"{provider}:{model}", **named)


def replaced(known: Settings, **changes: Any) -> Settings:
    """The same settings with some changed, checked anew."""
    # `dataclasses.replace` would check nothing.
    values = {name: getattr(known, name) for name in OPTIONS}
    return settings(**{**values, **changes})


def _parted(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The same with `provider` and `model` apart: `openai:gpt-4` names both, `ft:gpt-4:org` a model
    only; None is not given.
    """
    provider, model = layer.get("provider"), layer.get("model")
    if isinstance(model, str):
        # A colon alone says nothing: OpenAI's tuned models are called `ft:gpt-4:org`.
        prefix, _, rest = model.partition(":")
        if prefix == provider or (provider is None and prefix in PROVIDERS):
            provider, model = prefix, rest
    given = {"provider": provider, "model": model}
    others = {name: value for name, value in layer.items() if name not in given}
    return others | {name: value for name, value in given.items() if value is not None}


def _by_name(layer: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(layer, Mapping):
        raise UsageError(
            f"options have to be a mapping of names to values, not {type(layer).__name__}"
        )
    given: dict[str, str] = {}
    for key in layer:
        # Two layers may say different things, the later one wins; in one it is a slip, and to take
        # the one that happens to stand last would hide it.
        name = _name_of(key)
        if name in given:
            raise UsageError(
                f"{key!r} is the same option as {given[name]!r}: leave one of them out"
            )
        given[name] = key
    return {name: layer[key] for name, key in given.items()}


def _refuse_code(layer: Mapping[str, Any]) -> None:
    # To check the name would be to import it, so it is refused unseen.
    parser = layer.get("response_format")
    if isinstance(parser, str) and "." in parser:
        raise UsageError(
            f"response_format is {parser!r}: options given as text can't name code; give the "
            "parser from Python, "
            "or allow it: allow_code=True, --allow-code"
        )


def _name_of(key: str) -> str:
    if not isinstance(key, str):
        raise UsageError(f"an option's name has to be a string, not {key!r}")
    name = key.strip().replace(".", "_").replace("-", "_").lower()
    if name in OPTIONS or name == "provider":
        return name
    known = [key_of(option) for option in OPTIONS] + ["provider"]
    raise UsageError(_unknown(key, known, known))


def _unknown(key: str, known: list[str], own: list[str]) -> str:
    """Args:
    known, own: options of all transforms, and of this one.
    """
    # Below difflib's usual 0.6, with which `size` would not find `batch.size`.
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(sorted(own))}"
    return f"unknown option {key!r}: {advice}"


def _checked(name: str, value: Any) -> Any:
    option = OPTIONS[name]
    if value is None and name != "output":
        return option.default
    return _KINDS[option.metadata["kind"]](name, value, option.metadata)


def _wrong(name: str, value: Any, rule: str, fix: str) -> UsageError:
    return UsageError(f"{name} is {_shortened(value)}: {rule}; {fix}")


def _shortened(value: Any) -> str:
    # A prompt of megabytes would be the whole message.
    shown = repr(value)
    return shown if len(shown) <= 200 else shown[:199] + "…"


def _number(
    name: str, value: Any, rule: Mapping[str, Any], convert: Callable[[Any], Any], noun: str
) -> Any:
    if isinstance(value, str) and value in rule.get("also", ()):
        return value
    try:
        # To Python True is 1: `batch_size=True` would pass for a size.
        if isinstance(value, bool):
            raise ValueError("a boolean")
        number = convert(value)
    except (TypeError, ValueError, OverflowError):
        also = "".join(f" or {word!r}" for word in rule.get("also", ()))
        raise _wrong(name, value, f"it has to be {noun}{also}", f"try {_example(name)}") from None
    least, most = rule.get("least"), rule.get("most")
    if (least is not None and number < least) or (most is not None and number > most):
        bounds = f"at least {least:,}" if most is None else f"between {least:,} and {most:,}"
        raise _wrong(name, value, f"it has to be {bounds}", f"try {_example(name)}")
    return number


def _example(name: str) -> str:
    default, least = OPTIONS[name].default, OPTIONS[name].metadata.get("least") or 1
    return f"{name}={default if default is not None else least if least > 0 else 1}"


def _whole(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("not whole")
    return int(value)


def _finite(value: Any) -> float:
    # No bound catches NaN, which is neither below nor above anything.
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError("not finite")
    return number


def _int(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    return _number(name, value, rule, _whole, "a whole number")


def _float(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    return _number(name, value, rule, _finite, "a number")


def _bool(name: str, value: Any, rule: Mapping[str, Any]) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise _wrong(name, value, "it has to be true or false", f"try {name}=True")


def _text(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    # `staging_location=tmp_path` is what tests and notebooks write.
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if not isinstance(value, str):
        raise _wrong(
            name, value, f"it has to be a string, not {type(value).__name__}", f"write {name}='…'"
        )
    # Here, and not in some worker's request hours later.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        where = (
            f"character {error.start + 1:,} is half of one (a lone surrogate), which can't be sent"
        )
        raise _wrong(
            name, value, where, "take it out, or write text.encode('utf-8', 'replace').decode()"
        ) from None
    return value


def _field(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    text = _text(name, value, rule)
    if not text.strip():
        raise _wrong(name, value, "it has to be the name of a field", f"leave {name} out")
    return text


def _choice(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    if value in rule["choices"]:
        return str(value)
    near = difflib.get_close_matches(str(value), rule["choices"], n=1)
    raise _wrong(
        name,
        value,
        f"it has to be one of {', '.join(rule['choices'])}",
        f"try {near[0] if near else rule['choices'][0]!r}",
    )


# By what a reference looks like, not by what a key looks like: keys have no common form.
_REFERENCE = re.compile(r"env:[A-Za-z_]\w*|file:.+|gcp-secret:projects/.+|none")


def _secret(name: str, value: Any, rule: Mapping[str, Any]) -> str:
    """Only references may ride in the graph. The value itself is never put into the message: it may
    be a key.
    """
    if isinstance(value, str):
        wrapped = re.fullmatch(r"\$\{([A-Za-z_]\w*)\}", value)
        reference = f"env:{wrapped[1]}" if wrapped else value
        if _REFERENCE.fullmatch(reference):
            return reference
    raise UsageError(
        f"{name} holds a literal value: keys are given by reference, so that none is stored "
        "in the pipeline; "
        "put the key into an environment variable and write 'env:NAME' or '${NAME}' "
        "(or 'file:PATH', 'gcp-secret:projects/…'; "
        "'none' for servers without keys)"
    )


def _json(name: str, value: Any, rule: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _wrong(
                name, value, f"it has to be a JSON object ({error})", f"write {name}='{{\"…\": …}}'"
            ) from None
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "it has to be a mapping", f"write {name}={{…}}")
    # A copy: what the caller changes later must not change a pipeline that is built.
    return dict(value)


def _format(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    """A built-in format, or a parser by dotted name or as a function."""
    if value in RESPONSE_FORMATS:
        return value
    if callable(value):
        # Its name stands for it where known answers are looked up.
        if not hasattr(value, "__qualname__"):
            raise _wrong(
                name,
                value,
                "a parser has to have a name, which a partial or a callable object has not",
                "wrap it in a function",
            )
        return value
    if isinstance(value, str) and "." in value:
        load_dotted(name, value)
        return value
    near = difflib.get_close_matches(str(value), RESPONSE_FORMATS, n=1)
    raise _wrong(
        name,
        value,
        f"it has to be one of {', '.join(RESPONSE_FORMATS)} or the dotted name of a parser",
        f"try {near[0] if near else 'json'!r}",
    )


def load_dotted(name: str, dotted: str) -> Callable[..., Any]:
    """The object that `package.module.name` names.

    Raises:
      UsageError: where there is no such module or object, or it can't be called.
    """
    module, _, attribute = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module runs when it is imported, and may raise anything
        raise _wrong(
            name,
            dotted,
            f"it can't be imported ({type(error).__name__}: {error})",
            "name a function as package.module.function",
        ) from None
    if not callable(found):
        raise _wrong(
            name, dotted, "it is not a function", "name a function as package.module.function"
        )
    return found  # type: ignore[no-any-return]


_OUTPUT_WORDS = {"string": str, "integer": int, "number": float, "boolean": bool}


def _output(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    # Types and schemas are judged where they are understood: `prompting.output_types`.
    if not isinstance(value, str):
        return value
    if value in _OUTPUT_WORDS:
        return _OUTPUT_WORDS[value]
    if value.startswith("enum:"):
        return Literal[_members(name, value)]
    if value.lstrip().startswith("{"):
        return _json(name, value, rule)
    raise _wrong(
        name,
        value,
        "it has to be string, integer, number, boolean, enum:a|b|c or a JSON schema",
        "try 'enum:positive|negative|neutral'",
    )


def _members(name: str, value: str) -> tuple[str, ...]:
    fix = "write enum:positive|negative|neutral"
    members = tuple(member.strip() for member in value[len("enum:") :].split("|"))
    if not any(members):
        raise _wrong(name, value, "an enum needs members", fix)
    if not all(members):
        raise _wrong(name, value, f"member {members.index('') + 1} of the enum is empty", fix)
    repeated = next((member for member in members if members.count(member) > 1), None)
    if repeated is not None:
        raise _wrong(name, value, f"the enum has the member {repeated!r} twice", fix)
    return members


def _names(name: str, value: Any, rule: Mapping[str, Any]) -> tuple[str, ...]:
    """A list of texts, or a text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise _wrong(name, value, "it has to be a list of names", f"write {name}=['…', '…']")
    names = tuple(part.strip() for part in parts)
    # Not passed over: `media=[""]`, of a variable that is not set, would ask without any image.
    if "" in names:
        which = f"name {names.index('') + 1} of {len(names)} is blank"
        raise _wrong(name, value, which, f"write a name there, or leave {name} out")
    return names


_KINDS: dict[str, Callable[[str, Any, Mapping[str, Any]], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "text": _text,
    "field": _field,
    "choice": _choice,
    "secret": _secret,
    "json": _json,
    "format": _format,
    "output": _output,
    "names": _names,
}


def _completed(known: Settings) -> Settings:
    """Rules between options, and what the environment says when the pipeline is built.

    Settings whose model is a template are completed model by model: `settings_by_model`.
    """
    # First, for they hold whatever the model is.
    _check_rules(known)
    if known.task == "embed":
        known = dataclasses.replace(known, output=VECTOR)
    if is_template(known.model):
        return known
    if known.models:
        raise UsageError(
            f"models is {list(known.models)}, but model is {known.model!r}, which is not a "
            "template: leave models out"
        )
    provider, _, model = known.model.partition(":")
    if provider not in PROVIDERS or not model:
        raise UsageError(
            f"model is {known.model!r}: it has to be PROVIDER:MODEL with a provider out of "
            f"{', '.join(PROVIDERS)}; {_advice_on(known.model)}"
        )
    return dataclasses.replace(
        known,
        base_url=_base_url(known, provider),
        api_key=known.api_key or _usual_key(provider),
        provider_options=_provider_options(known, provider),
    )


def _advice_on(name: str) -> str:
    """What to write in place of a name that is not PROVIDER:MODEL, the likeliest slip first."""
    provider, _, model = name.partition(":")
    near = difflib.get_close_matches(provider, PROVIDERS, n=1)
    if near and model:
        return f"did you mean '{near[0]}:{model}'?"
    if provider in PROVIDERS:
        return f"name a model, too: write it as '{provider}:MODEL'"
    # As LiteLLM and OpenRouter write it.
    by_slash, _, rest = name.partition("/")
    if by_slash in PROVIDERS and rest:
        return f"write '{by_slash}:{rest}'"
    if name and not model:
        return f"write '{EXAMPLE_MODEL.partition(':')[0]}:{name}'"
    return ANYTHING_ELSE


def is_template(model: str) -> bool:
    """Whether a model's name is a template of the record."""
    return "{{" in model or "{%" in model


def _check_rules(known: Settings) -> None:
    """Rules between options."""
    if known.task == "session" and known.mode == "batch_api":
        raise UsageError(
            "mode is 'batch_api': a turn of a session needs the reply before it, and a batch job "
            "answers all its requests at one time; leave mode out"
        )
    if known.mode == "batch_api" and not known.staging_location:
        raise UsageError(
            "mode is 'batch_api' but staging_location is missing: name a local folder, "
            "gs://bucket/path, s3://bucket/path or az://container/path that keeps files and ledger"
        )
    if known.independent and not known.record_id:
        raise UsageError(
            "independent is True but record_id is missing: name the field that tells equal "
            "records apart"
        )
    if known.combine_instruction is not None and not known.combine_instruction.strip():
        raise UsageError(
            f"combine_instruction is {known.combine_instruction!r}: it has to say how partial "
            "answers are put together; leave it out"
        )
    named = known.media or ()
    if len(set(named)) < len(named):
        raise UsageError(f"media is {list(named)!r}: it has to name each field once")
    own = options_of(known.task)
    for name, value in given_options(known):
        if name not in own and value != VECTOR:
            only = " and ".join(TASKS[task] for task in OPTIONS[name].metadata["only"])
            raise UsageError(
                f"{name} is {_shortened(value)}: it is an option of {only} alone, and this is "
                f"{TASKS[known.task]}; leave it out"
            )
    if known.task == "reduce" and not (known.instruction or "").strip():
        raise UsageError(
            "instruction is missing: LLMReduce (task='reduce') has to be told what the answer over "
            "all records of a key is, such as instruction='Summarise what customers complain "
            "about.'"
        )


def _provider_options(known: Settings, provider: str) -> Mapping[str, Any] | None:
    """The options of one provider alone, completed by the environment."""
    # What the user gave wins over the environment, option by option; an empty variable is none.
    found = {
        name: os.environ[variable]
        for name, variable in PROVIDERS[provider].option_variables.items()
        if os.environ.get(variable)
    }
    return {**found, **(known.provider_options or {})} or known.provider_options


def _usual_key(provider: str) -> str | None:
    """The reference to the provider's usual key; None where its cloud has credentials itself."""
    variable = PROVIDERS[provider].key_variable
    return None if variable is None else f"env:{variable}"


def _base_url(known: Settings, provider: str) -> str | None:
    """The address, checked; None for a provider whose cloud's own library knows it."""
    spec = PROVIDERS[provider]
    variable, usual = spec.base_url_variable, spec.base_url
    # Read now and kept: a worker's environment is not the one where the pipeline was built.
    url = known.base_url or (variable and os.environ.get(variable)) or usual
    # Bedrock and Vertex AI make their address of the region, each in a way of its own.
    if not url and (variable is None or spec.key_variable is None):
        return None
    if not url:
        raise UsageError(
            f"base_url is missing for {provider}: give base_url='https://…' or set {variable}"
        )
    if re.match(r"[^/]*//[^/]*@", url):  # looked at first, for it must not be shown
        raise UsageError(
            "base_url holds a user name or password: those would be stored in the pipeline; "
            "give the key by api_key='env:NAME'"
        )
    # No query and no fragment: paths are put behind it.
    try:
        is_address = (
            re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", url) is not None and urlsplit(url).port != 0
        )
    except ValueError:  # no such port, or half of an IPv6 address
        is_address = False
    if not is_address:
        shown = re.split(r"[?#]", url)[0]
        raise UsageError(
            f"base_url is {shown!r}: it has to be an address with http:// or https:// and "
            "without spaces, ? or #; "
            "write base_url='https://host/v1'"
        )
    return url.rstrip("/")
