"""What the providers' words for the end of a reply mean. There is one table for all, since proxies
pass on the words of others.
"""

from __future__ import annotations

from typing import Any

from beam_llm.values import Finish

_ENDS: dict[Finish, str] = {
    Finish.STOP: "stop end_turn eos eos_token stop_sequence stop_token stop_str end_of_text"
    " complete completed finish finished done end",
    Finish.LENGTH: "length max_tokens model_length max_length max_output_tokens"
    " max_completion_tokens max_new_tokens token_limit truncated incomplete continuation"
    " model_context_window_exceeded context_length_exceeded length_limit",
    Finish.FILTERED: "content_filter content_filtered filtered safety sensitive prohibited_content"
    " blocklist blocked recitation spii guardrail guardrails guardrail_intervened moderation"
    " content_policy content_policy_violation image_safety language image_prohibited_content"
    " image_recitation model_armor jailbreak",
    Finish.REFUSED: "refusal refused",
    Finish.EMPTY: "tool_calls tool_call tool_use function_call",
    Finish.FAILED: "error abort aborted fail failed failure cancelled canceled cancel interrupted"
    " disconnect disconnected timeout timed_out time_limit insufficient_system_resource"
    " insufficient_system_resources network_error server_error internal_error"
    " internal_server_error provider_error upstream_error exception oom out_of_memory overloaded"
    " unexpected_tool_call malformed_function_call malformed_response malformed_tool_call"
    " repetition"
    " malformed_model_output malformed_tool_use too_many_tool_calls no_image image_other",
}
"""The words of OpenAI, Azure, Mistral (`model_length`), DeepSeek
(`insufficient_system_resource`), vLLM (`abort`), OpenRouter (`error`), z.ai (`sensitive`), and
Anthropic's, Gemini's and Bedrock's words where a proxy passes them on. Source: their API
references, read 2026-11.
"""


_FINISHES = {name: finish for finish, names in _ENDS.items() for name in names.split()}


def finish_of(name: Any) -> Finish:
    """How a reply ended, by the provider's word for it; OTHER for an unknown word."""
    if not isinstance(name, str):
        return Finish.OTHER
    found = _FINISHES.get(name)
    if found is None:  # `MAX_TOKENS`, `FinishReason.STOP`, `content-filter`
        plain = name[:80].strip().rpartition(".")[2].lower().replace("-", "_").replace(" ", "_")
        found = _FINISHES.get(plain, Finish.OTHER)
    return found


def finish_of_message(reason: Any, text: str | None, is_tool: bool) -> Finish:
    """How a message ended whose reply may be a tool's input. One without text has no answer,
    however well the server says that it ended.
    """
    finish = Finish.STOP if reason is None or reason == "" else finish_of(reason)
    if finish is Finish.EMPTY:  # `tool_use`
        finish = Finish.STOP if is_tool else Finish.OTHER
    return Finish.EMPTY if not text and finish in (Finish.STOP, Finish.OTHER) else finish
