"""Answers that are worked out once."""

from __future__ import annotations

import gc
import weakref

import pytest

from moe_lint.remembered import remembered


class Asked:
    def __init__(self) -> None:
        self.questions: list[str] = []

    @remembered
    def answer(self, question: str, more: str = "") -> str | None:
        self.questions.append(question + more)
        if question == "unknown":
            raise KeyError(question)
        return question.upper() + more or None


def test_the_same_question_is_answered_once_even_with_none() -> None:
    asked = Asked()
    assert [asked.answer("a"), asked.answer("b"), asked.answer("a"), asked.answer(""), asked.answer("")] == [
        "A",
        "B",
        "A",
        None,
        None,
    ]
    assert asked.questions == ["a", "b", ""]


def test_an_argument_by_name_is_part_of_the_question() -> None:
    asked = Asked()
    assert [asked.answer("a"), asked.answer("a", more="x"), asked.answer("a", more="y")] == ["A", "Ax", "Ay"]


def test_an_error_is_no_answer() -> None:
    asked = Asked()
    for _ in range(2):
        with pytest.raises(KeyError):
            asked.answer("unknown")
    assert asked.questions == ["unknown"] * 2


def test_each_object_has_answers_of_its_own_and_takes_them_along() -> None:
    one, other = Asked(), Asked()
    assert one.answer("a") == other.answer("a") == "A"
    assert one.questions == other.questions == ["a"]
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
