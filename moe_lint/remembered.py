"""Answers that are worked out once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

_Holder = TypeVar("_Holder")
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


def remembered(
    ask: Callable[Concatenate[_Holder, _Given], _Answer],
) -> Callable[Concatenate[_Holder, _Given], _Answer]:
    """Have the first argument (`self`) hold the answers, which must depend on it and the other arguments alone.

    They go with it: `functools.cache` would keep both for as long as the process lives.
    """
    place = f"{ask.__module__}.{ask.__qualname__}"

    @wraps(ask)
    def answer(holder: _Holder, /, *given: _Given.args, **named: _Given.kwargs) -> _Answer:
        answers = holder.__dict__.setdefault(place, {})
        key = (given, *named.items()) if named else given
        if key not in answers:
            answers[key] = ask(holder, *given, **named)
        found: _Answer = answers[key]
        return found

    return answer
