"""Small questions to syntax nodes and names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from moe_lint.expressions import dotted
from moe_lint.model import Axis, Span
from moe_lint.source import Lines

#: A name that says "this is an all-reduce". `AllReduce(…)` builds an object that will do one.
_REDUCTION = re.compile(r"(?:^|_)all_?reduce_?$")
_REDUCE_SCATTER = re.compile(r"(?:^|_)reduce_?scatterv?(?:_tensor|_along_dim)?_?$")
_NOT_A_REDUCTION = re.compile(
    r"^_*(?:maybe_)?(?:should|can|is|has|use|uses|needs|supports|add|register|get|set|init|compile|enable|disable|skip"
    r"|test|make|create|build)_"
)
#: The members of `torch.distributed.ReduceOp` that do not sum.
_OTHER_OPS = frozenset({"MAX", "MIN", "PRODUCT", "BAND", "BOR", "BXOR"})
_GROUP_AXIS = (
    (re.compile(r"(?:^|_)(?:ep|expert_parallel)(?:_|$)"), "EP"),
    (re.compile(r"(?:^|_)(?:attn|attention|dp|pp|cp)(?:_|$)"), "other"),
    (re.compile(r"(?:^|_)(?:tp|tensor|tensor_parallel|tensor_model_parallel)(?:_|$)"), "TP"),
    (re.compile(r"(?:^|_)(?<!shared_)expert(?:_|$)"), "EP"),  # `expert_group`, but `expert_tp_group` is TP
)


def span_of(node: ast.expr | ast.stmt, lines: Lines) -> Span:
    """The span of a node, with columns in characters."""
    end_line = node.end_lineno or node.lineno
    column = lines.column(node.lineno, node.col_offset)
    return Span(node.lineno, column, end_line, lines.column(end_line, node.end_col_offset or 0))


def is_collective_name(name: str) -> bool:
    """Whether a function's name says that it is a collective that sums (`all_reduce`, `dp_reduce_scatter_tensor`)."""
    return is_reduction_name(name) or (
        _REDUCE_SCATTER.search(name) is not None and _NOT_A_REDUCTION.match(name) is None
    )


def is_reduction_name(name: str) -> bool:
    """Whether a function's name says that it is an all-reduce (`all_reduce`, `symm_mem_all_reduce`)."""
    return _REDUCTION.search(name) is not None and _NOT_A_REDUCTION.match(name) is None


def is_run(name: str) -> bool:
    """Whether a method's name says that it runs the layer it belongs to."""
    return name.startswith(("forward", "run", "apply", "__call__"))


def sums(node: ast.Call) -> bool:
    """Whether a reduction sums: `op=ReduceOp.MAX` does not."""
    given = (*node.args[1:], *(keyword.value for keyword in node.keywords))
    return not any((dotted(value) or "").rsplit(".", 1)[-1] in _OTHER_OPS for value in given)


def group_axis(text: str) -> Axis:
    """The axis of a process group, from the words in its name: `get_moe_ep_group()` -> EP."""
    words = re.sub(r"[^0-9a-z]+", "_", text.lower())
    for pattern, axis in _GROUP_AXIS:
        if pattern.search(words):
            return axis  # type: ignore[return-value]
    return "other"


def import_statements(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, module-level first."""
    stack: list[ast.stmt] = list(reversed(tree.body))
    later: list[ast.stmt] = []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            later.append(node)
        else:
            stack.extend(s for block in inner_blocks(node) for s in block)
    while later:
        node = later.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            later.extend(s for block in inner_blocks(node) for s in block)


def inner_blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks inside a statement, in order."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body


def assignment(statement: ast.AST) -> tuple[list[ast.expr], ast.expr] | None:
    """The targets and the value of an assignment, annotated or not."""
    if isinstance(statement, ast.Assign):
        return statement.targets, statement.value
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return [statement.target], statement.value
    return None


def arguments_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def defaults_of(arguments: ast.arguments) -> tuple[tuple[str, bool | None], ...]:
    """Parameters that have a default -> the default when it is a truth value, else None."""
    found: list[tuple[str, bool | None]] = []
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs: list[tuple[ast.arg, ast.expr | None]] = list(
        zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True)
    )
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in pairs:
        if default is not None:
            constant = isinstance(default, ast.Constant) and isinstance(default.value, bool)
            found.append((argument.arg, default.value if constant else None))  # type: ignore[attr-defined]
    return tuple(found)


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return is_property_name(dotted(d) or "" for d in node.decorator_list)


def is_property_name(decorators: Iterable[str]) -> bool:
    """Whether one of these decorators (dotted names) makes a method a property."""
    return any(name.rsplit(".", 1)[-1] in ("property", "cached_property") for name in decorators)


def self_assignments(method: ast.FunctionDef) -> Iterator[tuple[str, ast.expr | None]]:
    """(attribute, value) for each store to ``self.x``; no value unless it is assigned unconditionally and plainly."""
    stack: list[tuple[ast.stmt, bool]] = [(statement, True) for statement in method.body]
    while stack:
        statement, plain = stack.pop()
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign):
            targets, value = [statement.target], statement.value
        elif isinstance(statement, ast.AugAssign):
            targets = [statement.target]
        else:
            stack += [(inner, False) for block in inner_blocks(statement) for inner in block]
        for target in targets:
            for element in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                base = element.value if isinstance(element, ast.Attribute) else None
                if isinstance(element, ast.Attribute) and isinstance(base, ast.Name) and base.id == "self":
                    yield element.attr, value if plain and element is target else None
