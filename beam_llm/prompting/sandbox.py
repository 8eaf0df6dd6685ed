"""A Jinja2 environment whose templates come to an end and don't fill the memory: output,
repetitions and loops are bounded.

Jinja's own sandbox keeps a template away from the interpreter, but lets it write `{{ "x" * 10**9
}}`, pad a text to a gigabyte, or run ten billion rounds of two nested loops.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes, sandbox
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Macro

MOST_CHARACTERS = 10_000_000
"""The greatest length of a template's output, or of any intermediate text: more than any model's
window."""
MOST_ROUNDS = 1_000_000
"""The most rounds of all loops of one rendering together. A call counts as ten: a macro may call
itself, twice.
"""
MOST_REPEATS = 100_000
"""The largest number that may be given to a function: widths, counts, ranges."""
MOST_BITS = 4_096
"""The largest result of a multiplication or a power, in bits."""

_SIZED_FILTERS = (
    "center",
    "indent",
    "wordwrap",
    "batch",
    "slice",
    "round",
    "tojson",
    "truncate",
    "format",
    "replace",
    "join",
    "urlize",
)
"""Jinja's filters that take numbers or make long texts from short ones."""

_ITERATING_FILTERS = (
    *("map", "select", "reject", "selectattr", "rejectattr", "unique", "list", "first", "last"),
    *("sum", "max", "min", "sort", "groupby", "join", "batch", "slice"),
)
"""Jinja's filters that iterate over their value, which may be a range or another filter's
generator.
"""

# Per rendering: the counts of parallel threads must not add up.
_rounds: ContextVar[list[int]] = ContextVar("rounds")


class BoundedCodeGenerator(CodeGenerator):
    """Sends `~` through the environment, as the sandbox does with `*`."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """A sandboxed, bounded environment. A template that exceeds a bound raises SecurityError, a
    TemplateError like any other.
    """

    intercepted_binops = frozenset(["*", "**", "+", "%"])
    code_generator_class = BoundedCodeGenerator

    def __init__(self, **options: Any):
        super().__init__(**options)
        for name in _SIZED_FILTERS:
            self.filters[name] = _with_checked_size(self.filters[name])
        for name in _ITERATING_FILTERS:
            self.filters[name] = _with_counted_items(self.filters[name])
        self.filters["_rounds"] = _count_items

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_rounds", [], [], None, None, lineno=loop.lineno)
        return tree

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        texts = list(parts)  # output of a block or a macro
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, bytes, list, tuple)) and isinstance(times, int):
                    _check_size(_extent(text) * times)
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(_extent(left) + _extent(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _check_format(str(left), right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    # The first three parameters have Jinja's own names, so that a template's keywords can't clash
    # with them.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _count_rounds(_rounds.get([0]), 10)
        _check_call(__obj, args, kwargs)
        return _check_result(super().call(__context, __obj, *args, **kwargs))

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        _check_size(_extent(parts))
        return self.concat(map(str, parts))


def render_bounded(render: Callable[..., Iterable[str]], *args: Any, **variables: Any) -> str:
    """The text of a template's `generate`, within the bounds.

    Raises:
      SecurityError: where the template exceeds a bound.
    """
    token = _rounds.set([0])
    try:
        parts, size = [], 0
        for part in render(*args, **variables):
            size += len(part)
            _check_size(size)
            parts.append(part)
        return "".join(parts)
    finally:
        _rounds.reset(token)


def _count_items(items: Any) -> Iterator[Any]:
    """Yields the items, counting each as a round of the rendering's loops."""
    # Outside of `render_bounded`, for an expression alone, each loop counts its own rounds.
    rounds = _rounds.get([0])
    for item in items:
        _count_rounds(rounds, 1)
        yield item


def _with_counted_items(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its rounds counted like a loop's, and with the total size of its results
    bounded."""
    place = value_place(filter_)

    @functools.wraps(filter_)
    def iterating(*args: Any, **kwargs: Any) -> Any:
        items = args[place]
        if isinstance(items, (list, tuple, Mapping)):
            # These are the record's own and are iterated over in C: a hundred items take no longer
            # than one round of a loop.
            _count_rounds(_rounds.get([0]), len(items) // 100)
        elif isinstance(items, (range, Iterator)):
            items = _count_items(items)
        found = filter_(*args[:place], items, *args[place + 1 :], **kwargs)
        return _bounded_items(found) if isinstance(found, Iterator) else found

    return iterating


def _bounded_items(items: Iterator[Any]) -> Iterator[Any]:
    size = 0
    for item in items:
        size += _extent(item)
        _check_size(size)
        yield item


def _count_rounds(rounds: list[int], more: int) -> None:
    rounds[0] += more
    if rounds[0] > MOST_ROUNDS:
        raise SecurityError(f"its loops and calls go round more than {MOST_ROUNDS:,} times")


def value_place(filter_: Callable[..., Any]) -> int:
    """The position of the value among a filter's arguments: Jinja puts what it passes itself, such
    as its environment, before it.
    """
    return 1 if hasattr(filter_, "jinja_pass_arg") else 0


def _with_checked_size(filter_: Callable[..., Any]) -> Callable[..., Any]:
    place, name = value_place(filter_), filter_.__name__.removeprefix("do_")

    @functools.wraps(filter_)
    def measured(*args: Any, **kwargs: Any) -> Any:
        before, subject, values = args[:place], args[place], args[place + 1 :]
        if isinstance(subject, Iterator):
            subject = list(subject)
        _check_use(name, subject, (*values, *kwargs.values()))
        return _check_result(filter_(*before, subject, *values, **kwargs))

    return measured


def _check_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    function = getattr(function, "__wrapped__", function)  # as the sandbox does with str.format
    owner = getattr(function, "__self__", None)
    values = (*args, *kwargs.values())
    if isinstance(owner, (str, bytes)):
        _check_use(function.__name__, owner, values)
    # These pass a number on or look it up, so it is not a length.
    elif not isinstance(function, (type, Macro)) and not isinstance(
        owner, (Mapping, list, tuple, LoopContext)
    ):
        _check_arguments(values)


def _check_use(name: str, subject: Any, values: tuple[Any, ...]) -> None:
    """Checks a text's method or a filter, whose result may be far longer than its arguments."""
    if name in ("format", "format_map"):
        _check_format(str(subject), values)
        return
    _check_arguments(values)
    # A width or an indentation is the number itself, or the text that is given in its place.
    longest = max([_extent(value, numbers=True) for value in values], default=0)
    if name == "replace" and _are_alike(subject, *values[:2]):
        _check_size(subject.count(values[0]) * len(values[1]))
    elif name == "join" and values and isinstance(values[0], Sized):
        # The method belongs to the separator, the filter to the list.
        _check_size(len(subject) * len(values[0]) + _extent(subject) + _extent(values[0]))
    elif name == "indent":
        _check_size((str(subject).count("\n") + 1) * longest)
    elif name == "translate" and values and isinstance(values[0], (Mapping, list, tuple)):
        table = values[0].values() if isinstance(values[0], Mapping) else values[0]
        _check_size(
            len(subject) * max([len(text) for text in table if isinstance(text, str)] or [1])
        )
    elif name in ("expandtabs", "tojson"):
        _check_size(_extent(subject) * max(longest, 1))
    elif name == "wordwrap":
        _check_size(
            len(str(subject))
            * max([len(value) for value in values if isinstance(value, str)] or [1])
        )


def _are_alike(*texts: Any) -> bool:
    """Whether these are the three texts of one type that `replace` needs."""
    return len(texts) == 3 and any(
        all(isinstance(text, kind) for text in texts) for kind in (str, bytes)
    )


def _check_arguments(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_REPEATS:
            raise SecurityError(
                f"it gives a function the number {value:,}; {MOST_REPEATS:,} is the most"
            )


def _extent(value: Any, *, numbers: bool = False) -> int:
    """Characters and members of a value, including everything nested in it, counted each time it
    occurs: `[text] * 1000` is a thousand texts once it is written out.

    Args:
      numbers: an integer counts as its value.
    """
    sizes: dict[int, int] = {}

    def extent(value: Any) -> int:
        if isinstance(value, (str, bytes)):
            return len(value)
        if isinstance(value, int):
            return abs(value) if numbers else 1
        if not isinstance(value, (list, tuple, dict)):
            return 1
        if id(value) not in sizes:
            members = (*value, *value.values()) if isinstance(value, dict) else value
            sizes[id(value)] = len(value) + sum(map(extent, members))
        return sizes[id(value)]

    return extent(value)


_WIDTH_BY_VALUE = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")


def _check_format(template: str, values: Iterable[Any]) -> None:
    """Checks widths such as `%1000000d` or `{:>1000000}`, widths taken from values (`%*d`,
    `{:{}}`), and values that are shown repeatedly.
    """
    digits = 0
    for character in template:
        digits = digits + 1 if character.isdecimal() else 0
        if digits > len(str(MOST_REPEATS)):
            raise SecurityError("it pads a text to more than a million characters")
    numbers = _WIDTH_BY_VALUE.search(template) is not None
    longest = max([_extent(value, numbers=numbers) for value in values], default=0)
    _check_size(max(template.count("{"), template.count("%")) * longest)


def _check_result(value: Any) -> Any:
    if isinstance(value, (str, bytes, list, tuple)):
        _check_size(len(value))
    return value


def _check_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MOST_CHARACTERS:,} characters")


def _check_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise SecurityError("it makes a number with more than a thousand digits")
