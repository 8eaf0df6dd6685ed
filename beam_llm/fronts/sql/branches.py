"""Branches of CASE, IF and COALESCE, and sides of AND and OR: for which rows a call there is
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlglot import exp

from beam_llm.fronts.sql.functions import AGGREGATE_CALLS
from beam_llm.fronts.sql.syntax import Expression

_FIRST_NOT_NULL = ("COALESCE", "IFNULL")


def conditions_of(expression: Expression) -> dict[str, Any]:
    """For each call in a branch, by its placeholder, the condition under which the branch is taken:
    a tree over what comes before the call, and over no later call.
    """
    found = {}
    for node, name in _calls_in(expression.tree, expression):
        call = expression.calls.get(name)
        # A group has its answer over all of its rows before anything is computed for it.
        if call is not None and call.function not in AGGREGATE_CALLS:
            condition = _condition(node, expression)
            if condition is not None:
                found[name] = condition
    return found


def part_of(expression: Expression, tree: Any) -> Expression:
    """A part of an expression, with only the calls that it contains."""
    names = {name for _, name in _calls_in(tree, expression)}
    calls = {name: call for name, call in expression.calls.items() if name in names}
    return replace(expression, tree=tree.copy(), calls=calls)


def _calls_in(tree: Any, expression: Expression) -> list[tuple[Any, str]]:
    """The calls in a tree: each column that begins with a placeholder, which a field of the answer
    may follow, and the placeholder.
    """
    nodes = [(node, node.parts[0].name) for node in tree.find_all(exp.Column)]
    return [(node, name) for node, name in nodes if name in expression.calls]


def _condition(node: Any, expression: Expression) -> Any:
    condition = None
    while (parent := node.parent) is not None:
        if isinstance(parent, exp.If) and parent.arg_key == "ifs":
            case: Any = parent.parent
            before = case.args["ifs"][: parent.index]
            # A call in a WHEN is needed where no WHEN before it is true, one in its THEN where the
            # WHEN itself is true as well.
            own = [] if node.arg_key == "this" else [parent]
            condition = _case(case.this, _pairs(before), own, condition)
            parent = case
        elif isinstance(parent, exp.Case) and node.arg_key == "default":
            condition = _case(parent.this, _pairs(parent.args["ifs"]), [], condition)
        elif isinstance(parent, exp.If) and node.arg_key != "this":
            own = [parent] if node.arg_key == "true" else []
            condition = _case(None, _pairs([] if own else [parent]), own, condition)
        elif isinstance(parent, (exp.And, exp.Or)):
            condition = _of_side(parent, node, condition, expression)
        elif isinstance(parent, exp.Anonymous) and node.index:
            condition = _of_function(parent, node.index, condition)
        node = parent
    return condition


def _of_side(parent: Any, node: Any, condition: Any, expression: Expression) -> Any:
    """The condition of a call in one side of AND or OR: it is not needed where the other side
    decides the result. The two sides have no order.
    """
    other = parent.expression if node.arg_key == "this" else parent.this
    if node.arg_key == "this" and _calls_in(other, expression):
        return condition
    settles = exp.Paren(this=other.copy())
    test = settles if isinstance(parent, exp.Or) else exp.Not(this=settles)
    return _case(None, _pairs([exp.If(this=test)]), [], condition)


def _of_function(function: Any, place: int, condition: Any) -> Any:
    name, given = str(function.this).upper(), function.expressions
    if name == "IF":
        test = exp.If(this=given[0].copy())
        return _case(None, _pairs([] if place == 1 else [test]), [test] * (place == 1), condition)
    if name in _FIRST_NOT_NULL:
        before = [exp.Is(this=exp.Paren(this=one.copy()), expression=exp.Null()) for one in given]
        tests = [exp.If(this=exp.Not(this=one)) for one in before[:place]]
        return _case(None, _pairs(tests), [], condition)
    return condition


def _pairs(ifs: Sequence[Any]) -> list[Any]:
    """WHENs for which the result is FALSE where one of these is true."""
    return [exp.If(this=one.this.copy(), true=exp.false()) for one in ifs]


def _case(operand: Any, before: list[Any], own: Sequence[Any], condition: Any) -> Any:
    """True where none of `before` is true, the one in `own` is, and so is the condition inside.

    It is a CASE, so that nothing after the branch that is taken is computed.
    """
    inside = exp.true() if condition is None else condition
    if not before and not own:
        return condition
    if operand is None and not own and isinstance(inside, exp.Case) and inside.this is None:
        # One CASE instead of nested ones: a long OR would be too deep.
        before, inside = [*before, *inside.args["ifs"]], inside.args["default"]
    pairs = [*before, *(exp.If(this=one.this.copy(), true=inside) for one in own)]
    return exp.Case(
        this=None if operand is None else operand.copy(),
        ifs=pairs,
        default=exp.false() if own else inside,
    )
