"""Reduce a tensor that still owes its sum, in front of a statement that hands it on."""

from __future__ import annotations

from codemods.edits import CannotRewrite, Edit, Source
from moe_lint.model import FixPlan


def settle_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits that carry out a plan of kind ``settle``. Raises ``CannotRewrite``."""
    start, _ = source.range(plan.statement)
    line_start, _ = source.line_of(start)
    indent = source.text[line_start:start]
    if indent.strip():
        raise CannotRewrite("what hands the tensor on shares its line with another statement")
    ((name, marker),) = plan.arguments
    step = "\t" if indent.startswith("\t") else "    "
    text = (
        f'{indent}if getattr({name}, "{marker}", False):',
        f"{indent}{step}{name} = {plan.helper}({name})",
        f"{indent}{step}{name}.{marker} = False",
        "",
    )
    return [Edit(line_start, line_start, source.newline.join(text))]
