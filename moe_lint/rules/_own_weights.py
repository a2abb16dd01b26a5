"""Blocks that keep their experts' weights themselves, a rank's part of them, and run them by a function."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

from moe_lint.absorbers import absorbers_of
from moe_lint.facts import Call
from moe_lint.index import Ref
from moe_lint.profile import Profile, longest_part, matches
from moe_lint.rules._layers import calls_a_reducer
from moe_lint.rules.base import Context
from moe_lint.source import parse_part

_ALONE = re.compile(r"\b(?:\w+_)?size\s*=\s*1\b")


class OwnExperts(Struct, frozen=True):
    """A block's call of its experts, with a weight that it passes and what makes that one rank's part."""

    owner: Ref
    method: Ref
    call: Call
    weight: str
    part: str


def own_experts(context: Context) -> Iterator[OwnExperts]:
    """The calls of experts with weights that are split over the ranks, in every block that makes any."""
    index, profile = context.index, context.index.profile
    stems = sorted({longest_part(name) for name in profile.expert_functions})
    for path in sorted(
        {path for stem in stems for path in index.holding(stem) if index.texts[path].holds("Parameter(")}
    ):
        facts = index.facts(path)
        for name in facts.classes if facts is not None else ():
            if facts is not None and {"__init__", "forward"} <= facts.classes[name].methods:
                if facts.holds(name, "Parameter(") and not profile.is_expert_constructor(name):
                    running = [m for m in facts.functions_in(name) if any(facts.holds(m, stem) for stem in stems)]
                    yield from _calls(Ref(path, name), running, context)


def _calls(owner: Ref, methods: Iterable[str], context: Context) -> Iterator[OwnExperts]:
    """The calls in some methods of a block."""
    profile, facts = context.index.profile, context.index.facts(owner.path)
    split: dict[str, str] | None = None
    for name in methods:
        conduct = context.callers.conduct(Ref(owner.path, name))
        for call in conduct.calls if conduct is not None else ():
            if facts is not None and matches(call.callee.rsplit(".", 1)[-1], profile.expert_functions):
                if split is None:
                    split = dict(_split(facts.function_text(f"{owner.name}.__init__"), profile))
                weights = [passed.text for passed in call.arguments if passed.text in split]
                if weights:
                    yield OwnExperts(owner, Ref(owner.path, name), call, weights[0], split[weights[0]])


def _split(constructor: str, profile: Profile) -> Iterator[tuple[str, str]]:
    """The parameters that a constructor makes of a rank's part of some size, each with that part."""
    parts: dict[str, str] = {}
    tree = parse_part(f"if True:\n{constructor}")
    for node in ast.walk(tree) if tree is not None else ():
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is None or not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found = _part(value, parts, profile)
        for target in targets if found is not None else ():
            name = ast.unparse(target)
            parts[name] = found or ""
            if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "Parameter":
                yield name, parts[name]


def _part(value: ast.expr, parts: dict[str, str], profile: Profile) -> str | None:
    """The part of a size that an expression is made of: `n // tp_size`, `divide(n, tp_size)`, or a name for it."""
    for node in ast.walk(value):
        by: ast.expr | None = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
            by = node.right
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "divide" and node.args:
            by = node.args[-1]
        if by is not None and profile.is_size(ast.unparse(by)):
            return ast.unparse(node)
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in parts:
            return parts[ast.unparse(node)]
    return None


def nobody_sums(experts: OwnExperts, context: Context) -> bool:
    """Whether what the experts return leaves the block, and neither it nor a class around it sums anything."""
    index, owner = context.index, experts.owner
    if index.has_absorber(owner) is not False or any(
        "reduce" in f"{p.keyword} {p.text}" for p in experts.call.arguments
    ):
        return False
    around = {owner, *absorbers_of(context.policy).layers(owner)}
    family = {ref for one in around for ref in index.mro(one)}
    if any(site.raw.class_name is not None and Ref(site.path, site.raw.class_name) in family for site in context.sites):
        return False
    if any(calls_a_reducer(one, context) or _builds_one_rank(one, owner, context) for one in around):
        return False
    return any(True for _ in context.ways.unsummed(owner, "TP"))


def _builds_one_rank(layer: Ref, block: Ref, context: Context) -> bool:
    """Whether a class may build the block for a group of one rank: told from the text."""
    facts = context.index.facts(layer.path)
    text = facts.class_text(layer.name) if facts is not None and layer.name in facts.classes else ""
    return layer != block and block.name in text and _ALONE.search(text) is not None
