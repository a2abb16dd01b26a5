"""Bytes to text to syntax tree: marks, declared encodings, and honest words about what cannot be read."""

from __future__ import annotations

import ast
import codecs
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lint.model import SkipReason
from moe_lint.source import Lines, SourceError, decode, parse


def refused_bytes(data: bytes) -> SourceError:
    with pytest.raises(SourceError) as caught:
        decode(data)
    return caught.value


def refused_text(text: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        parse(text)
    return caught.value


# --- decoding


def test_utf8_is_the_default() -> None:
    assert decode("x = 'ü'\n".encode()) == "x = 'ü'\n"


def test_an_empty_file_is_an_empty_text() -> None:
    assert decode(b"") == ""


def test_a_byte_order_mark_is_not_part_of_the_text() -> None:
    text = decode(codecs.BOM_UTF8 + b"import x\n")
    assert text == "import x\n"
    assert isinstance(parse(text).body[0], ast.Import)


@pytest.mark.parametrize(
    "head", ["# -*- coding: latin-1 -*-\n", "#!/usr/bin/python\n# vim: set fileencoding=latin-1 :\n"]
)
def test_a_declared_encoding_is_honoured_on_the_first_two_lines(head: str) -> None:
    text = f"{head}x = 'ü'\n"
    assert decode(text.encode("latin-1")) == text


def test_a_declared_encoding_on_the_third_line_is_a_comment() -> None:
    error = refused_bytes("\n\n# coding: latin-1\nx = 'ü'\n".encode("latin-1"))
    assert error.reason is SkipReason.UNDECODABLE


def test_line_ends_are_kept() -> None:
    assert decode(b"x = 1\r\ny = 2\r\n") == "x = 1\r\ny = 2\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"x = '\xff'\n",
        b"# coding: no-such-codec\nx = 1\n",
        codecs.BOM_UTF8 + b"# coding: latin-1\nx = 1\n",
        b"# coding: ascii\nx = '\xc3\xbc'\n",
        codecs.BOM_UTF16_LE + "x = 1\n".encode("utf-16-le"),
    ],
)
def test_bytes_that_are_not_text_in_the_declared_encoding_are_refused(data: bytes) -> None:
    error = refused_bytes(data)
    assert error.reason is SkipReason.UNDECODABLE
    assert error.line == 1
    assert error.message.startswith("not readable as text: ")
    assert str(error) == error.message


@pytest.mark.parametrize("codec", ["rot13", "base64", "hex", "zlib"])
def test_a_codec_that_does_not_give_text_is_refused(codec: str) -> None:
    assert refused_bytes(f"# coding: {codec}\nx = 1\n".encode()).reason is SkipReason.UNDECODABLE


# --- parsing


def test_a_tree_is_a_module() -> None:
    tree = parse("x = 1\n")
    assert isinstance(tree, ast.Module)
    assert ast.unparse(tree) == "x = 1"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "x = 1"])
def test_small_texts_parse(text: str) -> None:
    assert isinstance(parse(text), ast.Module)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\ndef f(:\n    pass\n", 2),
        ("if x:\npass\n", 2),
        ("x = 'abc\n", 1),
        ("print 'x'\n", 1),
        ("x = 1\n\n\ny = = 2\n", 4),
    ],
)
def test_a_syntax_error_says_on_which_line(text: str, line: int) -> None:
    error = refused_text(text)
    assert error.reason is SkipReason.SYNTAX_ERROR
    assert error.line == line
    assert error.message.startswith("syntax error: ")
    assert "newer Python" not in error.message


def test_a_null_byte_is_a_syntax_error() -> None:
    assert refused_text("x = '\0'\n").reason is SkipReason.SYNTAX_ERROR


def test_a_text_that_is_nested_too_deeply_is_refused_and_does_not_crash() -> None:
    error = refused_text("x = " + "-" * 200_000 + "1\n")
    assert error.reason is SkipReason.SYNTAX_ERROR


def test_warnings_about_the_target_are_not_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse("x = '\\d'\ny = x is 1\n")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python knows the grammar")
@pytest.mark.parametrize("text", ["type Pair[T] = tuple[T, T]\n", "def first[T](x: list[T]) -> T:\n    return x[0]\n"])
def test_grammar_newer_than_this_python_is_told_from_an_error(text: str) -> None:
    error = refused_text(text)
    assert error.reason is SkipReason.SYNTAX_ERROR
    assert error.line == 1
    assert error.message.startswith("syntax error: needs a newer Python than this one to be parsed: ")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python does not know the grammar")
def test_the_newest_grammar_parses() -> None:
    assert isinstance(parse("type Pair[T] = tuple[T, T]\n"), ast.Module)


# --- lines


@given(st.text("ab\n\f\rüß漢"), st.integers(-8, 8), st.integers(-8, 8))
def test_lines_are_those_of_split(text: str, first: int, last: int) -> None:
    lines, wanted = Lines(text), text.split("\n")
    assert list(lines) == wanted
    assert len(lines) == len(wanted)
    assert lines[first:last] == wanted[first:last]
    assert [lines[n] for n in range(-len(wanted), len(wanted))] == [*wanted, *wanted]
    with pytest.raises(IndexError):
        lines[len(wanted)]
    assert lines.block(1, len(wanted)) == text
    assert [lines.number(position) for position in range(len(text))] == [
        text.count("\n", 0, position) + 1 for position in range(len(text))
    ]


@given(st.text("ab ü漢"))
def test_columns_are_counted_in_characters(text: str) -> None:
    lines = Lines(f"x\n{text}")
    for column in range(len(text) + 1):
        assert lines.column(2, len(text[:column].encode())) == column + 1
