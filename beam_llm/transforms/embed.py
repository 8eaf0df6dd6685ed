"""`records | LLMEmbed(...)`: a vector for each element, live or by the provider's batch API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from beam_llm.transforms.front_door import signature
from beam_llm.transforms.predict import LLMPredict


class LLMEmbed(LLMPredict):
    """Asks an embedding model for a vector of every element; every element comes back, with its
    vector or a reason.

        articles = pipeline | beam.Create([{"title": "Rain", "text": "It rained all week."}])
        vectors = articles | LLMEmbed(
            "openai:text-embedding-3-small", "{{ title }}: {{ text }}", dimensions=256
        )
        vectors | beam.Map(lambda prediction: (prediction.element["title"], prediction.value))

    Everything else is as `LLMPredict` has it: `mode="batch_api"` asks at half the price and never
    pays twice for one text, however often it is in the input; `output_field="vector"` gives rows,
    whose vector is a sequence of floats; `preview`, `from_options`, `with_exception_handling`.

    Args:
      model: `"openai:text-embedding-3-small"`, `"azure:DEPLOYMENT"`, `"mistral:mistral-embed"`,
        `"gemini:gemini-embedding-001"`, `"vertex:text-embedding-005"`,
        `"bedrock:amazon.titan-embed-text-v2:0"`, models of `together:`, `fireworks:`, `deepinfra:`;
        anything OpenAI-compatible is `openai:` with a `base_url`. Or a template of the record that
        gives one.
      prompt: a Jinja2 template over the element's fields that gives the text; `{{ element }}` (the
        default) is the whole of it.
      dimensions: numbers of each vector, where the model lets them be chosen.
      batch_size: most texts of one request; `"auto"` (the default): as many as the provider takes,
        live at most as many as a worker can hold dozens of replies of. `gemini:`, `vertex:` and
        `bedrock:` take one, see below.
      options: every option of `beam_llm.config.Settings` that is not about a chat model's answers,
        such as `mode="batch_api"`, `max_concurrency` or `record_id`.

    Input: as for `LLMPredict`.
    Returns: one `Prediction` per element whose `value` is a `list[float]`; its numbers are 32-bit
    floats, the same in both modes. With `output_field`, rows.

    Raises:
      UsageError: when built, for any option, template or provider that can't work.

    Replies of Google's and of Bedrock's models to several texts don't say which vector is whose, so
    `gemini:`, `vertex:` and `bedrock:` are asked for one text a request, and their jobs have a line
    for each. Live that is a call per text, as many at a time as `max_concurrency` finds that the
    API takes (2,000 texts took 9 s at 50 ms a call), and quotas count each of them: a large input
    is better off with `mode="batch_api"`. A job of Vertex AI tells whose a vector is by the text
    that it echoes, character by character. Where a reply doesn't tell its tokens, `cost_usd` is
    None.

    What vectors are for is said by `provider_options`: `{"task_type": "RETRIEVAL_DOCUMENT",
    "title": "…"}` at Google, `{"input_type": "search_document"}` of Cohere's models on Bedrock;
    from gemini-embedding-2 on by the prompt, `"task: clustering | query: {{ text }}"`. They are
    left as the model gives them, which for gemini-embedding-001 with fewer than 3,072 `dimensions`
    is not of length 1, nor for Titan with `{"normalize": False}`.

    A text without a single character, and one that is longer than the model takes, is an error of
    its own, and no call is made for it: cut texts into passages before.

    Source: OpenAI's API reference (embeddings: 2,048 texts and 300,000 tokens a request, 8,192
    tokens a text; batch: 50,000 texts a job), read 2026-11; the other providers' limits are in
    `providers/openai/servers.py`, Google's and Bedrock's in the `embed_wire.py`
    of theirs.
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"task": "embed"}
    _USUAL: ClassVar[Mapping[str, Any]] = {"batch_size": "auto"}
    __signature__ = signature(_FIXED, _USUAL)
