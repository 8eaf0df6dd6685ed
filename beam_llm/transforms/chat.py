"""`messages | LLMChat(...)`: sessions of turns, each answered after the turns before it."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from apache_beam import pvalue
from apache_beam.typehints import typehints

from beam_llm.config import Settings, replace_options
from beam_llm.errors import UsageError
from beam_llm.transforms.answering_sessions import AnswerSessions
from beam_llm.transforms.fields import split_type
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.front_door import signature
from beam_llm.transforms.predict import LLMPredict
from beam_llm.transforms.preview import RequestPreview, preview


class LLMChat(LLMPredict):
    """Answers messages of many sessions, each with the session's earlier messages and replies;
    every message comes back, with its reply or a reason.

        messages = pipeline | beam.Create([
            ("ada", "I am Ada, and I like tea."),
            ("bob", "I am Bob."),
            ("ada", "What do I like?"),
        ])
        replies = messages | LLMChat("openai:gpt-4.1-mini", system_prompt="Be brief.")
        replies | beam.Map(lambda reply: (reply.key, reply.element[1], reply.value))

    Elements are pairs of a session and a message, or have a field that `session` names; a session
    is whatever has a deterministic coder (a string, a number, a tuple of them), and in each window
    it is another one. A session's turns are asked one after another, each with the messages and
    replies before it: in bounded input by the elements' timestamps, or by `turn_order`; those at
    the same place as the runner brings them (local runners in the order of the input, others in
    none, so give `turn_order` there). Unbounded input is answered as it arrives. Sessions are asked
    side by side, `max_concurrency` calls at a time.

    What a turn is asked with: the `system_prompt`; then the newest `history_turns` exchanges that
    `history_tokens`, or the model's window, has room for; then its own message. Where the model
    says that this is too long, it is asked after half of them. A turn that ends as an error leaves
    nothing in the history, neither its message nor half an answer, and the turns after it go on. So
    does one whose message or reply is blank: providers refuse blank messages. A typed reply stands
    there as JSON.

    With `batch_size` above 1 turns of one session that wait at the same time share a prompt. Where
    its reply lacks one of them, that turn is asked again alone, and those behind it after it.

    A session ends `session_ttl_seconds` after its last turn, by the elements' timestamps, and with
    its window; the next turn begins a new one. A stream's late message is answered, too, but
    what was said before it may be forgotten.

    Args:
      model: `"openai:gpt-4.1-mini"`, `"anthropic:…"`, as for `LLMPredict`.
      prompt: a Jinja2 template over the message's fields; `{{ element }}` (the default) is the
        whole of it.
      output: the type of a reply, as for `LLMPredict`.
      session: field that names an element's session, where elements are no pairs.
      system_prompt: the instruction that every turn is asked with.
      history_turns, history_tokens: most exchanges, and tokens of them, before a turn.
      session_ttl_seconds: a session ends so long after its last turn.
      turn_order: field of the message that turns follow one another by (bounded input).
      batch_size: most waiting turns of a session in one prompt.
      options: every option of `beam_llm.config.Settings` that is not about records one by one.

    Returns: one `Prediction` per element, at its timestamp and in its windows; the session of a
    pair is its `key`. With `output_field`, rows.

    Raises:
      UsageError: when built, for any option that can't work, `mode="batch_api"` among them: a turn
        needs the reply before it. When applied, for elements that are no pairs, for `turn_order`
        with unbounded input, and for unbounded input in windows that merge.

    Live calls are at-least-once (a bundle that Beam repeats is asked again), output and histories
    are exactly once.
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"task": "session"}
    _takes_templates = False
    __signature__ = signature(_FIXED)

    def preview(self, elements: Iterable[Any], n: int = 3) -> list[RequestPreview]:
        """The first `n` requests, each message as the first one of its session, since later ones
        depend on replies. No call is made; see `LLMPredict.preview`.
        """
        alone = replace_options(self._settings, batch_size=1)
        return preview(alone, elements, n, RecordReader(alone).record)

    def _predict(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        _check_elements(elements, self._settings)
        return elements | "Answer sessions" >> AnswerSessions(self._settings)


def _check_elements(elements: pvalue.PCollection, settings: Settings) -> None:
    """Raises UsageError where these can't be a session's turns."""
    kind = elements.element_type
    # Unions and tuples of any length may hold pairs: elements that are none are only found at run
    # time.
    may_be_pair = isinstance(kind, typehints.UnionConstraint) or kind in _ANYTHING
    if settings.session is None and not may_be_pair and split_type(kind)[0] is None:
        raise UsageError(
            f"LLMChat takes pairs of a session and a message, and these elements are {kind}: name "
            "the field with the session by session='…', or put beam.WithKeys(…) before it"
        )
    if elements.is_bounded:
        return
    if settings.turn_order is not None:
        raise UsageError(
            f"turn_order is {settings.turn_order!r} and the input is unbounded: a stream's turns "
            "are answered as they arrive; leave turn_order out"
        )
    if elements.windowing.windowfn.is_merging():
        raise UsageError(
            f"the input is unbounded and in {type(elements.windowing.windowfn).__name__}, which "
            "merge while sessions are under way; use another window and session_ttl_seconds, which "
            "ends a session after a pause"
        )


_ANYTHING = (Any, typehints.Any, object, tuple, None)  # None: --no_pipeline_type_check
