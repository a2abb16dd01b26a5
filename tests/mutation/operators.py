"""Ways to sabotage a reduction after the experts that stands behind the central helper, as libcst rewrites of a file.

Each operator is a function of a `Site`; it yields the file's text with one thing wrong. What to rewrite is found from
the place of the collective's call and the name of the helper: no model is known here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider

from codemods.edits import apply_edits
from codemods.imports import import_edits


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reduction is called, counted as in `moe_lint.model.Span`, and what the tree calls things.

    Attributes:
        groups: collective -> (its axis, its group), of those that the tree defines.
        sizes: attributes of the block that hold the size of a group.
    """

    line: int
    column: int
    helper: str
    axis_parameter: str
    groups: Mapping[str, tuple[str, str | None]]
    sizes: tuple[str, ...] = ("tp_size", "ep_size")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A sabotaged file.

    Attributes:
        site: number of the sabotaged reduction among the places; of a pair, the first.
        decides: the sabotage is one of the guard, so that guards can be compared.
    """

    kind: str
    what: str
    text: str
    site: int
    decides: bool


@dataclass(frozen=True)
class Function:
    """A function of a file, parsed alone: a file of a thousand lines takes long to visit for each mutant."""

    text: str
    first: int  #: its first line and the one after its last, from 0
    end: int
    module: cst.Module
    parents: Mapping[cst.CSTNode, cst.CSTNode]
    positions: Mapping[cst.CSTNode, CodeRange]

    def replaced(self, changes: Mapping[cst.CSTNode, object]) -> str:
        """The whole file with some nodes of the function replaced."""
        new = self.module.visit(_Replace(changes))
        assert isinstance(new, cst.Module)
        lines = self.text.splitlines(keepends=True)
        return "".join([*lines[: self.first], new.code.removeprefix(_HEAD), *lines[self.end :]])


@dataclass(frozen=True)
class Site:
    """A reduction in its function: the call, its statement, and the `if` whose test asks the helper."""

    number: int
    function: Function
    place: Place
    call: cst.Call
    statement: cst.SimpleStatementLine
    branch: cst.If
    asked: cst.Call

    def with_(self, old: cst.CSTNode, new: cst.CSTNode | cst.FlattenSentinel[cst.BaseStatement]) -> str:
        """The file's text with one node replaced."""
        return self.function.replaced({old: new})

    @property
    def asks(self) -> cst.BaseExpression:
        """`not helper(…)`, or the call alone where it is not negated."""
        parent = self.function.parents[self.asked]
        negated = isinstance(parent, cst.UnaryOperation) and isinstance(parent.operator, cst.Not)
        return cst.ensure_type(parent, cst.UnaryOperation) if negated else self.asked

    @property
    def operand(self) -> cst.BaseExpression:
        return self.call.args[0].value

    @property
    def callee(self) -> str:
        return self.call.func.value if isinstance(self.call.func, cst.Name) else ""


_HEAD = "class _:\n"


def _functions(text: str, places: Sequence[Place]) -> Iterator[tuple[Function, list[tuple[int, Place]]]]:
    """The innermost methods around some places."""
    extents = [
        (min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, node.end_lineno or node.lineno)
        for owner in ast.parse(text).body
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
    ]
    for first, end in extents:
        inside = [(n, place) for n, place in enumerate(places) if first < place.line <= end]
        if inside:
            lines = text.splitlines(keepends=True)[first:end]
            wrapper = MetadataWrapper(cst.parse_module(_HEAD + "".join(lines)), unsafe_skip_copy=True)
            parents, positions = wrapper.resolve(ParentNodeProvider), wrapper.resolve(PositionProvider)
            yield Function(text, first, end, wrapper.module, parents, positions), inside


def _site(function: Function, number: int, place: Place) -> Site | None:
    """The reduction at a place; None where no `if` around it asks the helper."""
    line = place.line - function.first + 1
    for node, position in function.positions.items():
        if not isinstance(node, cst.Call) or (position.start.line, position.start.column + 1) != (line, place.column):
            continue
        up: cst.CSTNode = node
        statement: cst.SimpleStatementLine | None = None
        while up in function.parents:
            up = function.parents[up]
            if isinstance(up, cst.SimpleStatementLine):
                statement = up
            asked = _asked(up.test, place.helper) if isinstance(up, cst.If) else None
            if isinstance(up, cst.If) and asked is not None and statement is not None:
                return Site(number, function, place, node, statement, up, asked)
    return None


def mutants(text: str, places: Sequence[Place]) -> list[Mutant]:
    """Every sabotage of the reductions at some places of one file."""
    found: dict[str, Mutant] = {}
    for function, inside in _functions(text, places):
        sites = [site for number, place in inside if (site := _site(function, number, place)) is not None]
        made = [mutant for site in sites for operator in OPERATORS for mutant in operator(site)]
        made += [mutant for one, other in pairwise(sites) for mutant in pair_swapped(one, other)]
        for mutant in made:
            if mutant.text != text:
                found.setdefault(mutant.text, mutant)
    return list(found.values())


# --- the guard


def axis_flipped(site: Site) -> Iterator[Mutant]:
    for argument in site.asked.args:
        if argument.keyword is not None and argument.keyword.value == site.place.axis_parameter:
            value = cst.ensure_type(argument.value, cst.Name)
            other = cst.Name("False" if value.value == "True" else "True")
            yield _guard(site, "axis flipped", f"{site.place.axis_parameter}={other.value}", site.with_(value, other))


def flag_dropped(site: Site) -> Iterator[Mutant]:
    for argument in _flags(site):
        rest = [a for a in site.asked.args if a is not argument]
        rest[-1] = rest[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        name = cst.ensure_type(argument.keyword, cst.Name).value
        yield _guard(site, "flag dropped", name, site.with_(site.asked, site.asked.with_changes(args=rest)))


def flag_set(site: Site) -> Iterator[Mutant]:
    for argument in _flags(site):
        name = cst.ensure_type(argument.keyword, cst.Name).value
        text = site.with_(argument, argument.with_changes(value=cst.Name("True")))
        yield _guard(site, "flag set to a literal", f"{name}=True", text)


def flags_swapped(site: Site) -> Iterator[Mutant]:
    flags = _flags(site)
    if len(flags) == 2:
        one, other = flags
        text = site.function.replaced(
            {one: one.with_changes(value=other.value), other: other.with_changes(value=one.value)}
        )
        yield _guard(site, "flags swapped", "each keyword gets the other flag", text)


def helper_not_asked(site: Site) -> Iterator[Mutant]:
    yield _guard(
        site, "helper not asked", "the helper's part of the guard is True", site.with_(site.asks, cst.Name("True"))
    )


def guard_deleted(site: Site) -> Iterator[Mutant]:
    body = cst.ensure_type(site.branch.body, cst.IndentedBlock).body
    if site.branch.orelse is None:
        yield _guard(site, "guard deleted", "always reduces", site.with_(site.branch, cst.FlattenSentinel(body)))


def negation_lost(site: Site) -> Iterator[Mutant]:
    if site.asks is not site.asked:
        yield _guard(site, "negation lost", "reduces where the helper skips", site.with_(site.asks, site.asked))


def condition_inverted(site: Site) -> Iterator[Mutant]:
    test = cst.UnaryOperation(cst.Not(), _in_parentheses(site.branch.test))
    yield _guard(site, "condition inverted", "not (…)", site.with_(site.branch.test, test))


def and_becomes_or(site: Site) -> Iterator[Mutant]:
    parent = site.function.parents[site.asks]
    if isinstance(parent, cst.BooleanOperation) and isinstance(parent.operator, cst.And):
        spaces = {"whitespace_before": cst.SimpleWhitespace(" "), "whitespace_after": cst.SimpleWhitespace(" ")}
        text = site.with_(parent.operator, cst.Or(**spaces))
        yield _guard(site, "`and` becomes `or`", "either condition is enough", text)


def size_changed(site: Site) -> Iterator[Mutant]:
    for node in _walk(site.branch.test):
        if isinstance(node, cst.Comparison) and len(node.comparisons) == 1 and _size(node.left, site) is not None:
            (target,) = node.comparisons
            if isinstance(target.operator, cst.GreaterThan) and isinstance(target.comparator, cst.Integer):
                more = target.with_changes(comparator=cst.Integer(str(int(target.comparator.value) + 1)))
                yield _guard(site, "size condition changed", "> 2", site.with_(target, more))
                less = target.with_changes(operator=cst.LessThanEqual())
                yield _guard(site, "size condition changed", "<= 1", site.with_(target, less))


def size_of_the_other_axis(site: Site) -> Iterator[Mutant]:
    for node in _walk(site.branch.test):
        name = _size(node, site) if isinstance(node, cst.Attribute) else None
        for other in site.place.sizes:
            if name is not None and other != name and f"self.{other} =" in site.function.text:
                new = cst.ensure_type(node, cst.Attribute).with_changes(attr=cst.Name(other))
                yield _guard(site, "size of the other axis", f"{name} -> {other}", site.with_(node, new))


# --- the reduction


def reduced_twice(site: Site) -> Iterator[Mutant]:
    again = site.call.with_changes(args=[site.call.args[0].with_changes(value=site.call)])
    yield _act(site, "reduced twice", "the collective of the collective", site.with_(site.call, again))


def reduction_deleted(site: Site) -> Iterator[Mutant]:
    yield _act(site, "reduction deleted", "the guard stays, the collective goes", site.with_(site.call, site.operand))


def result_discarded(site: Site) -> Iterator[Mutant]:
    (small,) = site.statement.body[:1]
    if isinstance(small, cst.Assign) and small.value is site.call:
        yield _act(site, "result discarded", "f(x) instead of x = f(x)", site.with_(small, cst.Expr(site.call)))


def other_group(site: Site) -> Iterator[Mutant]:
    axis, group = site.place.groups.get(site.callee, ("", None))
    for other, (its_axis, its_group) in site.place.groups.items():
        if axis and its_group != group:
            kind = "collective of the other axis" if its_axis != axis else "other group of the same axis"
            text = site.with_(site.call.func, cst.Name(other))
            yield _act(site, kind, other, _imported(text, site.callee, other))


def reduced_too_early(site: Site) -> Iterator[Mutant]:
    """The reduction before the statement above it that adds something to the output."""
    block = cst.ensure_type(site.function.parents[site.branch], cst.IndentedBlock)
    at = block.body.index(site.branch)
    name = site.operand.value if isinstance(site.operand, cst.Name) else None
    if at == 0 or name is None:
        return
    above = block.body[at - 1]
    inner = [n for n in _walk(above) if _adds_to(n, name)]
    if inner:
        text = site.function.replaced({above: site.branch, site.branch: above})
        yield _act(site, "reduced too early", "before the last addition", text)


def _adds_to(node: cst.CSTNode, name: str) -> bool:
    if isinstance(node, cst.AugAssign):
        return (
            isinstance(node.operator, cst.AddAssign) and isinstance(node.target, cst.Name) and node.target.value == name
        )
    if isinstance(node, cst.Assign) and isinstance(node.value, cst.BinaryOperation):
        target = node.targets[0].target
        operands = node.value.left, node.value.right
        same = [o for o in operands if isinstance(o, cst.Name) and o.value == name]
        return isinstance(node.value.operator, cst.Add) and bool(same) and _named(target, name)
    return False


def _named(node: cst.CSTNode, name: str) -> bool:
    return isinstance(node, cst.Name) and node.value == name


def pair_swapped(one: Site, other: Site) -> Iterator[Mutant]:
    """What belongs to one reduction of an EP/TP pair is given to the other."""
    axes = {site.place.groups.get(site.callee, ("", None))[0] for site in (one, other)}
    if axes == {"EP", "TP"}:
        tests = {one.branch.test: other.branch.test, other.branch.test: one.branch.test}
        yield _guard(one, "guards of a pair swapped", "EP <-> TP", one.function.replaced(tests))
        names = {one.call.func: other.call.func, other.call.func: one.call.func}
        yield _act(one, "collectives of a pair swapped", "EP <-> TP", one.function.replaced(names))


OPERATORS: tuple[Callable[[Site], Iterator[Mutant]], ...] = (
    axis_flipped, flag_dropped, flag_set, flags_swapped, helper_not_asked, guard_deleted, negation_lost,
    condition_inverted, and_becomes_or, size_changed, size_of_the_other_axis, reduced_twice, reduction_deleted,
    result_discarded, other_group, reduced_too_early,
)  # fmt: skip


# --- libcst


def _guard(site: Site, kind: str, what: str, text: str) -> Mutant:
    return Mutant(kind, what, text, site.number, decides=True)


def _act(site: Site, kind: str, what: str, text: str) -> Mutant:
    return Mutant(kind, what, text, site.number, decides=False)


def _flags(site: Site) -> list[cst.Arg]:
    return [a for a in site.asked.args if a.keyword is not None and a.keyword.value != site.place.axis_parameter]


def _asked(test: cst.CSTNode, helper: str) -> cst.Call | None:
    calls = [n for n in _walk(test) if isinstance(n, cst.Call) and _named(n.func, helper)]
    return calls[0] if len(calls) == 1 else None


def _size(node: cst.CSTNode, site: Site) -> str | None:
    """`tp_size` of `self.tp_size`."""
    if isinstance(node, cst.Attribute) and _named(node.value, "self") and node.attr.value in site.place.sizes:
        return node.attr.value
    return None


def _in_parentheses(node: cst.BaseExpression) -> cst.BaseExpression:
    if node.lpar:
        return node
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _imported(text: str, name: str, other: str) -> str:
    """The file with ``other`` imported from where ``name`` comes from."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return apply_edits(text, import_edits(text, text, "." * node.level + (node.module or ""), other))
    return text


class _Replace(cst.CSTTransformer):
    def __init__(self, changes: Mapping[cst.CSTNode, object]) -> None:
        super().__init__()
        self.changes = changes

    def on_leave(self, original_node: cst.CSTNode, updated_node: cst.CSTNode) -> object:  # type: ignore[override]
        return self.changes.get(original_node, updated_node)
