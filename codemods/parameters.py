"""Give a function further parameters with defaults, behind those that it has, annotated as these are."""

from __future__ import annotations

from codemods.edits import CannotRewrite, Edit, Source, functions, parsed
from codemods.listing import append, find_listing
from moe_lint.model import FixPlan


def parameter_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits that carry out a plan of kind ``parameters``. Raises ``CannotRewrite``."""
    line = plan.statement.line
    found = [function for function in functions(parsed(source.text)) if function.lineno == line]
    if len(found) != 1:
        raise CannotRewrite("the function is not where it was")
    arguments = found[0].args
    if arguments.vararg is not None or arguments.kwarg is not None:
        raise CannotRewrite("the function takes unnamed arguments")
    present = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if {a.arg for a in present} & {name for name, _ in plan.arguments}:
        raise CannotRewrite("the function has the parameter already")
    annotated = any(a.annotation is not None for a in present)
    items = [f"{name}: bool = {value}" if annotated else f"{name}={value}" for name, value in plan.arguments]
    start = source.offset(line, found[0].col_offset + 1)
    return [append(source, find_listing(source, start), items)]
