"""A model for each record: `model="openai:{{ 'gpt-4.1' if tier == 'high' else 'gpt-4.1-mini' }}"`.

The models that a template may give are known when the pipeline is built: each has its own settings,
prompts and jobs, and errors in one of them are reported then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jinja2 import nodes

from beam_llm.config import Settings, is_template, replace_options
from beam_llm.errors import Failure, Kind, PromptError, UsageError, plural
from beam_llm.prompting.templates import parse, prompt_template
from beam_llm.provider_table import EXAMPLE_MODEL

MOST_MODELS = 100
"""The most models that one template may give: each has its own engine, planner and jobs."""


def settings_by_model(settings: Settings) -> dict[str, Settings]:
    """The settings of each model that `settings.model` may give; for a plain name, only these
    settings.

        settings_by_model(settings("openai:{{ 'gpt-4.1' if hard else 'gpt-4.1-mini' }}"))
        # {"openai:gpt-4.1": …, "openai:gpt-4.1-mini": …}

    Raises:
      UsageError: a template may give any model and `models` doesn't name them, or the settings of
        one of them are wrong.
    """
    if not is_template(settings.model):
        return {settings.model: settings}
    names = settings.models or _texts_of(parse(settings.model, "model"))
    if names is None:
        raise UsageError(
            f"model is {settings.model!r}: which models it may give depends on the records; "
            f"name them, as in models=[{EXAMPLE_MODEL!r}, …]"
        )
    if not 0 < len(names) <= MOST_MODELS:
        raise UsageError(
            f"model is {settings.model!r}: it may give {plural(len(names), 'model')}; "
            f"it has to be 1 to {MOST_MODELS}"
        )
    return {name: replace_options(settings, model=name, models=None) for name in sorted(set(names))}


class ModelChoice:
    """Which of several models a record is for.

        choice = ModelChoice("openai:{{ size }}", ["openai:large", "openai:small"])
        choice.model({"size": "small"}, element=None)    # "openai:small"

    Args:
      source: the template.
      names: the models that it may give.
    """

    def __init__(self, source: str, names: Collection[str]):
        self._template = prompt_template(source, "model")
        self._names = frozenset(names)

    def model(self, fields: Mapping[str, Any], element: Any) -> str | Failure:
        """The name of the record's model, or why it has none."""
        try:
            name = self._template.fill(self._template.inputs(fields, element)).strip()
        except PromptError as error:
            return Failure(Kind.PROMPT, f"model: {error}")
        if name in self._names:
            return name
        return Failure(
            Kind.PROMPT,
            f"model gives {name[:80]!r}, which is none of {', '.join(sorted(self._names))}; "
            "add it to models",
        )


def _texts_of(tree: nodes.Template) -> frozenset[str] | None:
    """All texts that a template can give; None where they depend on more than its branches."""
    found = _texts_of_body(tree.body)
    return None if found is None else frozenset(text.strip() for text in found)


def _texts_of_body(body: Sequence[nodes.Node]) -> set[str] | None:
    texts = {""}
    for node in body:
        more = _texts_of_node(node)
        # Successive branches multiply, so the bound is checked first.
        if more is None or len(texts) * len(more) > MOST_MODELS**2:
            return None
        texts = {start + end for start in texts for end in more}
    return texts


def _texts_of_node(node: nodes.Node) -> set[str] | None:
    if isinstance(node, nodes.Output):
        return _texts_of_body(node.nodes)
    if isinstance(node, nodes.TemplateData):
        return {node.data}
    if isinstance(node, nodes.Const):
        return {str(node.value)}
    if isinstance(node, nodes.CondExpr) and node.expr2 is not None:
        return _union(_texts_of_node(node.expr1), _texts_of_node(node.expr2))
    if isinstance(node, nodes.If):
        found = _union(_texts_of_body(node.body), _texts_of_body(node.else_))
        for other in node.elif_:
            found = _union(found, _texts_of_body(other.body))
        return found
    return None


def _union(one: set[str] | None, other: set[str] | None) -> set[str] | None:
    return None if one is None or other is None else one | other
