"""Jinja2 templates: fields in, the text of a prompt out.

one record    the rendered template, and nothing else
n records     instruction, how to reply, then one envelope per record:
              Input 1: "…"      or      <input index="1">…</input>
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes

from beam_llm.errors import USER_CODE_ERRORS, PromptError, UsageError, lacks_field
from beam_llm.prompting.sandbox import BoundedEnvironment, render_bounded, value_place
from beam_llm.prompting.text import NotAValue, clean, is_missing, plain, show

ELEMENT = "element"


# No name in a template can begin with this.
_MARK = "\0"
_SELF = "field_called_self"


class _FieldsFirst(BoundedEnvironment):
    """Looks a name up among an object's fields before its methods: `order.items` is the field,
    where there is one, and `order.items()` is the dict's method. See `_compile`."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute[:1] == _MARK:
            attribute = attribute[1:]
            if isinstance(obj, Mapping) and attribute in obj:
                return _or_none(obj[attribute])
        return _or_none(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return _or_none(super().getitem(obj, argument))


def _or_none(value: Any) -> Any:
    """The value, or None for a missing one such as NaN. NaN is true in Python, so `{{ text or 'no
    text' }}` would otherwise show nothing.
    """
    return None if type(value) is not str and is_missing(value) else value


def _build_environment() -> _FieldsFirst:
    """A sandboxed, bounded and strict environment without random functions, so that a prompt
    depends only on its record."""
    environment = _FieldsFirst(undefined=jinja2.StrictUndefined, finalize=show)
    environment.filters.pop("random")
    environment.globals.pop("lipsum")
    for name in _TEXT_FILTERS:
        environment.filters[name] = _none_for_none(environment.filters[name])
    return environment


_TEXT_FILTERS = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace"),
    *("safe", "string", "striptags", "title", "trim", "truncate", "upper", "urlencode", "urlize"),
    *("wordcount", "wordwrap"),
)
"""Jinja's filters from text to text."""


def _none_for_none(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, except that it returns None for None, as SQL's functions do: Jinja's `trim` would
    give the text "None"."""
    place = value_place(filter_)

    @functools.wraps(filter_)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        return None if args[place] is None else filter_(*args, **kwargs)

    return filtered


_ENVIRONMENT = _build_environment()
_FORBIDDEN = (nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)


def parse(source: str, option: str) -> nodes.Template:
    """The template's tree.

    Raises:
      UsageError: where it is not a template, naming option and line.
    """
    try:
        tree = _ENVIRONMENT.parse(source)
        # Compiled as well, since only that finds an unknown filter, for example.
        _ENVIRONMENT.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise _template_error(
            source, option, error.lineno, error.message or "not a template"
        ) from None
    except (jinja2.TemplateError, RecursionError) as error:
        raise _template_error(source, option, 1, str(error) or "nested too deeply") from None
    for node in tree.find_all(_FORBIDDEN):
        raise _template_error(source, option, node.lineno, "a prompt can't load other templates")
    for attribute in tree.find_all(nodes.Getattr):
        if attribute.attr.startswith("_"):
            raise _template_error(
                source, option, attribute.lineno, f"{attribute.attr!r} is private and can't be read"
            )
    return tree


def _compile(tree: nodes.Template) -> jinja2.Template:
    """The tree as a template in which names belong to the data: `self` is a field, not Jinja's own
    `self`, and an attribute that isn't called is a field, not a method."""
    # A copy, because names are changed in it; the caller's tree keeps the original ones.
    tree = copy.deepcopy(tree)
    called = {id(call.node) for call in tree.find_all(nodes.Call)}
    for attribute in tree.find_all(nodes.Getattr):
        if id(attribute) not in called:
            attribute.attr = _MARK + attribute.attr
    for name in tree.find_all(nodes.Name):
        if name.name == "self":
            name.name = _SELF
    tree.set_environment(_ENVIRONMENT)
    code = _ENVIRONMENT.compile(tree)
    return jinja2.Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))


def _variables(fields: Mapping[str, Any], element: Any) -> dict[str, Any]:
    # Jinja's names are strings; fields with other names can only be reached through `element`.
    named = {name: _or_none(value) for name, value in fields.items() if isinstance(name, str)}
    variables = {**named, ELEMENT: _or_none(element)}
    if "self" in named:
        variables[_SELF] = named["self"]
    return variables


_EXAMPLES = {
    "prompt": "Classify this review: {{ text }}",
    "batch_prompt_template": (
        "{% for record in records %}{{ record.index }}: {{ record.text }} {% endfor %}"
    ),
}


def _template_error(source: str, option: str, line: int, why: str) -> UsageError:
    example = _EXAMPLES.get(option, _EXAMPLES["prompt"])
    lines = source.splitlines() or [""]
    text = lines[min(line, len(lines)) - 1].strip()
    shown = text if len(text) <= 80 else text[:77] + "…"
    return UsageError(
        f"{option}, line {line}: {why.rstrip('.')}: {shown!r}; "
        f"it has to be a Jinja2 template, such as {example!r}"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """One varying part of a simple template: its name, and how its text is made from an element."""

    name: str
    field: str | None
    node: nodes.Node
    expression: jinja2.Template


class PromptTemplate:
    """The user's compiled prompt: the parts that vary from record to record, and the text around
    them.

    A *simple* template has only text and `{{ … }}`; its inputs are the outputs' texts, and its
    instruction is the text around them. For any other (`{% if … %}`) the complete rendering is the
    only input, and the instruction is empty.

    Attributes:
      names: the name of each input in a prompt of several records.
      instruction: the text that all records share, each varying part as `<name>`.
      shared: the text that all records share, without the varying parts; for counting tokens.
      lead: how many of its characters come before the first varying part.
      required: fields that every element has to have: those that stand alone in `{{ … }}`. Other
        fields may or may not be read, depending on the template's logic and the element.
      only_field: the field whose text is the only input, where nothing else has to be rendered;
        None otherwise. Like the other names of fields here it may be `element`, the complete
        element.

    Raises:
      UsageError: where `source` is not a template.
    """

    def __init__(self, source: str, option: str = "prompt"):
        tree = parse(source, option)
        self._template = _compile(tree)
        self._parts: list[_Part] = []
        self._pieces: list[str | int] = []
        self._is_simple = all(isinstance(node, nodes.Output) for node in tree.body)
        if self._is_simple:
            for node in (child for output in tree.body for child in output.iter_child_nodes()):
                self._add_node(node, source, option)
        self.names = tuple(part.name for part in self._parts) if self._is_simple else ("input",)
        self.shared = "".join(piece for piece in self._pieces if isinstance(piece, str))
        before = itertools.takewhile(lambda piece: isinstance(piece, str), self._pieces)
        self.lead = sum(len(str(piece)) for piece in before)
        self.instruction = self._instruction()
        plain_names = [part.field for part in self._parts if part.field is not None]
        self.required = tuple(name for name in plain_names if name != ELEMENT)
        self._fields = (
            plain_names if self._is_simple and len(plain_names) == len(self._parts) else None
        )
        self.only_field = (
            plain_names[0] if self._fields is not None and len(plain_names) == 1 else None
        )
        shown = dict.fromkeys(_shown_field(part.node) for part in self._parts)
        self._shown = [name for name in shown if name is not None]
        if not self._is_simple or None in shown:
            self._shown = []

    def _add_node(self, node: nodes.Node, source: str, option: str) -> None:
        if isinstance(node, nodes.TemplateData):
            self._pieces.append(node.data)
        elif not isinstance(node, nodes.Name) and node.find(nodes.Name) is None:
            try:
                self._pieces.append(clean(_expression(node).render()))
            except Exception as error:  # `{{ 1/0 }}`: the same for every record
                raise _template_error(
                    source, option, node.lineno, f"it can't be rendered: {error}"
                ) from None
        else:
            self._pieces.append(self._part_number(node))

    def _part_number(self, node: nodes.Node) -> int:
        """The number of the node's part: an expression that occurs twice in the template is one
        input.
        """
        for number, known in enumerate(self._parts):
            if known.node == node:
                return number
        field = node.name if isinstance(node, nodes.Name) else None
        self._parts.append(
            _Part(self._free_name(_display_name(node)), field, node, _expression(node))
        )
        return len(self._parts) - 1

    def _free_name(self, name: str) -> str:
        taken = {part.name for part in self._parts}
        return next(
            free
            for free in (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
            if free not in taken
        )

    def _instruction(self) -> str:
        pieces = self._pieces
        if pieces and isinstance(pieces[-1], str) and not pieces[-1].strip():
            pieces = pieces[:-1]
        # A single input at the end needs no placeholder: the inputs follow right there.
        if pieces and len(self._parts) == 1 and pieces.count(0) == 1 and pieces[-1] == 0:
            pieces = pieces[:-1]
        return "".join(
            piece if isinstance(piece, str) else f"<{self._parts[piece].name}>" for piece in pieces
        ).strip()

    def inputs(self, fields: Mapping[str, Any], element: Any) -> tuple[str, ...]:
        """The texts in which this element's prompt differs from others.

        Raises:
          PromptError: for a missing field, or where the template fails on this element.
        """
        try:
            if self._fields is not None:
                return tuple(
                    [
                        clean(str(show(element if name == ELEMENT else fields[name])))
                        for name in self._fields
                    ]
                )
            variables = _variables(fields, element)
            if self._is_simple:
                return tuple([clean(part.expression.render(variables)) for part in self._parts])
            return (clean(render_bounded(self._template.generate, variables)),)
        except USER_CODE_ERRORS as error:
            # A template runs the element's own methods, which may raise anything.
            _raise_prompt_error(error, fields)

    def check_inputs(self, inputs: Sequence[str], fields: Mapping[str, Any], element: Any) -> None:
        """Checks that there is something to ask about. A model that is asked about nothing makes
        something up; in SQL, too, the answer about NULL is NULL. A missing field among others is
        shown as an empty text, and whatever a template computes is accepted.

        Raises:
          PromptError: every field that the prompt shows is None.
        """
        if any(inputs) or not self._shown:
            return
        values = [element if name == ELEMENT else fields.get(name) for name in self._shown]
        if all(map(is_missing, values)):
            [first, *others] = self._shown
            named = "the element" if first == ELEMENT else f"the field {first!r}"
            more = f", like {', '.join(map(repr, others))}" if others else ""
            raise PromptError(
                f"{named} is {values[0]}{more}: there is nothing to ask about; leave such elements "
                f"out, or give a default in the prompt: {{{{ {first} or 'unknown' }}}}"
            )

    def fill(self, inputs: Sequence[str]) -> str:
        """The prompt of one record, as a person would send it."""
        if not self._is_simple:
            return inputs[0]
        return "".join(
            [piece if isinstance(piece, str) else inputs[piece] for piece in self._pieces]
        )


@functools.lru_cache(maxsize=256)
def prompt_template(source: str, option: str = "prompt") -> PromptTemplate:
    """The same template for everybody with the same source: to compile one takes as long as all
    else that a task needs, and each step of a pipeline has a task.

    Raises:
      UsageError: where `source` is not a template.
    """
    return PromptTemplate(source, option)


def _expression(node: nodes.Node) -> jinja2.Template:
    """`{{ expression }}` alone, compiled."""
    return _compile(nodes.Template([nodes.Output([node], lineno=1)], lineno=1))


def _shown_field(node: nodes.Node | None) -> str | None:
    """The field that an expression shows, as it is or filtered; None where the expression has its
    own default for a missing field.
    """
    if isinstance(node, nodes.Filter) and node.name not in ("d", "default"):
        return _shown_field(node.node)
    return node.name if isinstance(node, nodes.Name) else None


def _display_name(node: nodes.Node) -> str:
    """A readable name for the expression: `review.text|trim` is `review.text`."""
    if isinstance(node, nodes.Name):
        return "input" if node.name == ELEMENT else node.name
    if isinstance(node, nodes.Getattr):
        return _dotted(node.node, node.attr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return _dotted(node.node, str(node.arg.value))
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _display_name(node.node)
    return "input"


def _dotted(owner: nodes.Node, name: str) -> str:
    return (
        name
        if isinstance(owner, nodes.Name) and owner.name == ELEMENT
        else f"{_display_name(owner)}.{name}"
    )


def _raise_prompt_error(error: BaseException, fields: Mapping[str, Any]) -> NoReturn:
    """Turns an error in a template into the element's PromptError, without the element's texts."""
    if isinstance(error, KeyError) and error.args and error.args[0] not in fields:
        raise PromptError(_missing_field_message(str(error.args[0]), fields)) from None
    undefined = (
        re.fullmatch(r"'(\w+)' is undefined", str(error))
        if isinstance(error, jinja2.UndefinedError)
        else None
    )
    if undefined:
        raise PromptError(
            _missing_field_message("self" if undefined[1] == _SELF else undefined[1], fields)
        ) from None
    if isinstance(error, (jinja2.UndefinedError, jinja2.exceptions.SecurityError, NotAValue)):
        raise PromptError(f"the prompt does not fit this element: {error}") from None
    raise PromptError(f"the prompt failed on this element with {type(error).__name__}") from error


def _missing_field_message(name: str, fields: Mapping[str, Any]) -> str:
    if not fields:
        return (
            f"the prompt names the field {name!r}, but the element has no fields; "
            "use {{ element }} for the whole of it"
        )
    return lacks_field("the prompt", name, fields)


def record_id_of(name: str | None, fields: Mapping[str, Any]) -> str | None:
    """The text of the field that identifies an element; None where none is named.

    Raises:
      PromptError: where the element doesn't have it.
    """
    if name is None:
        return None
    if name not in fields:
        raise PromptError(lacks_field("record_id", name, fields))
    return clean(str(show(fields[name])))


class RecordView:
    """A record as a batch template sees it: `record.index`, `record.text`, and the element's
    fields."""

    __slots__ = ("_values",)

    def __init__(self, index: int, text: str, fields: Mapping[str, Any] | None):
        # A field called `text` is the user's and takes precedence; `index` is always the record's
        # number.
        self._values = {"text": text, **(fields or {}), "index": index}

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"a record without the field {name!r}") from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict."""
        return dict(self._values)


class BatchTemplate:
    """The user's own way of putting several records into a prompt: Jinja2 over `records`.

    Attributes:
      names_reply: the template itself places the words on the reply's shape, with `{{ reply_format
        }}`.

    Raises:
      UsageError: where `source` is not a template.
    """

    def __init__(self, source: str):
        option = "batch_prompt_template"
        tree = parse(source, option)
        self._template = _compile(tree)
        loaded = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
        if "records" not in loaded:
            raise _template_error(
                source,
                option,
                1,
                "it never uses `records`, so that no record would be in the prompt",
            )
        self.names_reply = "reply_format" in loaded
        self._needed = {node.attr for node in tree.find_all(nodes.Getattr)}
        # Any string may be a field's name: `record["name"]`, `map(attribute="name")`.
        self._needed |= {
            node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)
        }
        # The field that `record[name]` reads is known only at run time.
        self._needs_all = any(
            not isinstance(node.arg, (nodes.Const, nodes.Slice))
            for node in tree.find_all(nodes.Getitem)
        )

    def needed_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that this template may read, as plain JSON values; others don't affect the
        prompt.

        Raises:
          PromptError: for a value with no JSON form.
        """
        try:
            return {
                clean(name): plain(value)
                for name, value in fields.items()
                if isinstance(name, str) and (self._needs_all or name in self._needed)
            }
        except (TypeError, ValueError) as error:
            raise PromptError(
                f"a field of this element has no JSON form: {type(error).__name__}"
            ) from None

    def render(self, views: Sequence[RecordView], reply_format: str) -> str:
        """The complete user message.

        Raises:
          PromptError: where the template fails on one of the records.
        """
        try:
            return clean(
                render_bounded(self._template.generate, records=views, reply_format=reply_format)
            )
        except USER_CODE_ERRORS as error:  # see PromptTemplate.inputs
            _raise_prompt_error(error, views[0].as_dict() if views else {})
