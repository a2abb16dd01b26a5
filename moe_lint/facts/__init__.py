"""A parsed file -> `FileFacts`: what it says about reductions, guards, operands, classes and predicates.

Reads with `ast`, looks into no other file; what it hands out (`FunctionFacts`, `Formula`) holds no syntax node. Names
that only another file can explain stay symbolic (`CallResult`, base names, import targets); `index` resolves them.
"""

from moe_lint.facts.conduct import Call, Conduct, Mark, Passed
from moe_lint.facts.data import (
    NOTHING,
    Argument,
    AttributeFact,
    BackendTest,
    CallFact,
    CallResult,
    ClassFacts,
    Exit,
    Experts,
    FunctionFacts,
    GuardPart,
    Marked,
    Origin,
    Origins,
    Param,
    Paths,
    RawSite,
    ScatterFact,
    Summed,
    element_of,
)
from moe_lint.facts.file import FileFacts
from moe_lint.facts.groups import GroupChoice
from moe_lint.facts.syntax import group_axis, is_collective_name, is_reduction_name, is_run, span_of

__all__ = [
    "NOTHING",
    "Argument",
    "AttributeFact",
    "BackendTest",
    "Call",
    "CallFact",
    "CallResult",
    "ClassFacts",
    "Conduct",
    "Exit",
    "Experts",
    "FileFacts",
    "FunctionFacts",
    "GroupChoice",
    "GuardPart",
    "Mark",
    "Marked",
    "Origin",
    "Origins",
    "Param",
    "Passed",
    "Paths",
    "RawSite",
    "ScatterFact",
    "Summed",
    "element_of",
    "group_axis",
    "is_collective_name",
    "is_reduction_name",
    "is_run",
    "span_of",
]
