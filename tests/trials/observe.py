"""Watch a block while it runs: which of its functions are called, and what conditions hold when they are.

For arguments about a guard that do not come from the guard: its conditions are evaluated where its function stands, by
the tree's own code, with the values that the function was really called with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from reference_runtime.dense import Dense
from reference_runtime.scenarios import Case
from reference_runtime.subjects import Subject
from reference_runtime.world import RankContext


@dataclass(frozen=True, slots=True)
class Question:
    """What to find out whenever a function is called.

    Attributes:
        path: its file, relative to the tree's root, with ``/``.
        function: its qualified name.
        conditions: expressions over the names that the function sees when it begins, and the tree's predicates.
    """

    path: str
    function: str
    conditions: tuple[str, ...] = ()


#: function -> per call: condition -> whether it held, or why that cannot be told
Seen = dict[str, list[dict[str, bool | str]]]


@dataclass
class Log:
    """What was seen since the log was last taken."""

    seen: Seen = field(default_factory=dict)

    def take(self) -> Seen:
        seen, self.seen = self.seen, {}
        return seen


@dataclass
class Observed:
    """A subject that is watched on rank 0 of several."""

    inner: Subject
    questions: tuple[Question, ...]
    log: Log

    @property
    def module(self) -> str:
        return self.inner.module

    @property
    def unsharded(self) -> dict[str, tuple[int, ...]]:
        return self.inner.unsharded

    @unsharded.setter
    def unsharded(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.inner.unsharded = shapes

    def build(self, context: RankContext) -> Any:
        return self.inner.build(context)

    def dense(self, model: Any) -> Dense:
        return self.inner.dense(model)

    def run(self, context: RankContext, model: Any, case: Case) -> torch.Tensor:
        if context.transport.world_size == 1 or context.transport.rank != 0:
            return self.inner.run(context, model, case)
        before = sys.getprofile()
        sys.setprofile(self._watcher(context))
        try:
            return self.inner.run(context, model, case)
        finally:
            sys.setprofile(before)

    def _watcher(self, context: RankContext) -> Callable[[FrameType, str, Any], None]:
        names = {question.function.rpartition(".")[2] for question in self.questions}
        predicates = vars(context.module("layers.moe.utils"))
        matching: dict[CodeType, Question | None] = {}

        def watch(frame: FrameType, event: str, _: Any) -> None:
            code = frame.f_code
            if event != "call" or code.co_name not in names:
                return
            if code not in matching:
                file = context.tree.relative(Path(code.co_filename))
                matching[code] = next((q for q in self.questions if _asks(q, code, str(file))), None)
            question = matching[code]
            if question is not None:
                names_there = {**predicates, **frame.f_globals}
                answers = {text: _holds(text, names_there, frame.f_locals) for text in question.conditions}
                self.log.seen.setdefault(question.function, []).append(answers)

        return watch


def _asks(question: Question, code: CodeType, file: str) -> bool:
    # before Python 3.11 code does not know its class
    name = getattr(code, "co_qualname", question.function)
    return question.path == file and question.function == name and name.endswith(code.co_name)


def _holds(condition: str, names: dict[str, Any], values: dict[str, Any]) -> bool | str:
    try:
        return bool(eval(condition, names, values))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
