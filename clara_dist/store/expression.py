"""The language of filters: ``lang = 'en' and (year between 1990 and 1999 or year is null)``.

| what | how |
|---|---|
| compare | ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` |
| sets, ranges | ``[not] in (...)``, ``between LOW and HIGH`` (both included) |
| missing values | ``is [not] null``; a missing value fits no other test, nor the ``not`` of one |
| combine | ``not``, then ``and``, then ``or``; parentheses |
| values | ``'text'`` (a quote in it is written twice), ``-1``, ``2.5``, ``true``, ``false`` |
| columns | as they are named; in double quotes if they have other characters than letters, digits, ``_`` and ``.`` |

Words are read in any case. Dates are compared as text, in the order of their ISO form: ``published >= '2024-01-31'``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from clara_dist.errors import FilterError
from clara_dist.store.conditions import AllOf, AnyOf, Comparison, Condition, IsNull, Not, OneOf
from clara_dist.store.schema import StoreSchema
from clara_dist.store.typed_values import column_kind, shorten, typed_value

MAX_CHARACTERS = 4096
# Each level is some frames of Python's and Arrow's own stacks, of which there are a thousand and more.
MAX_DEPTH = 32
# Each reads a column: up to 10 ms of a million rows. A range is two; a set is one, however many values it has.
MAX_TESTS = 64

_GRAMMAR = r"""
?start: any
?any: all (_OR all)*
?all: one (_AND one)*
?one: "(" any ")"
    | _NOT one                                          -> negation
    | column COMPARISON value                           -> comparison
    | column _IN "(" value ("," value)* ")"             -> one_of
    | column _NOT _IN "(" value ("," value)* ")"        -> none_of
    | column _BETWEEN value _AND value                  -> between
    | column _IS _NULL                                  -> null
    | column _IS _NOT _NULL                             -> not_null
column: NAME | QUOTED_NAME
value: STRING | NUMBER | BOOL

COMPARISON: "=" | "!=" | "<=" | "<" | ">=" | ">"
_OR.2: /or(?![\w.])/i
_AND.2: /and(?![\w.])/i
_NOT.2: /not(?![\w.])/i
_IN.2: /in(?![\w.])/i
_BETWEEN.2: /between(?![\w.])/i
_IS.2: /is(?![\w.])/i
_NULL.2: /null(?![\w.])/i
BOOL.2: /(true|false)(?![\w.])/i
NAME: /[^\W\d][\w.]*/
QUOTED_NAME: /"([^"]|"")+"/
STRING: /'([^']|'')*'/
NUMBER: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?(?![\w.])/i
%ignore /\s+/
"""
# What a client may read of the grammar's names.
_SAID = {
    "COMPARISON": "= != < <= > >=",
    "NAME": "a column",
    "QUOTED_NAME": "a column",
    "STRING": "'text'",
    "NUMBER": "a number",
    "BOOL": "true or false",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": ",",
    "$END": "the end",
}


def parse_expression(text: str, schema: StoreSchema) -> Condition:
    """What an expression asks of a row.

    Args:
        text: At most `MAX_CHARACTERS` long and `MAX_DEPTH` deep, with at most `MAX_TESTS` tests of a column.
        schema: Of the store, for its columns and their types.

    Raises:
        FilterError: See `parse_where`.
    """
    if len(text) > MAX_CHARACTERS:
        raise FilterError("the filter is too long", got=f"{len(text)} characters", expected=f"at most {MAX_CHARACTERS}")
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise _unreadable(text, error) from None
    condition = _condition(tree, schema, 1)
    if (n_tests := len(list(condition.columns()))) > MAX_TESTS:
        raise FilterError(
            "the filter tests columns too often",
            got=f"{n_tests} tests",
            expected=f"at most {MAX_TESTS}",
            hint="write column in (...) instead of many alternatives",
        )
    return condition


@cache
def _parser() -> Lark:
    # LALR is linear in the text and keeps its own stack, so that no nesting exhausts Python's.
    return Lark(_GRAMMAR, parser="lalr")


def _condition(tree: Tree[Any], schema: StoreSchema, depth: int) -> Condition:
    if depth > MAX_DEPTH:
        raise FilterError("the filter is nested too deep", expected=f"at most {MAX_DEPTH} levels")
    match tree.data, tree.children:
        case "any", parts:
            return AnyOf(tuple(_condition(part, schema, depth + 1) for part in parts))
        case "all", parts:
            return AllOf(tuple(_condition(part, schema, depth + 1) for part in parts))
        case "negation", [part]:
            return Not(_condition(part, schema, depth + 1))
    column, *values = tree.children
    return _test(tree.data, _Column.read(_token(column), schema), values)


def _test(name: str, column: _Column, values: Sequence[Any]) -> Condition:
    match name, values:
        case "comparison", [operator, value]:
            if operator not in ("=", "!="):
                column.require_order(operator)
            return Comparison(column.name, str(operator), column.value(value))
        case "between", [low, high]:
            column.require_order(_token(low))
            edges = (
                Comparison(column.name, ">=", column.value(low)),
                Comparison(column.name, "<=", column.value(high)),
            )
            return AllOf(edges)
        case "one_of", values:
            return OneOf(column.name, tuple(map(column.value, values)))
        case "none_of", values:
            return Not(OneOf(column.name, tuple(map(column.value, values))))
        case "not_null", _:
            return Not(IsNull(column.name))
    return IsNull(column.name)


@dataclass(frozen=True)
class _Column:
    name: str
    kind: str

    @classmethod
    def read(cls, token: Token, schema: StoreSchema) -> _Column:
        name = token[1:-1].replace('""', '"') if token.type == "QUOTED_NAME" else str(token)
        return cls(name, column_kind(schema, name, _place(token.start_pos)))

    def value(self, tree: Any) -> Any:
        token = _token(tree)
        value: Any
        if token.type == "STRING":
            value = token[1:-1].replace("''", "'")
        elif token.type == "BOOL":
            value = token.lower() == "true"
        else:
            # No int64 has more characters than 20, and Python may refuse to read an int of many more.
            value = int(token) if len(token) <= 20 and not set(token) & set(".eE") else float(token)
        return typed_value(self.name, self.kind, value, _place(token.start_pos))

    def require_order(self, token: Token) -> None:
        if self.kind == "bool":
            raise FilterError(
                f"the metadata column {self.name!r} is of a type without an order{_place(token.start_pos)}",
                got=self.kind,
                expected="= or !=",
            )


def _token(tree: Any) -> Token:
    """The one word of a column or a value."""
    [token] = tree.children
    return token


def _place(position: int | None) -> str:
    return f" at character {(position or 0) + 1}"


def _unreadable(text: str, error: UnexpectedInput) -> FilterError:
    """What stands where it cannot, and what could."""
    wanted: Iterable[str] = ()
    if isinstance(error, UnexpectedCharacters):
        wanted = error.allowed or ()
    elif isinstance(error, UnexpectedToken):
        wanted = error.accepts or error.expected
    at_end = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    position = len(text) if at_end else (error.pos_in_stream or 0)
    said = sorted({_SAID.get(name, name.strip("_").lower()) for name in wanted})
    return FilterError(
        f"the filter cannot be read{_place(position)}",
        got=repr(shorten(text[position:])) if text[position:] else "its end",
        expected=", ".join(said) or None,
        hint="such as \"source = 'wiki' and year >= 2020\": text in single quotes, columns without or in double ones",
    )
