"""The options of `LLMPredict` as a type, so that an editor knows and a type checker checks them.
`beam_llm.config` says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from beam_llm.config import OPTIONS, Settings


class Options(TypedDict, total=False):
    """`LLMPredict(model, prompt, output=…, **options)`; a test keeps it in step with
    `config.Settings`.
    """

    models: Sequence[str] | None
    system_prompt: str | None
    media: Sequence[str] | None
    task: Literal["chat", "embed", "session", "reduce"]
    dimensions: int | None
    session: str | None
    history_turns: int
    history_tokens: int | None
    session_ttl_seconds: float
    turn_order: str | None
    group_by: Sequence[str] | None
    combine_instruction: str | None
    partial_output: Any
    on_bad_record: Literal["fail", "leave_out"]
    batch_size: int | Literal["auto"]
    batch_timeout_ms: int
    batch_max_bytes: int | None
    batch_shards: int
    batch_prompt_template: str | None
    response_format: str | Callable[[str, int], Any]
    response_path: str | None
    response_index_field: str
    response_value_field: str | None
    max_retries: int
    request_timeout_ms: int
    call_deadline_ms: int
    on_unparseable: Literal["split", "retry", "single", "fail"]
    api_key: str | None
    base_url: str | None
    api_version: str | None
    mode: Literal["online", "batch_api"]
    staging_location: str | None
    max_concurrency: int | Literal["auto"]
    requests_per_minute: float | None
    tokens_per_minute: float | None
    rate_limit_shares: int
    guard: float
    guard_floor: float
    on_abort: Literal["raise", "record"]
    on_leftover: Literal["follow_up", "online", "fail"]
    on_doubt: Literal["record", "resubmit"]
    retry_cancelled: bool
    independent: bool
    fresh: str | None
    job_max_records: int | None
    job_max_bytes: int | None
    job_max_tokens: int | None
    job_max_wait_seconds: float
    poll_seconds: float | None
    job_deadline_hours: float | None
    lease_seconds: float
    list_lag_seconds: float
    allow_pickle: bool
    max_reply_bytes: int
    max_file_bytes: int
    max_list_pages: int
    control_timeout_ms: int
    transfer_timeout_ms: int
    waiting: Literal["loop", "sdf"] | None
    tracing: bool
    log_data: bool
    max_input_tokens: int | None
    context_window: int | None
    temperature: float | None
    max_output_tokens: int | None
    seed: int | None
    service_tier: Literal["auto", "default", "flex", "priority"] | None
    extra_body: Mapping[str, Any] | None
    provider_options: Mapping[str, Any] | None
    prices: Mapping[str, Any] | None
    record_id: str | None
    output_field: str | None


def arguments_of(settings: Settings) -> dict[str, Any]:
    """The settings as a transform's arguments, but for `output_field`: what an answer is called is
    the business of whoever builds the pipeline.
    """
    return {name: getattr(settings, name) for name in OPTIONS if name != "output_field"}
