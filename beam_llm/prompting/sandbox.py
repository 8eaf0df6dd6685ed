"""A Jinja2 environment whose templates end, and don't fill memory: what they write, repeat and
count is bounded.

Jinja's own sandbox keeps a template from the interpreter; it lets it write `{{ "x" * 10**9 }}`, pad
a text to a gigabyte, or count through ten thousand million rounds of two loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes, sandbox
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError

MOST_CHARACTERS = 10_000_000
"""Of a template's output, or of any text that it makes on the way: more than any model's window."""
MOST_ROUNDS = 1_000_000
"""Of all loops of one rendering together. A call counts for ten: a macro may call itself, twice."""
MOST_REPEATS = 100_000
"""Of a number given to a function: widths, counts, ranges."""
MOST_BITS = 4_096
"""Of the result of a power."""

_MEASURED = (
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
"""Jinja's filters that take numbers, or make long texts out of short ones."""

# Of one rendering: threads render side by side, and must not add up.
_rounds: ContextVar[list[int]] = ContextVar("rounds")


class BoundedCodeGenerator(CodeGenerator):
    """Sends `~` through the environment, as the sandbox does with `*`."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """Sandboxed and bounded. What goes beyond raises SecurityError, a TemplateError like any
    other."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])
    code_generator_class = BoundedCodeGenerator

    def __init__(self, **options: Any):
        super().__init__(**options)
        for name in _MEASURED:
            self.filters[name] = _measured(self.filters[name])
        self.filters["_rounds"] = _counted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_rounds", [], [], None, None, lineno=loop.lineno)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, bytes, list, tuple)) and isinstance(times, int):
                    _check_size(len(text) * times)
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _check_format(str(left))
            _check_arguments(right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    # Jinja's own names for the first three, so that a template's keywords can't clash with them.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _count_rounds(_rounds.get([0]), 10)
        _check_call(__obj, args, kwargs)
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)


def bounded(render: Callable[..., Iterable[str]], *args: Any, **variables: Any) -> str:
    """The text of a template's `generate`, within the bounds.

    Raises:
      SecurityError: where it goes beyond.
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


def _counted(items: Any) -> Iterator[Any]:
    """The items, each of them a round of the rendering's loops."""
    # Outside of `bounded`, for an expression alone, each loop counts its own rounds.
    rounds = _rounds.get([0])
    for item in items:
        _count_rounds(rounds, 1)
        yield item


def _count_rounds(rounds: list[int], more: int) -> None:
    rounds[0] += more
    if rounds[0] > MOST_ROUNDS:
        raise SecurityError(f"its loops and calls go round more than {MOST_ROUNDS:,} times")


def _measured(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter_)
    def measured(*args: Any, **kwargs: Any) -> Any:
        _check_call(filter_, args, kwargs)
        return _checked(filter_(*args, **kwargs))

    return measured


def _check_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _check_arguments((*args, *kwargs.values()))
    function = getattr(function, "__wrapped__", function)  # as the sandbox does with str.format
    owner = getattr(function, "__self__", None)
    if isinstance(owner, str):
        _check_text_method(function.__name__, owner, args)
    elif (
        args
        and isinstance(args[0], str)
        and getattr(function, "__name__", "") in ("do_replace", "do_format")
    ):
        _check_text_method(function.__name__[3:], args[0], args[1:])


def _check_text_method(name: str, text: str, args: tuple[Any, ...]) -> None:
    """Methods of a text whose result may be far longer than what they are given."""
    if name in ("format", "format_map"):
        _check_format(text)
    elif (
        name == "replace"
        and len(args) >= 2
        and isinstance(args[0], str)
        and isinstance(args[1], str)
    ):
        _check_size(text.count(args[0]) * len(args[1]))
    elif name == "join" and args and isinstance(args[0], Sized):
        _check_size(len(text) * len(args[0]))


def _check_arguments(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_REPEATS:
            raise SecurityError(
                f"it gives a function the number {value:,}; {MOST_REPEATS:,} is the most"
            )


def _check_format(template: str) -> None:
    """Widths such as `%1000000d` or `{:>1000000}`."""
    digits = 0
    for character in template:
        digits = digits + 1 if character.isdecimal() else 0
        if digits > len(str(MOST_REPEATS)):
            raise SecurityError("it pads a text to more than a million characters")


def _checked(value: Any) -> Any:
    if isinstance(value, (str, bytes, list, tuple)):
        _check_size(len(value))
    return value


def _check_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MOST_CHARACTERS:,} characters")


def _check_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise SecurityError("it makes a number with more than a thousand digits")
