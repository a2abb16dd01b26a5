"""Text of expressions: the short way writes what `ast.unparse` writes."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lint.spelling import unparse

_NAMES = st.sampled_from(["a", "self", "get_moe_a2a_backend", "tp_size"])
_CONSTANTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 99),
    st.text(max_size=4),
    st.floats(0),
    st.binary(max_size=2),
    st.just(...),
).map(lambda value: ast.Constant(value))
_OPERATORS = st.sampled_from(
    [ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn]
)


def _larger(inner: st.SearchStrategy[ast.expr]) -> st.SearchStrategy[ast.expr]:
    keywords = st.builds(ast.keyword, st.one_of(st.none(), _NAMES), inner)
    return st.one_of(
        st.builds(lambda value, name: ast.Attribute(value, name, ast.Load()), inner, _NAMES),
        st.builds(lambda value, index: ast.Subscript(value, index, ast.Load()), inner, inner),
        st.builds(ast.Call, inner, st.lists(inner, max_size=2), st.lists(keywords, max_size=2)),
        st.builds(lambda left, o, right: ast.Compare(left, [o()], [right]), inner, _OPERATORS, inner),
        st.builds(lambda left, right: ast.BoolOp(ast.And(), [left, right]), inner, inner),
        st.builds(lambda value: ast.UnaryOp(ast.Not(), value), inner),
        st.builds(lambda value: ast.UnaryOp(ast.USub(), value), inner),
        st.builds(lambda left, right: ast.BinOp(left, ast.FloorDiv(), right), inner, inner),
        st.builds(lambda one, other: ast.Tuple([one, other], ast.Load()), inner, inner),
        st.builds(lambda value: ast.NamedExpr(ast.Name("n", ast.Store()), value), inner),
        st.builds(lambda value: ast.Starred(value, ast.Load()), inner),
        st.builds(lambda value: ast.Lambda(ast.arguments([], [], None, [], [], None, []), value), inner),
        st.builds(ast.IfExp, inner, inner, inner),
    )


_EXPRESSIONS = st.recursive(
    st.one_of(_CONSTANTS, _NAMES.map(lambda name: ast.Name(name, ast.Load()))), _larger, max_leaves=8
)


@settings(max_examples=500, deadline=None)
@given(_EXPRESSIONS)
def test_the_text_is_that_of_ast_unparse(node: ast.expr) -> None:
    assert unparse(node) == ast.unparse(node)


@pytest.mark.parametrize(
    "text",
    [
        "self.experts.skip(a, is_tp_path=not b)",
        "a < b <= c.d()",
        "(a < b) < c",
        "f(x := 1)",
        "u'x'",
        "a[0, 1]",
        "a[b:c]",
        "f(*a, **b)",
        "f(x for x in y)",
        "(1).real",
        "'%s' % a",
        "f'{a}'",
        "-1",
        "a[-1]",
        "- -1",
        "-1 < a",
        "(-1).real",
        "not a < b",
        "not (not a)",
        "(not a) < b",
        "f(-1)",
        "a.b['c'](d)(e)",
        "'\\n\"\\''",
    ],
)
def test_source_text_comes_back_as_ast_unparse_writes_it(text: str) -> None:
    node = ast.parse(text, mode="eval").body
    assert unparse(node) == ast.unparse(node)
